"""What ``metrics.jsonl`` says of a run: losses by phase and language, and where the time went."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from gdps_ds.data.manifest import DataError

Line = dict[str, Any]
Curves = dict[str, dict[str, dict[int, float]]]
"""Phase -> language (or ``all``) -> update -> loss."""

METRICS_FILE = "metrics.jsonl"
START, UNIFIED = "start", "unified"
"""Phases: of the line with which every attempt of a run begins, and of what all arms come from."""


@dataclass(frozen=True)
class Duration:
    """What a phase took, all attempts together.

    Attributes:
        seconds: all of it, what was repeated after a stop included.
        dev_seconds: of them, spent on evaluating the dev set.
        updates: that were trained.
        rates: (update, utterances a second), a stretch of training each.
        waits: (update, share of the time that was spent waiting for data), where it was measured.
        padding: mean share of padded frames; None where it was not measured.
    """

    name: str
    seconds: float
    dev_seconds: float
    updates: int
    rates: tuple[tuple[int, float], ...]
    waits: tuple[tuple[int, float], ...]
    padding: float | None


def read_metrics(path: Path) -> list[Line]:
    """The lines of a ``metrics.jsonl``.

    Raises:
        DataError: no such file, or a line that is not a JSON object; names it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; the run has not logged anything yet")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg}); remove the line") from None
        if not isinstance(line, dict) or not {"phase", "update", "time"} <= line.keys():
            raise DataError(f"{path}, line {number}: must be an object with phase, update and time; remove the line")
        lines.append(line)
    return lines


def curves(lines: Iterable[Line], kind: Literal["loss", "dev", "dev_bleu"]) -> Curves:
    """Training (``loss``) or dev losses, or dev BLEU; an update that was made twice counts as it was the last time."""
    found: Curves = {}
    for line in lines:
        for language, value in line.get(kind, {}).items():
            found.setdefault(line["phase"], {}).setdefault(language, {})[line["update"]] = value
    return {
        phase: {language: dict(sorted(values.items())) for language, values in by_language.items()}
        for phase, by_language in found.items()
    }


def durations(lines: Sequence[Line]) -> list[Duration]:
    """Phases in the order in which they first ended.

    The time from a line to the next counts for the next line's phase; what passes until an attempt's first line
    (:data:`START`) is nobody's.
    """
    steps: list[Step] = [(None, line, 0.0) for line in lines[:1]]
    steps += [(before, now, now["time"] - before["time"] if now["phase"] != START else 0.0) for before, now in pairwise(lines)]
    names = dict.fromkeys(line["phase"] for line in lines if line["phase"] != START)
    return [_duration(name, [step for step in steps if step[1]["phase"] == name]) for name in names]


Step = tuple[Line | None, Line, float]
"""A line, the one before it, and the seconds between them."""


def _duration(name: str, steps: Sequence[Step]) -> Duration:
    trained = [(before, line, seconds) for before, line, seconds in steps if "seen" in line]
    # Only between two lines of the phase nothing but training happened: no engine was built, nothing was translated.
    within = [(line, seconds) for before, line, seconds in trained if before and before["phase"] == name and seconds > 0]
    padding = [line["padding"] for _, line, _ in trained if "padding" in line]
    return Duration(
        name,
        sum(seconds for _, _, seconds in steps),
        sum(line.get("dev_seconds", seconds) for _, line, seconds in steps if "dev" in line),
        max((line["update"] for _, line, _ in trained), default=0),
        tuple((line["update"], line["seen"]["utterances"] / seconds) for line, seconds in within),
        tuple((line["update"], line["data_wait"]) for _, line, _ in trained if "data_wait" in line),
        sum(padding) / len(padding) if padding else None,
    )
