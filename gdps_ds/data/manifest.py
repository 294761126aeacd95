"""The manifest: one utterance a line as JSON, the only form in which corpora reach training, mining and decoding.

    {"id": "dev-0001", "audio": "wav/0001.wav", "source_lang": "bem", "target_lang": "eng", "target_text": "Good day."}

Keys are the fields of :class:`Utterance`; a key with a default may be left out. Relative audio paths start at the
manifest's folder, so that a corpus and its manifest can be moved together.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

MAX_LISTED_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of speech in one language and its translation.

    Attributes:
        id: unique in a manifest; decides the utterance's fold.
        audio: path of the audio file.
        source_lang: language spoken, ISO 639-3.
        target_lang: language of the translation, ISO 639-3.
        target_text: the translation, or None where a test set comes without references.
        source_text: the transcript, where there is one.
        offset: start of the utterance in the file, in seconds.
        duration: length in seconds; None is everything from ``offset`` to the end.
    """

    id: str
    audio: str
    source_lang: str
    target_lang: str
    target_text: str | None
    source_text: str | None = None
    offset: float = 0.0
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class Unusable(Utterance):
    """A row of a corpus's index that is no utterance; ``reason`` is what it is counted under."""

    reason: str = ""


_DEFAULTS = {field.name: field.default for field in fields(Utterance)}
_NAMES = ("id", "audio", "source_lang", "target_lang")
_TEXTS = ("target_text", "source_text")


class DataError(ValueError):
    """Data that a run cannot use; the message says which file, folder or option to change."""


class ManifestError(DataError):
    """A manifest with faults; ``faults`` holds ``(line number, fault)`` pairs, all of them."""

    def __init__(self, path: Path, faults: Sequence[tuple[int, str]]) -> None:
        super().__init__(path, faults)
        self.path, self.faults = path, tuple(faults)

    def __str__(self) -> str:
        listed = [f"  line {line}: {fault}" for line, fault in self.faults[:MAX_LISTED_FAULTS]]
        hidden = len(self.faults) - len(listed)
        listed += [f"  ... and {hidden} more"] if hidden else []
        return "\n".join([f"{self.path}: {len(self.faults)} fault(s)", *listed])


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a JSON-lines manifest; audio paths come back absolute.

    Raises:
        DataError: there is no such file.
        ManifestError: lists unknown and missing keys, wrong types, bad values and duplicate ids with line numbers.
    """
    path = Path(path)
    folder = _folder_of(path)
    records: list[dict[str, Any]] = []
    faults: list[tuple[int, str]] = []
    first_line: dict[str, int] = {}
    try:
        # Bytes, so that a line that is not UTF-8 does not hide the faults of the others.
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest") from None
    for number, line in enumerate(lines if lines != [b""] else [], start=1):
        record, found = _parse(line)
        found += _duplicate(record, number, first_line)
        faults += [(number, fault) for fault in found]
        records.append(record)
    if faults:
        raise ManifestError(path, faults)
    return [Utterance(**record | {"audio": os.path.normpath(folder / record["audio"])}) for record in records]


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest that :func:`read_manifest` accepts; ``path`` appears whole or not at all.

    Audio below the manifest's folder is written relative to it, other audio absolute. Missing folders are made.

    Raises:
        ManifestError: an utterance that :func:`read_manifest` would refuse; nothing is written.
    """
    path = Path(path)
    folder = _folder_of(path)
    records = [asdict(utterance) for utterance in utterances]
    first_line: dict[str, int] = {}
    faults = [
        (number, fault)
        for number, record in enumerate(records, start=1)
        for fault in [*_faults(record), *_duplicate(record, number, first_line)]
    ]
    if faults:
        raise ManifestError(path, faults)
    with atomic_write(path) as file:
        for record in records:
            record["audio"] = _relative(record["audio"], folder)
            sparse = {key: value for key, value in record.items() if value != _DEFAULTS[key]}
            file.write(json.dumps(sparse, ensure_ascii=False) + "\n")


@contextmanager
def atomic_write(path: Path) -> Iterator[TextIO]:
    """Open a text file that takes the place of ``path`` only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _parse(line: bytes) -> tuple[dict[str, Any], list[str]]:
    """One line -> its record, and what is wrong with it."""
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        return {}, [f"not UTF-8 ({error.reason} at byte {error.start})"]
    except json.JSONDecodeError as error:
        return {}, [f"not JSON: {error.msg} at column {error.colno}" if line.strip() else "empty line"]
    except KeyError as error:
        return {}, [f"key '{error.args[0]}' twice"]
    if not isinstance(record, dict):
        return {}, [f"must be an object, found {type(record).__name__}"]
    return record, _faults(record)


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise KeyError(key)
        record[key] = value
    return record


def _faults(record: Mapping[str, Any]) -> list[str]:
    faults = [f"unknown key '{key}'; known keys: {', '.join(_DEFAULTS)}" for key in record if key not in _DEFAULTS]
    faults += [f"missing key '{key}'" for key, default in _DEFAULTS.items() if default is MISSING and key not in record]
    for key, value in record.items():
        if key in _NAMES and not (isinstance(value, str) and value.strip()):
            faults.append(f"{key} must be a non-empty string, found {value!r}")
        elif key in _TEXTS and not isinstance(value, str | None):
            faults.append(f"{key} must be a string or null, found {value!r}")
        elif key == "offset" and not _is_seconds(value):
            faults.append(f"offset must be seconds >= 0, found {value!r}")
        elif key == "duration" and not (value is None or _is_seconds(value)):
            faults.append(f"duration must be seconds >= 0 or null, found {value!r}")
    return faults


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _duplicate(record: Mapping[str, Any], number: int, first_line: dict[str, int]) -> list[str]:
    """Note the record's id in ``first_line``; a fault where another line has it."""
    identifier = record.get("id")
    if not isinstance(identifier, str) or first_line.setdefault(identifier, number) == number:
        return []
    return [f"id '{identifier}' is already on line {first_line[identifier]}"]


def _folder_of(path: Path) -> Path:
    """The absolute folder of a file, without ``..`` but with its symbolic links."""
    return Path(os.path.normpath(path.absolute().parent))


def _relative(audio: str, folder: Path) -> str:
    absolute = Path(os.path.normpath(Path(audio).absolute()))
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)
