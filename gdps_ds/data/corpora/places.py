"""Where the files of a corpus lie: below the folder that was downloaded, whatever the case of their names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from gdps_ds.data.manifest import DataError
from gdps_ds.data.sources import missed, note
from gdps_ds.files import existing

DEPTH = 3
"""Folders between the root that is given and the corpus."""


def split_folder(root: Path, split: str, *marks: str, prefer: Sequence[str] = ()) -> Path:
    """The folder of a split, in ``root`` or a little below, see :func:`home`.

    Args:
        marks: patterns of what a split of this layout holds, such as ``txt/*.yaml``.
        prefer: names of folders that decide where the split is in several.

    Raises:
        DataError: there is none; lists the splits that there are.
    """
    parent = home(root, *(f"*/{mark}" for mark in marks), prefer=prefer)
    if (folder := named(parent / split)).is_dir():
        return folder
    folders = _folders_in(parent)
    raise no_split(parent, split, [child.name for child in folders if _holds(child, marks)] or [each.name for each in folders])


def split_file(root: Path, split: str, *patterns: str) -> tuple[Path, Path]:
    """The first of ``patterns`` that is there, ``*`` standing for the split, and the folder that it is relative to.

    That is ``root`` or a little below, see :func:`home`.

    Raises:
        DataError: there is none; lists the splits that there are.
    """
    parent = home(root, *patterns)
    for pattern in patterns:
        if (path := named(parent / pattern.replace("*", split))).is_file():
            return parent, path
    for pattern in patterns:
        before, _, after = pattern.partition("*")
        if names := [str(path.relative_to(parent)) for path in parent.glob(pattern)]:
            raise no_split(parent, split, [name.removeprefix(before).removesuffix(after) for name in names])
    raise DataError(f"{root}: no split '{split}': there is no {' or '.join(name.replace('*', split) for name in patterns)}")


def home(root: Path, *patterns: str, prefer: Sequence[str] = ()) -> Path:
    """The folder that holds one of ``patterns``: ``root``, or else the nearest one below it, up to :data:`DEPTH` folders.

    Archives and repositories put a corpus into folders of their own, and users name what they have downloaded. Where nothing
    holds them, it is ``root``. For patterns of any split, it does not depend on which one is asked for: one that a corpus lacks
    is never taken from a copy or another corpus below or beside it.

    Raises:
        DataError: several folders hold them, and ``prefer`` does not name one.
    """
    level = [root]
    for _ in range(DEPTH + 1):
        if found := [folder for folder in level if _holds(folder, patterns)]:
            named_so = [folder for folder in found if not set(prefer).isdisjoint(folder.relative_to(root).parts)]
            if len(found) > 1 and len(named_so) != 1:
                raise DataError(f"{root}: the corpus may be any of {', '.join(map(str, found))}; give one of them as the root")
            return named_so[0] if len(found) > 1 else found[0]
        level = [child for folder in level for child in _folders_in(folder)]
    return root


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    except PermissionError:
        return []


def _holds(folder: Path, patterns: Iterable[str]) -> bool:
    return any(next(folder.glob(_in_any_case(pattern)), None) for pattern in patterns)


def _in_any_case(pattern: str) -> str:
    return re.sub(r"(?<!\[)[^\W\d_](?!\])", lambda letter: f"[{letter[0].lower()}{letter[0].upper()}]", pattern)


def named(path: Path) -> Path:
    """``path``, or what is there under that name in other case; for folders and indices, whose names a layout prescribes."""
    if path.exists():
        return path
    missed(path)
    return _alike(path, str.casefold)


def file_of(path: Path) -> Path:
    """``path``, or what is there under that name in another Unicode normal form or with a suffix in other case.

    File systems and archives change either; the case of the name itself may tell two files apart.
    """
    path = Path(existing(str(path.parent))) / path.name
    if path.is_file():
        return path
    missed(path)
    return _alike(path, _plain)


def _plain(name: str) -> str:
    stem, dot, suffix = unicodedata.normalize("NFC", name).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}" if dot else suffix


def _alike(path: Path, key: Callable[[str], str]) -> Path:
    """The only file beside ``path`` whose name has the same ``key``, or ``path`` itself."""
    try:
        found = _names_by(path.parent, path.parent.stat().st_mtime_ns, key).get(key(path.name), [])
    except OSError:
        return path
    return path.with_name(found[0]) if len(found) == 1 else path


@lru_cache(maxsize=64)
def _names_by(folder: Path, changed: int, key: Callable[[str], str]) -> dict[str, list[str]]:
    """The names in a folder that was ``changed`` at that time, by ``key``."""
    names: dict[str, list[str]] = {}
    for path in folder.iterdir():
        names.setdefault(key(path.name), []).append(path.name)
    return names


def index_of(folder: Path, split: str, suffix: str) -> Path:
    """``<split><suffix>`` in the folder of a split, or else the only file of that kind: ``test.eng`` of ``test-2023``."""
    path = named(folder / f"{split}{suffix}")
    if path.is_file():
        return path
    note(folder, f"*{suffix}")
    others = list(folder.glob(f"*{suffix}"))
    return others[0] if len(others) == 1 else path


def no_split(root: Path, split: str, found: Iterable[str]) -> DataError:
    hint = "; the root is the folder above it" if root.name.casefold() == split.casefold() else ""
    return DataError(f"{root}: no split '{split}'; splits there: {', '.join(sorted(found)) or 'none'}{hint}")


def first_file(candidates: Sequence[Path]) -> str:
    """The first that is there, see :func:`file_of`; the first of all where none is, so that it is reported as missing."""
    for path in candidates:
        if path.is_file():
            return str(path)
        missed(path)
    return str(next((found for path in candidates if (found := file_of(path)).is_file()), candidates[0]))


def names_in(folder: Path, *suffixes: str) -> list[str]:
    """Sorted names (without suffix) of all files of these kinds: text without audio is seen, and audio without text."""
    note(folder, ",".join(f"*{suffix}" for suffix in suffixes))
    files = [_plain(file.name) for file in folder.iterdir()] if folder.is_dir() else []
    names = {file.removesuffix(suffix) for suffix in suffixes for file in files if file.endswith(suffix)}
    if not names:
        raise DataError(f"{folder}: no {' or '.join(suffixes)} files; is the corpus layout right?")
    return sorted(names)
