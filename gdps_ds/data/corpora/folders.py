"""Layouts with one file for each utterance and kind of text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gdps_ds.data.corpora.files import names_in, read_text, split_folder
from gdps_ds.data.manifest import Utterance


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
