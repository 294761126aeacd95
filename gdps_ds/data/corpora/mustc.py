"""MuST-C's layout: segments of long recordings in a YAML list, and texts aligned with it line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gdps_ds.data.corpora.files import (
    MISSING_KEY,
    NO_AUDIO,
    Pair,
    RowFault,
    iso_639_1,
    lines,
    name_of,
    one_line,
    plain,
    seconds,
    segment_id,
    text_lines,
    utterances,
)
from gdps_ds.data.corpora.places import first_file, index_of, named, split_folder
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.sources import is_there


def read_mustc(root: Path, split: str, pair: Pair, name: str = "mustc") -> Iterator[Utterance]:
    """``<split>/txt/<split>.yaml`` (a list of wav, offset, duration), ``<split>/txt/<split>.<language>``, ``<split>/wav/``.

    ``root`` is the folder of the splits, or a folder above, such as that of all pairs. Texts end in ISO 639-3 codes, or in
    ISO 639-1 codes where those exist; both texts may be missing.
    """
    short, long = ("-".join(codes) for codes in (map(iso_639_1, pair), pair))
    folder = split_folder(root, split, "txt/*.yaml", prefer=(short, long, long.replace("-", "_")))
    index = index_of(named(folder / "txt"), split, ".yaml")
    entries = _entries(index)
    source, target = (_texts(index, split, language, len(entries)) for language in pair)
    wav = named(folder / "wav")

    def parse(row: tuple[Any, str | RowFault | None, str | RowFault | None]) -> Utterance:
        entry, transcript, translation = row
        for part in row:
            if isinstance(part, RowFault):
                raise part
        if not isinstance(entry, dict) or not {"offset", "duration"} <= entry.keys():
            raise RowFault(MISSING_KEY)
        file, offset, duration = name_of(entry, "wav", NO_AUDIO), seconds(entry["offset"]), seconds(entry["duration"])
        return Utterance(
            id=segment_id(f"{name}-{pair.source}-{pair.target}-{split}", file, offset, offset + duration),
            audio=first_file([wav / file]),
            source_lang=pair.source,
            target_lang=pair.target,
            target_text=None if translation is None else one_line(str(translation)),
            source_text=None if transcript is None else one_line(str(transcript)),
            offset=offset,
            duration=duration,
        )

    rows = enumerate(zip(entries, source, target, strict=True), start=1)
    yield from utterances(rows, parse, f"{name}-{pair.source}-{pair.target}-{split}", pair, lambda row: plain(row[2]))


def _entries(path: Path) -> list[Any]:
    next(lines(path))  # says what is wrong with a missing, empty or pointer file
    try:
        # The parser in C, where PyYAML was built with it, is ten times faster: MuST-C has a quarter of a million segments.
        entries = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: must be a list of segments, found {type(entries).__name__}")
    return entries


def _texts(index: Path, split: str, language: str, count: int) -> list[str | RowFault] | list[None]:
    for suffix in (language, iso_639_1(language)):
        if is_there(path := index_of(index.parent, split, f".{suffix}")):
            return text_lines(path, count, index)
    return [None] * count
