"""Layouts with one tab-separated table a split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gdps_ds.data.corpora.files import NO_AUDIO, Pair, first_file, iso_639_1, name_of, split_file, table, text_of, utterances
from gdps_ds.data.manifest import Utterance

ESTONIAN = Pair("est", "eng")


def read_taltech(root: Path, split: str) -> Iterator[Utterance]:
    """TalTech Estonian: ``<split>.tsv`` with the columns audio, Estonian, English, and ``audio/<recording>/*.flac``."""

    def parse(row: dict[str, str]) -> Utterance:
        name = name_of(row, "audio", NO_AUDIO)
        audio = first_file([root / name, root / "audio" / name])
        english, estonian = text_of(row, "English"), text_of(row, "Estonian")
        return Utterance(f"taltech-{split}-{_stem(name)}", audio, *ESTONIAN, english, estonian)

    rows = table(split_file(root, split, "*.tsv"), "audio", "Estonian")
    yield from utterances(rows, parse, f"taltech-{split}", ESTONIAN)


def read_covost2(root: Path, split: str, pair: Pair) -> Iterator[Utterance]:
    """CoVoST 2: ``covost_v2.<pair>.<split>.tsv`` or ``<split>.tsv`` (path, sentence, translation) and ``clips/*.mp3``.

    In the name the pair is written as Common Voice does, such as ``fr_en`` or ``sv-SE_en``.
    """
    prefix = f"covost2-{pair.source}-{pair.target}-{split}"

    def parse(row: dict[str, str]) -> Utterance:
        name = name_of(row, "path", NO_AUDIO)
        clips = [root / "clips" / name, root / "clips" / f"{name}.mp3", root / name]
        # The tables are written with a backslash before each quote.
        source, target = (text and text.replace('\\"', '"') for text in (text_of(row, "sentence"), text_of(row, "translation")))
        return Utterance(f"{prefix}-{_stem(name)}", first_file(clips), *pair, target, source)

    tables = sorted(root.glob(f"covost_v2.{iso_639_1(pair.source)}*_{iso_639_1(pair.target)}*.{split}.tsv"))
    path = tables[0] if tables else split_file(root, split, "*.tsv")
    yield from utterances(table(path, "path", "sentence"), parse, prefix, pair)


def read_gmu(root: Path, split: str, pair: Pair) -> Iterator[Utterance]:
    """GMU's manifests: ``<split>.tsv`` with the columns audio_path, tgt_text and perhaps src_text."""
    prefix = f"gmu-{pair.source}-{pair.target}-{split}"

    def parse(row: dict[str, str]) -> Utterance:
        name = name_of(row, "audio_path", NO_AUDIO)
        return Utterance(f"{prefix}-{_stem(name)}", str(root / name), *pair, text_of(row, "tgt_text"), text_of(row, "src_text"))

    yield from utterances(table(split_file(root, split, "*.tsv"), "audio_path"), parse, prefix, pair)


def _stem(name: str) -> str:
    """The path without its suffix as part of an id: files of one name in two folders differ."""
    return name.removesuffix(Path(name).suffix).strip("/").replace("/", "-")
