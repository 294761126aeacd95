"""Whether a text says anything: Unicode has many characters that leave no mark on paper."""

from __future__ import annotations

import unicodedata

INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code) for block in (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0)) for code in block
}
"""Characters without shape that Unicode counts as letters, marks or symbols: joiners, fillers, variation selectors."""


def has_text(text: str | None) -> bool:
    """Whether anything of ``text`` can be seen. White space, controls, zero-width characters, soft hyphens and byte-order marks
    cannot; a text of those alone is empty."""
    return bool(text) and any(unicodedata.category(each)[0] not in "CZ" and each not in INVISIBLE for each in text or "")
