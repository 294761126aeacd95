"""Systems that are scored: translations from files, and the check that all of them translate the same utterances."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.evaluation.decoding import Translation
from gdps_ds.evaluation.metrics import is_reference
from gdps_ds.files import atomic_write

TEXTS = ("id", "source_lang", "target_lang", "hypothesis")


@dataclass(frozen=True)
class System:
    """A name and its translations of a test set."""

    name: str
    translations: tuple[Translation, ...]


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


def write_translations(path: Path, translations: Iterable[Translation]) -> None:
    """Write what :func:`read_translations` reads; ``path`` appears whole or not at all."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in translations)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Only a line feed ends a line: Unicode's other separators occur within translations.

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
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


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
    """A test set that is known by its references alone, one a line: ids are line numbers, and there is no audio."""
    return [
        Utterance(id=str(number), audio="", source_lang=language, target_lang="und", target_text=line)
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
    reference = {row.id: (row.source_lang, row.reference) for row in first.translations}
    for system in systems[1:]:
        _check_ids(first.name, set(reference), system)
        odd = [row.id for row in system.translations if (row.source_lang, row.reference) != reference[row.id]]
        if odd:
            raise DataError(
                f"{first.name} and {system.name} have different languages or references for {len(odd)} utterances, such as "
                f"{odd[0]}; --manifest gives all systems those of one test set"
            )
    place = {row.id: index for index, row in enumerate(first.translations)}
    return [System(each.name, tuple(sorted(each.translations, key=lambda row: place[row.id]))) for each in systems]


def referenced(systems: Sequence[System]) -> tuple[list[System], dict[str, int]]:
    """Aligned systems without the utterances that have no reference, and how many those are in each language.

    Raises:
        DataError: no utterance has one.
    """
    missing = {row.id: row.source_lang for row in systems[0].translations if not is_reference(row.reference)}
    if len(missing) == len(systems[0].translations):
        raise DataError("no utterance has a reference: there is nothing to score")
    kept = [System(each.name, tuple(row for row in each.translations if row.id not in missing)) for each in systems]
    return kept, dict(Counter(missing.values()))


def with_references(translations: Iterable[Translation], utterances: Sequence[Utterance], name: str) -> list[Translation]:
    """The translations with languages and references of a manifest, in its order.

    Raises:
        DataError: they are not of the manifest's utterances.
    """
    by_id = {row.id: row for row in translations}
    _check_ids("the manifest", {each.id for each in utterances}, System(name, tuple(by_id.values())))
    return [
        Translation(each.id, each.source_lang, each.target_lang, by_id[each.id].hypothesis, each.target_text)
        for each in utterances
    ]


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
    if wrong:
        raise DataError(f"{place}: {wrong[0]} must be a string, found {row.get(wrong[0])!r}")
    values: dict[str, Any] = {field.name: row.get(field.name) for field in fields(Translation)}
    return Translation(**values)
