"""Systems that are scored: translations from files, and the check that all of them translate the same utterances."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from gdps_ds.config import DecodeConfig
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.evaluation.decoding import Translation
from gdps_ds.evaluation.metrics import pairs_of
from gdps_ds.files import atomic_write

TEXTS = ("id", "source_lang", "target_lang", "hypothesis")


@dataclass(frozen=True)
class System:
    """A name and its translations of a test set.

    ``decoding`` holds the settings that they were made with (:func:`decoding_of`); None where that is not known.
    """

    name: str
    translations: tuple[Translation, ...]
    decoding: Mapping[str, Any] | None = None


DECODING = ("beams", "max_new_tokens", "length_penalty", "repetition_penalty", "no_repeat_ngram_size", "max_seconds")
"""Settings of section ``decode`` that translations depend on."""


def decoding_of(settings: DecodeConfig) -> dict[str, Any]:
    """What is kept beside translations of how they were made; ``settings`` know the length of pieces."""
    return settings.model_dump(include=set(DECODING)) | {"max_seconds": settings.piece_seconds}


def read_system(name: str, path: Path) -> System:
    """Translations with the settings that lie beside them, if they do; raises as :func:`read_translations`."""
    beside = _decoding_file(path)
    if not beside.is_file():
        return System(name, tuple(read_translations(path)))
    try:
        decoding = json.loads(beside.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{beside}: not JSON ({error})") from None
    if not isinstance(decoding, dict):
        raise DataError(f"{beside}: must be an object, found {type(decoding).__name__}")
    odd = [key for key in DECODING if key in decoding and type(decoding[key]) not in (int, float)]
    if odd:
        raise DataError(f"{beside}: {odd[0]} must be a number, found {decoding[odd[0]]!r}")
    return System(name, tuple(read_translations(path)), decoding)


def _decoding_file(path: Path) -> Path:
    return path.with_suffix(".decoding.json")


def read_translations(path: Path) -> list[Translation]:
    """Read JSON lines with the fields of :class:`Translation`; other keys are left alone.

    Raises:
        DataError: names file and line of what is no translation, such as one whose hypothesis is null.
    """
    rows = [_translation(f"{path}, line {number}", line) for number, line in enumerate(read_lines(path), start=1)]
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(each for place, each in enumerate(ids) if each in ids[:place])
        raise DataError(f"{path}: two translations of utterance {twice}")
    return rows


def write_translations(path: Path, translations: Iterable[Translation], settings: DecodeConfig | None = None) -> None:
    """Write what :func:`read_translations` reads; ``path`` appears whole or not at all.

    ``settings``, where they are known, go into ``<name>.decoding.json`` beside it: before it, so that translations never lie
    beside the settings of older ones.
    """
    path.unlink(missing_ok=True)
    _decoding_file(path).unlink(missing_ok=True)
    if settings is not None:
        with atomic_write(_decoding_file(path)) as file:
            file.write(json.dumps(decoding_of(settings), indent=2) + "\n")
    with atomic_write(path) as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in translations)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Only a line feed ends a line: Unicode's other separators occur within translations.

    A byte-order mark is no part of a line: one stands at the start of files that Windows writes, and within files that were
    joined of several.

    Raises:
        DataError: no such file, it is empty, or it is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if not text:
        raise DataError(f"{path}: the file is empty")
    return [line.removeprefix("\ufeff").removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def translations_of_lines(path: Path, utterances: Sequence[Utterance]) -> list[Translation]:
    """A file with a translation a line, in the order of ``utterances``.

    Raises:
        DataError: not as many lines as utterances.
    """
    lines = read_lines(path)
    if len(lines) != len(utterances):
        raise DataError(f"{path} has {len(lines)} lines, but the test set has {len(utterances)} utterances")
    return [
        Translation(each.id, each.source_lang, each.target_lang, line, each.target_text)
        for each, line in zip(utterances, lines, strict=True)
    ]


def utterances_of_references(path: Path, language: str) -> list[Utterance]:
    """A test set that is known by its references alone, one a line: ids are line numbers, and there is no audio.

    ``language`` is the source language, or a pair such as ``que-spa``.
    """
    source, _, target = language.partition("-")
    return [
        Utterance(id=str(number), audio="", source_lang=source, target_lang=target or "und", target_text=line)
        for number, line in enumerate(read_lines(path), start=1)
    ]


def aligned(systems: Sequence[System]) -> list[System]:
    """The systems with their translations in the order of the first one's.

    Raises:
        DataError: names repeat, utterances differ, or the same utterance has different references.
    """
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise DataError(f"two systems have the same name ({', '.join(names)}); write NAME=... before one of them")
    first = systems[0]
    reference = {row.id: (row.source_lang, row.target_lang, row.reference) for row in first.translations}
    for system in systems[1:]:
        _check_ids(first.name, set(reference), system)
        odd = [row.id for row in system.translations if (row.source_lang, row.target_lang, row.reference) != reference[row.id]]
        if odd:
            raise DataError(
                f"{first.name} and {system.name} have different languages or references for {len(odd)} utterances, such as "
                f"{odd[0]}; --manifest gives all systems those of one test set"
            )
    place = {row.id: index for index, row in enumerate(first.translations)}
    return [replace(each, translations=tuple(sorted(each.translations, key=lambda row: place[row.id]))) for each in systems]


def with_references(translations: Iterable[Translation], utterances: Sequence[Utterance], name: str) -> list[Translation]:
    """The translations with languages and references of a manifest, in its order.

    Raises:
        DataError: they are not of the manifest's utterances.
    """
    by_id = {row.id: row for row in translations}
    _check_ids("the manifest", {each.id for each in utterances}, System(name, tuple(by_id.values())))
    return [
        replace(by_id[each.id], source_lang=each.source_lang, target_lang=each.target_lang, reference=each.target_text)
        for each in utterances
    ]


def translation_notes(translations: Sequence[Translation]) -> list[str]:
    """What has to be told of translations beside their scores, a line each, by pair of languages."""
    lines = []
    for name, pair in pairs_of(translations).items():
        rows = [translations[index] for index in pair.indices]
        counts = {
            "utterances could not be translated (no usable audio); their lines are empty": sum(not row.pieces for row in rows),
            "translations were cut at decode.max_new_tokens": sum(row.cut for row in rows),
            "utterances are longer than decode.max_seconds and were translated in pieces": sum(row.pieces > 1 for row in rows),
        }
        lines += [f"{name}: {count} of {len(rows)} {what}" for what, count in counts.items() if count]
    return lines


def decoding_notes(systems: Sequence[System], settings: DecodeConfig) -> list[str]:
    """Lines that tell where systems were decoded otherwise than is asked for, or than each other.

    Asked for is what ``settings`` were given, by a run or a command line; their defaults are nobody's wish.
    """
    wanted = settings.model_dump(include=set(DECODING) & settings.model_fields_set, exclude_none=True)
    known = {each.name: each.decoding for each in systems if each.decoding is not None}
    lines = []
    for name, found in known.items():
        other = [
            f"decode.{key} {_value(found, key)} instead of {wanted[key]}" for key in wanted if found.get(key) != wanted[key]
        ]
        lines += [f"{name} was decoded with other settings: {', '.join(other)}"] if other else []
    for key in [key for key in DECODING if key not in wanted]:
        names: dict[Any, list[str]] = {}
        for name, found in known.items():
            names.setdefault(_value(found, key), []).append(name)
        each = ", ".join(f"{value} ({', '.join(those)})" for value, those in names.items())
        lines += [f"systems were decoded with different settings: decode.{key} {each}"] if len(names) > 1 else []
    unknown = [each.name for each in systems if each.decoding is None]
    if unknown and (known or wanted):
        lines.append(f"with which settings these were decoded is not known: {', '.join(unknown)}")
    return lines


def _value(decoding: Mapping[str, Any], key: str) -> Any:
    return decoding.get(key, "unknown")


def _check_ids(name: str, expected: set[str], system: System) -> None:
    found = {row.id for row in system.translations}
    lacking, further = expected - found, found - expected
    faults = [f"{system.name} lacks {len(lacking)} utterances of {name}, such as {min(lacking)}"] if lacking else []
    faults += [f"{system.name} has {len(further)} utterances that {name} lacks, such as {min(further)}"] if further else []
    if faults:
        raise DataError(f"systems must translate the same utterances: {'; '.join(faults)}")


def _translation(place: str, line: str) -> Translation:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: must be an object, found {type(row).__name__}")
    wrong = [key for key in TEXTS if not isinstance(row.get(key), str)]
    wrong += ["reference"] if not isinstance(row.get("reference"), str | None) else []
    numbers = {"pieces": int, "cut": bool}
    odd = [
        f"{key} must be of type {kind.__name__}, found {row[key]!r}"
        for key, kind in numbers.items()
        if key in row and type(row[key]) is not kind
    ]
    if odd and not wrong:
        raise DataError(f"{place}: {odd[0]}")
    if wrong:
        raise DataError(f"{place}: {wrong[0]} must be a string, found {row.get(wrong[0])!r}")
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(Translation) if field.name in row}
    return Translation(**{"reference": None} | values)
