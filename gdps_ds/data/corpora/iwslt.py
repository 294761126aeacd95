"""Layouts of the IWSLT low-resource tasks: Tunisian Arabic as LDC and as STM files, and stamped.tsv for the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from gdps_ds.data.corpora.files import (
    BACKWARDS,
    NO_AUDIO,
    WRONG_COLUMNS,
    Pair,
    RowFault,
    lines,
    one_line,
    plain,
    seconds,
    segment_id,
    text_lines,
    utterances,
)
from gdps_ds.data.corpora.places import first_file, home, index_of, named, split_file, split_folder
from gdps_ds.data.manifest import DataError, Unusable, Utterance
from gdps_ds.data.sources import is_there

TUNISIAN = Pair("aeb", "eng")
EXCLUDED = "excluded by the shared task"
OTHER_SEGMENT = "translation of another segment"
NO_TABLES = "listed, but neither transcribed nor translated"

Segment = tuple[str, float, float, str]
"""File, start and end in seconds, text."""


def read_aeb(root: Path, split: str) -> Iterator[Utterance]:
    """IWSLT dialect (LDC2022E01): ``data/{transcripts,translations}/ta/<file>.tsv`` and ``data/audio/ta/<file>.sph``.

    LDC has no splits: ``<split>.file_id.txt`` and ``exclude-utterance.txt`` of the shared task's data preparation
    (github.com/kevinduh/iwslt22-dialect) must lie in ``root``. Segments that were only transcribed are utterances without a
    translation.
    """
    data = named(home(root, "data/transcripts", "data/translations") / "data")
    if not (listing := root / f"{split}.file_id.txt").is_file():
        raise DataError(f"{listing}: no such file; copy the split's list of file ids from kevinduh/iwslt22-dialect")
    exclusions = root / "exclude-utterance.txt"
    excluded = {str(line).strip() for _, line in lines(exclusions)} if is_there(exclusions) else set()
    for name in [str(line).strip() for _, line in lines(listing)]:
        yield from _read_aeb_file(data, name, f"aeb-{split}", excluded)


def _read_aeb_file(data: Path, name: str, prefix: str, excluded: set[str]) -> Iterator[Utterance]:
    tables = {kind: data / kind / "ta" / f"{name}.tsv" for kind in ("transcripts", "translations")}
    there = {kind: path for kind, path in tables.items() if is_there(path)}
    if not there:
        yield Unusable(f"{prefix}-{name}", "", *TUNISIAN, None, reason=NO_TABLES)
        return
    audio = first_file([data / "audio" / "ta" / f"{name}.sph"])

    def parse(line: str) -> Utterance:
        start, end, text = _ldc_row(line)
        utterance = _aeb(prefix, (audio, start, end, text))
        if " ".join([name, *line.split("\t")[:2]]) in excluded:
            return Unusable(**asdict(utterance), reason=EXCLUDED)
        return utterance

    transcripts, translations = (
        list(utterances(lines(path), parse, f"{prefix}-{name}-{kind}", TUNISIAN)) if kind in there else []
        for kind, path in tables.items()
    )
    # Segments may begin at the same time, or be there twice: each translation takes one transcript of its segment.
    left: dict[str, list[str | None]] = {}
    for utterance in transcripts:
        left.setdefault(utterance.id, []).append(utterance.target_text)
    for utterance in translations:
        yield replace(utterance, source_text=left[utterance.id].pop(0) if left.get(utterance.id) else None)
    for utterance in transcripts:
        if left[utterance.id]:
            rest = replace(utterance, source_text=left[utterance.id].pop(0), target_text=None)
            # A transcript that cannot be read is one of a segment that is among the translations.
            yield replace(rest, stays=False) if isinstance(rest, Unusable) and translations else rest


def _ldc_row(line: str) -> tuple[float, float, str]:
    """``start end speaker text``; the tab before an empty text may be missing."""
    cells = line.split("\t")
    if len(cells) not in (3, 4):
        raise RowFault(WRONG_COLUMNS, stays=bool(line.strip()))
    return seconds(cells[0]), seconds(cells[1]), "".join(cells[3:])


def read_aeb_stm(root: Path, split: str) -> Iterator[Utterance]:
    """IWSLT dialect as the shared task segments it: ``asr-aeb.norm.<split>.stm``, ``st-aeb2eng.norm.<split>.stm``.

    Seven columns: path, 1, speaker, start, end, label, text; line n of the one goes with line n of the other. Blind test
    sets have no translations, and their transcripts need no text.
    """
    root, transcripts = split_file(root, split, "asr-aeb.norm.*.stm")
    rows = list(lines(transcripts))
    translations = root / f"st-aeb2eng.norm.{split}.stm"
    other = text_lines(translations, len(rows), transcripts) if is_there(translations) else [None] * len(rows)

    def parse(pair: tuple[str | RowFault, str | RowFault | None]) -> Utterance:
        audio, start, end, text = _stm_row(pair[0], root)
        utterance = replace(_aeb(f"aeb-{split}", (audio, start, end, "")), source_text=one_line(text), target_text=None)
        if pair[1] is None:
            return utterance
        *place, translation = _stm_row(pair[1], root)
        if place != [audio, start, end]:
            raise RowFault(OTHER_SEGMENT)
        return replace(utterance, target_text=one_line(translation))

    pairs = [(number, (line, translation)) for (number, line), translation in zip(rows, other, strict=True)]

    def translation_of(pair: tuple[str | RowFault, str | RowFault | None]) -> str | None:
        return plain("".join(pair[1].split("\t")[6:])) if isinstance(pair[1], str) else None

    yield from utterances(pairs, parse, f"aeb-{split}", TUNISIAN, translation_of)


def _stm_row(line: str | RowFault, root: Path) -> Segment:
    if isinstance(line, RowFault):
        raise line
    cells = line.split("\t")
    if len(cells) not in (6, 7):
        raise RowFault(WRONG_COLUMNS)
    if not cells[0].strip():
        raise RowFault(NO_AUDIO)
    return str(root / cells[0]), seconds(cells[3]), seconds(cells[4]), "".join(cells[6:])


def _aeb(prefix: str, segment: Segment) -> Utterance:
    audio, start, end, text = segment
    if end < start:
        raise RowFault(BACKWARDS)
    name = segment_id(prefix, audio, start, end)
    return Utterance(name, audio, *TUNISIAN, one_line(text), offset=start, duration=end - start)


def read_stamped(root: Path, split: str, name: str, pair: Pair, suffix: str) -> Iterator[Utterance]:
    """Irish, Marathi, Bhojpuri: ``<split>/stamped.tsv`` without a header (file, offset, duration) and ``<split>/wav/``.

    Translations are line n of ``<split>/txt/<split>.<suffix>``, or of ``test.<suffix>`` in ``test-2023``; some test sets come
    without. Some files are named with the folder ``wav/``, some without.
    """
    folder = split_folder(root, split, "stamped.tsv")
    index, text = named(folder / "stamped.tsv"), index_of(named(folder / "txt"), split, f".{suffix}")
    wav = named(folder / "wav")
    rows = list(lines(index))
    texts = text_lines(text, len(rows), index) if is_there(text) else [None] * len(rows)

    def parse(row: tuple[str | RowFault, str | RowFault | None]) -> Utterance:
        line, translation = row
        for part in row:
            if isinstance(part, RowFault):
                raise part
        cells = str(line).split("\t")
        if len(cells) != 3:
            raise RowFault(WRONG_COLUMNS)
        file, offset, duration = cells[0].strip().removeprefix("wav/"), seconds(cells[1]), seconds(cells[2])
        if not file:
            raise RowFault(NO_AUDIO)
        return Utterance(
            id=segment_id(f"{name}-{split}", file, offset, offset + duration),
            audio=first_file([wav / file, folder / file]),
            source_lang=pair.source,
            target_lang=pair.target,
            target_text=None if translation is None else one_line(str(translation)),
            offset=offset,
            duration=duration,
        )

    pairs = [(number, (line, translation)) for (number, line), translation in zip(rows, texts, strict=True)]
    yield from utterances(pairs, parse, f"{name}-{split}", pair, lambda row: plain(row[1]))
