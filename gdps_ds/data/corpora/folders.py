"""Layouts with one file for each utterance and kind of text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gdps_ds.data.corpora.files import Pair, iso_639_1, read_text
from gdps_ds.data.corpora.places import file_of, named, names_in, split_folder
from gdps_ds.data.manifest import Utterance

MBOSHI = Pair("mdw", "fra")


def read_mboshi(root: Path, split: str, pair: Pair = MBOSHI) -> Iterator[Utterance]:
    """Mboshi: ``<split>/<name>.wav``, ``.mb`` (Mboshi) and ``.fr`` (French), one utterance a name.

    Translations into other languages lie beside the French ones as ``.en`` or ``.eng``, and so on.
    """
    suffixes = list(dict.fromkeys((f".{iso_639_1(pair.target)}", f".{pair.target}")))
    folder = split_folder(root, split, "*.wav", *(f"*{suffix}" for suffix in suffixes))
    prefix = f"mboshi-{split}" if pair == MBOSHI else f"mboshi-{pair.target}-{split}"
    for name in names_in(folder, ".wav", *suffixes):
        texts = [read_text(folder / f"{name}{suffix}") for suffix in suffixes]
        yield Utterance(
            id=f"{prefix}-{name}",
            audio=str(file_of(folder / f"{name}.wav")),
            source_lang=pair.source,
            target_lang=pair.target,
            target_text=next((text for text in texts if text is not None), None),
            source_text=read_text(folder / f"{name}.mb"),
        )


def read_griko_italian(root: Path, split: str) -> Iterator[Utterance]:
    """Griko-Italian: ``<split>/wav/<n>.wav``, ``<split>/gr/<n>.words`` (Griko) and ``<split>/it/<n>.words``.

    The folders of ``all`` are named ``wavs``, ``transcriptions`` and ``translations``.
    """
    folder = split_folder(root, split, "wav/*.wav", "wavs/*.wav", "it/*.words", "translations/*.words")
    wav, gr, it = (_either(folder, *kinds) for kinds in (("wav", "wavs"), ("gr", "transcriptions"), ("it", "translations")))
    names = {*names_in(wav, ".wav"), *names_in(it, ".words")}
    for name in sorted(names, key=lambda name: (len(name), name)):
        yield Utterance(
            id=f"griko-{split}-{name}",
            audio=str(file_of(wav / f"{name}.wav")),
            source_lang="grk",
            target_lang="ita",
            target_text=read_text(it / f"{name}.words"),
            source_text=read_text(gr / f"{name}.words"),
        )


def _either(folder: Path, *kinds: str) -> Path:
    found = [named(folder / kind) for kind in kinds]
    return next((path for path in found if path.is_dir()), found[0])
