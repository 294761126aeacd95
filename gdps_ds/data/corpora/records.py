"""Layouts with one file of JSON lines a split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gdps_ds.data.corpora.files import (
    MISSING_KEY,
    NO_AUDIO,
    Pair,
    RowFault,
    json_lines,
    name_of,
    text_of,
    utterances,
)
from gdps_ds.data.corpora.places import first_file, no_split, split_file
from gdps_ds.data.manifest import DataError, Measured, Utterance, stream_manifest
from gdps_ds.data.preparation_report import cell
from gdps_ds.data.sources import note
from gdps_ds.files import digest_of

BEMBA = Pair("bem", "eng")
PLACEHOLDER = "placeholder text"
PLACEHOLDERS = frozenset({".", "NOT PLAYING", "NOT FOUND"})
"""What BIG-C's annotators wrote where there was nothing to transcribe or to translate."""


def read_manifest_folder(root: Path, split: str, audio_roots: Sequence[str | Path] | None = None) -> Iterator[Utterance]:
    """``<split>.jsonl`` as :mod:`gdps_ds.data.manifest` defines it, with audio in ``root`` and ``audio_roots``, or anywhere.

    Where it still is as ``launchers/prepare.py`` wrote it, which its report tells, its audio need not be decoded again. It is
    never looked for below ``root``: another manifest there may be a copy, or another corpus.
    """
    path = root / f"{split}.jsonl"
    if not path.is_file():
        raise no_split(root, split, [file.stem for file in root.glob("*.jsonl")])
    yield from manifest_rows(path, audio_roots)


def manifest_rows(path: Path, audio_roots: Sequence[str | Path] | None = None) -> Iterator[Utterance]:
    """The utterances of a manifest, :class:`Measured` where it and its notes are as ``launchers/prepare.py`` wrote them.

    Raises:
        DataError: what :func:`stream_manifest` raises; or the manifest is as it was written, but its notes are not.
    """
    # The report is not noted: it says what the audio, which is, was found to be.
    report, notes = (path.with_name(f"{path.stem}{suffix}") for suffix in (".report.json", ".notes.tsv"))
    note(path)
    note(notes)
    held = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    if not path.is_file() or "notes" not in held or held.get("manifest") != digest_of(path):
        return stream_manifest(path, audio_roots=audio_roots)
    # Decoding would not find all of them again: durations are of what is left of truncated files.
    if not notes.is_file() or held["notes"] != digest_of(notes):
        raise DataError(f"{notes} is not as it was written with {path}; put it back, or run launchers/prepare.py again")
    found: dict[str, tuple[str, ...]] = {}
    for line in notes.read_text(encoding="utf-8").splitlines()[1:]:
        name, _, reason, _ = line.split("\t")
        found[name] = (*found.get(name, ()), reason)

    def measured(**record: Any) -> Utterance:
        return Measured(**record, notes=found.get(cell(record["id"]), ()))

    return stream_manifest(path, measured if found else Measured, audio_roots)


def read_bigc(root: Path, split: str) -> Iterator[Utterance]:
    """BIG-C: ``data/bem/splits/<split>.jsonl`` (audio_id, bem_transcription, en_translation), one file a turn.

    Audio lies in ``audio``, ``data/audio`` or ``data/bem/audio``. Ids and files end in ``.wav``, in ``.wav.wav`` or in
    neither, independently of each other.
    """
    root, index = split_file(root, split, "data/bem/splits/*.jsonl", "*.jsonl")
    folders = [root / "audio", root / "data" / "audio", root / "data" / "bem" / "audio"]

    def parse(record: dict[str, Any]) -> Utterance:
        stem = name_of(record, "audio_id", NO_AUDIO)
        while stem.endswith(".wav"):
            stem = stem.removesuffix(".wav")
        if not stem:
            raise RowFault(NO_AUDIO)
        audio = first_file([folder / f"{stem}{suffix}" for suffix in (".wav", ".wav.wav", "") for folder in folders])
        target, source = text_of(record, "en_translation"), text_of(record, "bem_transcription")
        if not PLACEHOLDERS.isdisjoint({target, source}):
            raise RowFault(PLACEHOLDER, stays=False)
        return Utterance(f"bigc-{split}-{stem}", audio, *BEMBA, target, source)

    yield from utterances(json_lines(index), parse, f"bigc-{split}", BEMBA)


def read_seamless(root: Path, split: str) -> Iterator[Utterance]:
    """seamless_communication's manifests: ``<split>_manifest.json`` (or ``.jsonl``, ``.json``), which name the languages.

    Lines are ``{"source": {"id", "lang", "text", "audio_local_path"}, "target": {"lang", "text"}}``. FLEURS gives all readings
    of a sentence one id, so that the file becomes part of ours.
    """
    root, index = split_file(root, split, "*_manifest.json", "*_manifest.jsonl", "*.jsonl", "*.json")

    def parse(record: dict[str, Any]) -> Utterance:
        source, target = _part(record, "source"), _part(record, "target")
        audio = name_of(source, "audio_local_path", NO_AUDIO)
        pair = Pair(name_of(source, "lang"), name_of(target, "lang"))
        name = f"seamless-{pair.source}-{pair.target}-{split}-{source.get('id')}-{Path(audio).stem}"
        return Utterance(name, first_file([root / audio]), *pair, text_of(target, "text"), text_of(source, "text"))

    yield from utterances(json_lines(index), parse, f"seamless-{split}")


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = record.get(key)
    if not isinstance(part, dict):
        raise RowFault(MISSING_KEY)
    return part
