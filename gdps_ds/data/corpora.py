"""Corpora in the layouts they are distributed in -> utterances.

A layout is a function ``(root, split) -> iterator of Utterance`` and one line in :data:`LAYOUTS`. To add one, walk the
split's files in a fixed order and yield *every* utterance that text, audio or index mention, usable or not; what is
unusable is told and counted by :mod:`gdps_ds.data.preparation`. Ids must be unique over languages and splits, for they
decide folds and name hypotheses. Nothing is decoded here. For a corpus of ``<split>/<name>.flac`` and ``.txt``:

    def read_mine(root: Path, split: str) -> Iterator[Utterance]:
        folder = split_folder(root, split)
        for name in names_in(folder, ".flac", ".txt"):
            text = read_text(folder / f"{name}.txt")
            yield Utterance(f"mine-{split}-{name}", str(folder / f"{name}.flac"), "gle", "eng", text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from gdps_ds.data.manifest import DataError, Utterance, read_manifest

Layout = Callable[[Path, str], Iterator[Utterance]]


def read_corpus(layout: str, root: str | Path, split: str) -> Iterator[Utterance]:
    """The utterances of one split, lazily.

    Raises:
        DataError: unknown layout, no such folder, no such split (the message lists those there are), or nothing in it.
    """
    if layout not in LAYOUTS:
        raise DataError(f"unknown corpus layout '{layout}'; known layouts: {', '.join(LAYOUTS)}")
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder (the root of corpus layout '{layout}')")
    return LAYOUTS[layout](Path(root), split)


def read_manifest_folder(root: Path, split: str) -> Iterator[Utterance]:
    """``<split>.jsonl`` as :mod:`gdps_ds.data.manifest` defines it; what ``launchers/prepare.py`` writes."""
    path = root / f"{split}.jsonl"
    if not path.is_file():
        raise _no_split(root, split, [file.stem for file in root.glob("*.jsonl")])
    utterances = read_manifest(path)
    if not utterances:
        raise DataError(f"{path}: no utterances")
    yield from utterances


def read_mboshi_french(root: Path, split: str) -> Iterator[Utterance]:
    """Mboshi-French: ``<split>/<name>.wav``, ``.mb`` (Mboshi) and ``.fr`` (French), one utterance a name."""
    folder = split_folder(root, split)
    for name in names_in(folder, ".wav", ".fr"):
        yield Utterance(
            id=f"mboshi-{split}-{name}",
            audio=str(folder / f"{name}.wav"),
            source_lang="mdw",
            target_lang="fra",
            target_text=read_text(folder / f"{name}.fr"),
            source_text=read_text(folder / f"{name}.mb"),
        )


def read_griko_italian(root: Path, split: str) -> Iterator[Utterance]:
    """Griko-Italian: ``<split>/wav/<n>.wav``, ``<split>/gr/<n>.words`` (Griko) and ``<split>/it/<n>.words``."""
    folder = split_folder(root, split)
    names = {*names_in(folder / "wav", ".wav"), *names_in(folder / "it", ".words")}
    for name in sorted(names, key=lambda name: (len(name), name)):
        yield Utterance(
            id=f"griko-{split}-{name}",
            audio=str(folder / "wav" / f"{name}.wav"),
            source_lang="grk",
            target_lang="ita",
            target_text=read_text(folder / "it" / f"{name}.words"),
            source_text=read_text(folder / "gr" / f"{name}.words"),
        )


LAYOUTS: dict[str, Layout] = {
    "manifest": read_manifest_folder,
    "mboshi-french": read_mboshi_french,
    "griko-italian": read_griko_italian,
}


def split_folder(root: Path, split: str) -> Path:
    """``root/split``; the error of a missing one lists the folders that are there."""
    folder = root / split
    if not folder.is_dir():
        raise _no_split(root, split, [child.name for child in root.iterdir() if child.is_dir()])
    return folder


def names_in(folder: Path, *suffixes: str) -> list[str]:
    """Sorted names (without suffix) of all files of these kinds: text without audio is seen, and audio without text."""
    names = {file.name.removesuffix(suffix) for suffix in suffixes for file in folder.glob(f"*{suffix}")}
    if not names:
        raise DataError(f"{folder}: no {' or '.join(suffixes)} files; is the corpus layout right?")
    return sorted(names)


def read_text(path: Path) -> str | None:
    """The text of a file on one line, whatever its line ends and byte-order mark; None where there is no file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None
    return " ".join(line.strip() for line in text.splitlines()).strip()


def _no_split(root: Path, split: str, found: list[str]) -> DataError:
    return DataError(f"{root}: no split '{split}'; splits there: {', '.join(sorted(found)) or 'none'}")
