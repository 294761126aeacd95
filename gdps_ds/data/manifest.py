"""The manifest: one utterance a line as JSON, the form in which people see, edit and hand on a prepared corpus.

    {"id": "dev-0001", "audio": "wav/0001.wav", "source_lang": "bem", "target_lang": "eng", "target_text": "Good day."}

Keys are the fields of :class:`Utterance`; a key with a default may be left out. Relative audio paths start at the
manifest's folder, so that a corpus and its manifest can be moved together. Manifests are read and written as they come: of
what was seen before, only 8 bytes an utterance are kept.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gdps_ds.files import atomic_write, existing

MAX_LISTED_FAULTS = 20
MAX_AUDIO_ROOTS = 8


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of speech in one language and its translation.

    Attributes:
        id: unique in a manifest; decides the utterance's fold.
        audio: path of the audio file; empty where a test set has none, and the duration is 0.
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
    """A row of a corpus's index that cannot be used.

    Attributes:
        reason: what it is counted under.
        stays: it is an utterance all the same, which has its line among the translations of a test set.
    """

    reason: str = ""
    stays: bool = False


@dataclass(frozen=True, slots=True)
class Measured(Utterance):
    """An utterance whose audio was decoded when its manifest was made: ``duration`` is what there is.

    Attributes:
        notes: what was found then, though it was kept.
    """

    notes: tuple[str, ...] = ()


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
    """A manifest as a list; raises what :func:`stream_manifest` does."""
    return list(stream_manifest(path))


def stream_manifest(
    path: str | Path, kind: Callable[..., Utterance] = Utterance, audio_roots: Sequence[str | Path] | None = None
) -> Iterator[Utterance]:
    """The utterances of a JSON-lines manifest, audio paths absolute. All of it is checked before the first one comes.

    Args:
        kind: makes an utterance of its fields.
        audio_roots: folders, beside the manifest's own, that hold all audio, symbolic links followed; None for any folder.

    Raises:
        DataError: there is no such file.
        ManifestError: lists unknown and missing keys, wrong types, bad values, duplicate ids and audio outside of its folders
            with line numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such manifest")
    folder, faults = Path(absolute(path)).parent, _Faults()
    allowed = None if audio_roots is None else [os.path.realpath(root) for root in (folder, *audio_roots)]
    for record, found in _records(path):
        if allowed is not None and not found:
            found = _outside(folder / record["audio"], allowed)
        faults.add(record, found)
    faults.raise_for(path)
    return (kind(**record | {"audio": _placed(record["audio"], folder)}) for record, _ in _records(path))


def _placed(audio: str, folder: Path) -> str:
    return audio and os.path.normpath(folder / audio)


def _outside(audio: Path, allowed: Sequence[str]) -> list[str]:
    real = os.path.realpath(existing(str(audio)))
    if any(Path(real).is_relative_to(root) for root in allowed):
        return []
    return [f"audio {real} lies outside of {', '.join(allowed)}, which data.corpora.*.audio_roots can extend"]


def audio_roots_of(manifest: str | Path, root: str | Path) -> list[str]:
    """The ``audio_roots`` with which :func:`stream_manifest` reads a manifest that was made from the corpus in ``root``.

    They are ``root``, and where symbolic links in it lead out, unless nothing lies there.
    """
    allowed, found = [os.path.realpath(Path(manifest).parent)], []
    seen: set[Path] = set()
    for audio in (Path(utterance.audio) for utterance in stream_manifest(manifest) if utterance.audio):
        if audio.parent in seen and not audio.is_symlink():
            continue
        seen.add(audio.parent)
        if _outside(audio, allowed):
            found.append(_way_out(audio, Path(absolute(root))))
            allowed.append(found[-1])
    if len(found) > MAX_AUDIO_ROOTS and (common := os.path.commonpath(found)) != os.sep:
        found = [common]
    return [str(root) if place == os.path.realpath(root) else place for place in found]


def _way_out(audio: Path, root: Path) -> str:
    """The largest folder that is sure to be of the corpus: ``root``, where a link in it leads to, or else that of the file."""
    real, way = Path(os.path.realpath(audio)), [root]
    if audio.is_relative_to(root):
        way += reversed(audio.parents[: len(audio.parts) - len(root.parts) - 1])
        for place in map(os.path.realpath, way):
            if real.is_relative_to(place):
                return place
    return str(real.parent)


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> int:
    """Write a manifest that :func:`read_manifest` accepts; ``path`` appears whole or not at all.

    Audio below the manifest's folder is written relative to it, other audio absolute. Missing folders are made.

    Returns:
        How many utterances there were.

    Raises:
        ManifestError: an utterance that :func:`read_manifest` would refuse; nothing is written.
    """
    path = Path(path)
    folder, faults = Path(absolute(path)).parent, _Faults()
    with atomic_write(path) as file:
        for utterance in utterances:
            record = asdict(utterance)
            if faults.add(record, _faults(record)):
                sparse = {key: value for key, value in record.items() if value != _DEFAULTS[key]}
                sparse["audio"] = utterance.audio and _relative(utterance.audio, folder)
                file.write(json.dumps(sparse, ensure_ascii=False) + "\n")
        faults.raise_for(path)
    return len(faults)


class _Faults:
    """What is wrong with the lines of a manifest."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str]] = []
        self._ids = array("q")

    def __len__(self) -> int:
        """Lines so far."""
        return len(self._ids)

    def add(self, record: Mapping[str, Any], faults: Sequence[str]) -> bool:
        """Count the next line; whether it is without faults."""
        identifier = record.get("id")
        # A line without an id repeats no other's: its number is as good as random.
        self._ids.append(hash(identifier if isinstance(identifier, str) else ("line", len(self))))
        self._found += [(len(self), fault) for fault in faults]
        return not faults

    def raise_for(self, path: Path) -> None:
        """Raise what was found as a :class:`ManifestError`, in the order of the lines."""
        ids = np.array(self._ids, dtype=np.int64)
        order = np.argsort(ids, kind="stable")
        again = np.flatnonzero(np.diff(ids[order]) == 0) + 1
        self._found += [(int(order[place]) + 1, f"its id is on line {order[place - 1] + 1} already") for place in again]
        if self._found:
            raise ManifestError(path, sorted(self._found, key=lambda fault: fault[0]))


def _records(path: Path) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The record of each line, and what is wrong with it."""
    with path.open("rb") as file:
        # Bytes, so that a line that is not UTF-8 does not hide the faults of the others.
        for line in file:
            yield _parse(line.removesuffix(b"\n").removeprefix(b"\xef\xbb\xbf"))


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
        if key == "audio" and value == "" and record.get("duration") == 0.0:
            continue
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


def absolute(path: str | Path) -> str:
    """An absolute path without ``..`` but with its symbolic links."""
    return os.path.normpath(Path(path).absolute())


def _relative(audio: str, folder: Path) -> str:
    path = Path(absolute(audio))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
