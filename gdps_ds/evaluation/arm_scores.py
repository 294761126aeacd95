"""``RUN_DIR/scores/<arm>.json``: what a run keeps of an arm's test set, for its summary and for comparisons."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from gdps_ds.data.manifest import DataError
from gdps_ds.files import atomic_write


@dataclass(frozen=True)
class ArmScores:
    """Scores of an arm's translations of the test set.

    Attributes:
        scores: row of a pair of languages, or ``mean`` -> metric -> score; empty where no utterance has a reference.
        signatures: metric -> what the score depends on.
        parameters: of the arm's model.
        notes: what has to be told beside the scores.
    """

    scores: dict[str, dict[str, float]]
    signatures: dict[str, str]
    parameters: int
    notes: tuple[str, ...] = ()


def write_arm_scores(path: Path, scores: ArmScores) -> None:
    with atomic_write(path) as file:
        json.dump(asdict(scores), file, indent=2, ensure_ascii=False)


def read_arm_scores(path: Path) -> ArmScores:
    """What :func:`write_arm_scores` has written, or an earlier version of it.

    Raises:
        DataError: the file holds something else; names what, and what helps.
    """
    try:
        return TypeAdapter(ArmScores).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path}: {first_fault(error)}; remove the file, and the run translates and scores this arm anew"
        ) from None


def first_fault(error: ValidationError) -> str:
    """What a file lacks that another version or program wrote: its first fault, by name."""
    fault = error.errors()[0]
    name = ".".join(map(str, fault["loc"]))
    return f"not scores as this version writes them ({f'{name}: ' if name else ''}{fault['msg'].lower()})"
