"""Layouts with one tab-separated table a split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gdps_ds.data.corpora.files import (
    NO_AUDIO,
    Pair,
    RowFault,
    iso_639_1,
    name_of,
    table,
    text_of,
    utterances,
)
from gdps_ds.data.corpora.places import first_file, home, no_split, split_file
from gdps_ds.data.manifest import Utterance
from gdps_ds.data.sources import is_there, note

ESTONIAN = Pair("est", "eng")


def read_taltech(root: Path, split: str) -> Iterator[Utterance]:
    """TalTech Estonian: ``<split>.tsv`` with the columns audio, Estonian, English, and ``audio/<recording>/*.flac``."""
    root, index = split_file(root, split, "*.tsv")

    def parse(row: dict[str, str]) -> Utterance:
        name = name_of(row, "audio", NO_AUDIO)
        audio = first_file([root / name, root / "audio" / name])
        english, estonian = text_of(row, "English"), text_of(row, "Estonian")
        return Utterance(f"taltech-{split}-{_stem(name)}", audio, *ESTONIAN, english, estonian)

    yield from utterances(table(index, "audio", "Estonian"), parse, f"taltech-{split}", ESTONIAN)


def read_covost2(root: Path, split: str, pair: Pair) -> Iterator[Utterance]:
    """CoVoST 2 on top of Common Voice: ``clips/*.mp3``, and one of three kinds of table.

    ``covost_v2.<pair>.tsv`` (path, translation, split) is what is distributed, and Common Voice's ``validated.tsv`` (path,
    sentence) holds its transcripts; ``covost_v2.<pair>.<split>.tsv`` or ``<split>.tsv`` (path, sentence, translation) is what
    the authors' script makes of the two. In names the pair is written as Common Voice does, such as ``fr_en`` or
    ``sv-SE_en``. Clips that Common Voice has withdrawn since are missing files.
    """
    prefix = f"covost2-{pair.source}-{pair.target}-{split}"
    # Common Voice keeps a language a folder; CoVoST's table may lie in it or beside it.
    clips = home(root, "clips", prefer=(iso_639_1(pair.source), pair.source))
    name = f"covost_v2.{iso_639_1(pair.source)}*_{iso_639_1(pair.target)}*"

    def parse(row: dict[str, str]) -> Utterance:
        file = name_of(row, "path", NO_AUDIO)
        candidates = [clips / "clips" / file, clips / "clips" / f"{file}.mp3", clips / file]
        source, target = (_unescaped(text_of(row, column)) for column in ("sentence", "translation"))
        return Utterance(f"{prefix}-{_stem(file)}", first_file(candidates), *pair, target, source)

    for folder in (root, clips):
        note(folder, f"{name}.tsv")
    tables = [path for folder in dict.fromkeys((root, clips)) for path in sorted(folder.glob(f"{name}.tsv"))]
    # Common Voice's own train.tsv, which has no translations, may lie beside CoVoST's table.
    if joined := [path for path in tables if path.name.endswith(f".{split}.tsv")]:
        rows = table(joined[0], "path", "sentence")
    elif distributed := [path for path in tables if path.name.count(".") == 2]:
        rows = _covost2_rows(distributed[0], split, clips / "validated.tsv")
    else:
        rows = table(split_file(root, split, "*.tsv")[1], "path", "sentence")
    yield from utterances(rows, parse, prefix, pair)


def _covost2_rows(path: Path, split: str, validated: Path) -> Iterator[tuple[int, dict[str, str] | RowFault]]:
    """One split's rows of a distributed table with their transcripts, and the rows that cannot be read."""
    found, splits = [], set()
    for number, row in table(path, "path", "translation", "split"):
        # What CoVoST 2 adds to Common Voice's training set is named train_covost.
        name = split if isinstance(row, RowFault) else row["split"].removesuffix("_covost")
        splits.add(name)
        if name == split:
            found.append((number, row))
    if not found:
        raise no_split(path, split, splits)
    wanted = {row["path"] for _, row in found if not isinstance(row, RowFault)}
    sentences: dict[str, str] = {}
    if is_there(validated):
        clips = (clip for _, clip in table(validated, "path", "sentence") if not isinstance(clip, RowFault))
        sentences = {clip["path"]: clip["sentence"] for clip in clips if clip["path"] in wanted}
    for number, row in found:
        if not isinstance(row, RowFault) and (sentence := sentences.get(row["path"])):
            row = row | {"sentence": sentence}
        yield number, row


def _unescaped(text: str | None) -> str | None:
    """The tables are written with a backslash before each quote."""
    return text and text.replace('\\"', '"')


def read_gmu(root: Path, split: str, pair: Pair) -> Iterator[Utterance]:
    """GMU's manifests: ``<split>.tsv`` with the columns audio_path, tgt_text and perhaps src_text."""
    prefix = f"gmu-{pair.source}-{pair.target}-{split}"
    root, index = split_file(root, split, "*.tsv")

    def parse(row: dict[str, str]) -> Utterance:
        name = name_of(row, "audio_path", NO_AUDIO)
        audio = first_file([root / name])
        return Utterance(f"{prefix}-{_stem(name)}", audio, *pair, text_of(row, "tgt_text"), text_of(row, "src_text"))

    yield from utterances(table(index, "audio_path"), parse, prefix, pair)


def _stem(name: str) -> str:
    """The path without its suffix as part of an id: files of one name in two folders differ."""
    return name.removesuffix(Path(name).suffix).strip("/").replace("/", "-")
