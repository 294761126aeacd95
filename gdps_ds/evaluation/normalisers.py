"""What is done to hypotheses and references before they are scored: NFC for all, then one of the field's normalisations."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

Normaliser = Callable[[str], str]


def _strip(characters: str, text: str) -> str:
    return " ".join(text.lower().translate(dict.fromkeys(map(ord, characters))).split())


def _strip_punctuation(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if not unicodedata.category(c).startswith("P")).split())


def _strip_non_words(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


NORMALISERS: dict[str, Normaliser] = {
    "none": lambda text: text,
    # IWSLT dialect task (Tunisian scripts): apostrophes and hyphens stay.
    "shared-task": lambda text: _strip('()#+=?!;.,":', text),
    # GMU's IWSLT 2025 scripts: every Unicode punctuation character goes.
    "gmu": _strip_punctuation,
    # The GDPS authors': everything but word characters and white space goes.
    "gdps": _strip_non_words,
}

WORD_SEPARATORS = frozenset("\u0f0b\u1361")
"""Tibetan's tsheg and Ethiopic's word space: punctuation to Unicode, but what keeps words apart."""
LISTED = 3


def normalised(text: str, normaliser: str) -> str:
    """``text`` composed (NFC), then normalised: what is the same on paper must score the same, whoever has typed it."""
    return NORMALISERS[normaliser](unicodedata.normalize("NFC", text))


def dropped(texts: Iterable[str], normaliser: str) -> Counter[str]:
    """Letters, vowel signs, other combining marks and word separators that a normaliser takes out of ``texts``: words that
    differ in nothing else become the same.

    Every normaliser works on one character at a time, so each is tried once.
    """
    found = Counter(character for text in texts for character in unicodedata.normalize("NFC", text).lower())
    return Counter(
        {
            each: count
            for each, count in found.items()
            if (unicodedata.category(each)[0] in "LM" or each in WORD_SEPARATORS)
            and each not in NORMALISERS[normaliser](f"x{each}")
        }
    )


def loss_of(texts: Iterable[str], normaliser: str, row: str) -> str:
    """A line that warns of what :func:`dropped` finds in the references of a ``row`` of the table; empty without any."""
    lost = dropped(texts, normaliser)
    if not lost:
        return ""
    names = ", ".join(unicodedata.name(each, f"U+{ord(each):04X}").lower() for each, _ in lost.most_common(LISTED))
    return (
        f"{row}: decode.normaliser {normaliser} drops {lost.total()} vowel signs, marks or word separators of the references "
        f"({names}): words that differ in them alone count as equal; shared-task and none keep them"
    )
