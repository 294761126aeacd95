"""What the readers of all layouts share: reading text, tables and JSON lines row by row.

A row that cannot be used does not stop a corpus of half a million: it comes out as an :class:`Unusable` utterance, which
:mod:`gdps_ds.data.preparation` counts by its reason. A file that cannot be used is a :class:`DataError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from babel.core import get_global

from gdps_ds.data.corpora.places import file_of
from gdps_ds.data.manifest import DataError, Unusable, Utterance
from gdps_ds.data.sources import note

Row = TypeVar("Row")
UNDETERMINED = "und"
"""ISO 639-2 for a row that does not get as far as naming its language."""

NOT_UTF8 = "not UTF-8"
NOT_JSON = "not JSON"
WRONG_COLUMNS = "wrong number of columns"
MISSING_KEY = "key missing or of a wrong type"
NO_AUDIO = "no audio named"
BAD_TIME = "time is not a number of seconds"
BACKWARDS = "segment ends before it starts"


class Pair(NamedTuple):
    """Languages spoken and translated into, ISO 639-3."""

    source: str
    target: str


def iso_639_1(language: str) -> str:
    """The code of two letters where a language has one, as many corpora name their files; else the code itself."""
    return str(get_global("language_aliases").get(language, language))


class RowFault(Exception):
    """A row that cannot be used; the message is the reason it is counted under.

    Attributes:
        stays: there is an utterance in the row all the same; not in a blank line.
    """

    def __init__(self, reason: str, *, stays: bool = True) -> None:
        super().__init__(reason)
        self.stays = stays


def utterances(
    rows: Iterable[tuple[int, Row | RowFault]],
    parse: Callable[[Row], Utterance],
    prefix: str,
    pair: Pair | None = None,
    translation: Callable[[Row], str | None] = lambda row: None,
) -> Iterator[Utterance]:
    """``parse`` of every numbered row; where it raises :class:`RowFault`, an :class:`Unusable` named after the line.

    Args:
        translation: what a row that cannot be parsed holds of it: test sets keep such a row.
    """
    source, target = pair or (UNDETERMINED, UNDETERMINED)
    for number, row in rows:
        try:
            if isinstance(row, RowFault):
                raise row
            yield parse(row)
        except RowFault as fault:
            text = None if isinstance(row, RowFault) else translation(row)
            stays = fault.stays and pair is not None
            yield Unusable(f"{prefix}-line-{number}", "", source, target, text, reason=str(fault), stays=stays)


def read_text(path: Path) -> str | None:
    """The text of a file on one line, whatever its line ends and byte-order mark; None where there is no file."""
    note(path := file_of(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None
    return one_line(text)


def plain(text: str | RowFault | None) -> str | None:
    """A line of a text where it can be read."""
    return one_line(text) if isinstance(text, str) else None


def one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines()).strip()


def lines(path: Path) -> Iterator[tuple[int, str | RowFault]]:
    """The lines of an index, numbered from 1, without line ends and byte-order mark.

    Read as bytes, so that a line that is not UTF-8 costs only itself, and so that only a line feed ends a line.

    Raises:
        DataError: the file is missing, empty, or a Git-LFS pointer.
    """
    note(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.startswith(b"version https://git-lfs"):
                    raise DataError(f"{path}: a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`")
            try:
                yield number, line.rstrip(b"\r\n").decode("utf-8")
            except UnicodeDecodeError:
                yield number, RowFault(NOT_UTF8)


def text_lines(path: Path, count: int, index: Path) -> list[str | RowFault]:
    """The lines of a text that is aligned with the ``count`` rows of ``index``.

    Raises:
        DataError: there are more or fewer: which belong together is unknown.
    """
    texts = [text for _, text in lines(path)]
    while len(texts) > count and texts[-1] == "":
        texts.pop()
    if len(texts) != count:
        raise DataError(f"{path}: {len(texts)} lines, but {index} has {count} segments")
    return texts


def table(path: Path, *required: str) -> Iterator[tuple[int, dict[str, str] | RowFault]]:
    """Rows of a tab-separated file by the names of its header; quotes mean nothing, or one would swallow rows.

    Raises:
        DataError: the header lacks a column of ``required``.
    """
    rows = lines(path)
    _, header = next(rows)
    names = [] if isinstance(header, RowFault) else [name.strip() for name in header.split("\t")]
    if missing := [name for name in required if name not in names]:
        raise DataError(f"{path}: the header lacks {', '.join(missing)}; it has {', '.join(names)[:200] or 'no text'}")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: the header names a column twice: {', '.join(names)[:200]}")
    for number, line in rows:
        cells = line if isinstance(line, RowFault) else line.split("\t")
        if isinstance(cells, list) and len(cells) != len(names):
            cells = RowFault(WRONG_COLUMNS, stays=any(map(str.strip, cells)))
        yield number, cells if isinstance(cells, RowFault) else dict(zip(names, map(str.strip, cells), strict=True))


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowFault]]:
    """Objects of a JSON-lines file, numbered by the line each begins on."""
    for number, text in _whole_objects(lines(path)):
        yield number, text if isinstance(text, RowFault) else _json_object(text)


def _whole_objects(rows: Iterable[tuple[int, str | RowFault]]) -> Iterator[tuple[int, str | RowFault]]:
    """Join the lines of an object whose strings hold raw line feeds: it ends in a brace, and the next begins with one."""
    held: tuple[int, str] | None = None
    for number, line in rows:
        if held and isinstance(line, str) and not held[1].endswith("}") and not line.startswith("{"):
            held = held[0], f"{held[1]}\n{line}"
            continue
        if held:
            yield held
        held = None if isinstance(line, RowFault) else (number, line)
        if isinstance(line, RowFault):
            yield number, line
    if held:
        yield held


def _json_object(text: str) -> dict[str, Any] | RowFault:
    try:
        record = json.loads(text, strict=False)
    except json.JSONDecodeError:
        return RowFault(NOT_JSON, stays=bool(text.strip()))
    return record if isinstance(record, dict) else RowFault(NOT_JSON)


def text_of(record: Mapping[str, Any], key: str) -> str | None:
    """A text of a record on one line, None where it is absent or null; other types are a :class:`RowFault`."""
    value = record.get(key)
    if not isinstance(value, str | None):
        raise RowFault(MISSING_KEY)
    return None if value is None else one_line(value)


def name_of(record: Mapping[str, Any], key: str, fault: str = MISSING_KEY) -> str:
    """A text of a record that must not be empty, or else ``fault``."""
    if text := text_of(record, key):
        return text
    raise RowFault(fault)


def seconds(value: object) -> float:
    """A time stamp as text or number, finite and not negative."""
    try:
        time = float(str(value))
    except ValueError:
        raise RowFault(BAD_TIME) from None
    if not math.isfinite(time) or time < 0.0:
        raise RowFault(BAD_TIME)
    return time


def segment_id(prefix: str, audio: str, start: float, end: float) -> str:
    """As Kaldi names segments: file and times in milliseconds, so that a repeated segment has the same id."""
    return f"{prefix}-{Path(audio).stem}-{round(start * 1000):07d}-{round(end * 1000):07d}"
