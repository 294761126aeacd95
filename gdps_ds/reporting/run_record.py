"""What a run directory holds, read when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gdps_ds.analysis.arms import REFERENCES
from gdps_ds.analysis.sketch import Sketches
from gdps_ds.config_file import load_decoding, read_sections
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.table import UtteranceTable
from gdps_ds.evaluation.arm_scores import first_fault
from gdps_ds.evaluation.comparison import Evaluation, compare
from gdps_ds.evaluation.systems import System, aligned, read_system
from gdps_ds.plan import SharingPlan
from gdps_ds.reporting.run_metrics import METRICS_FILE, Line, read_metrics


@dataclass(frozen=True)
class RunDir:
    """A run directory, as far as the run has come."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_sections(self.folder / "config.yaml")

    @property
    def arms(self) -> list[str]:
        return list(self.config["run"]["arms"])

    @property
    def unified(self) -> int:
        """Updates of the unified phase, after which the arms start."""
        return int(self.config["train"]["unify"]["updates"])

    @cached_property
    def lines(self) -> list[Line]:
        return read_metrics(self.folder / METRICS_FILE)

    @cached_property
    def plan(self) -> SharingPlan | None:
        path = self.folder / "plan.json"
        return SharingPlan.load(path) if path.is_file() else None

    @cached_property
    def sketches(self) -> Sketches | None:
        return self._sketches("sketches")

    @property
    def later_sketches(self) -> dict[str, Sketches]:
        """Arm -> what mining its trained model found, where it was mined."""
        found = {arm: self._sketches(f"sketches.{arm}") for arm in self.arms}
        return {arm: sketches for arm, sketches in found.items() if sketches is not None}

    @cached_property
    def systems(self) -> list[System]:
        """Arms that have been translated, aligned."""
        paths = {arm: self.folder / "hypotheses" / f"{arm}.jsonl" for arm in self.arms}
        found = [read_system(arm, path) for arm, path in paths.items() if path.is_file()]
        return aligned(found) if found else []

    @property
    def evaluation(self) -> Evaluation | None:
        """By launchers/evaluate.py where it has scored every arm, which may know COMET and other systems; else made here.

        Raises:
            DataError: what is there cannot be read, or no utterance has a reference.
        """
        saved = self.folder / "evaluation" / "scores.json"
        if saved.is_file():
            try:
                evaluation = TypeAdapter(Evaluation).validate_json(saved.read_bytes())
            except ValidationError as error:
                raise DataError(f"{saved}: {first_fault(error)}; run launchers/evaluate.py again, or remove the file") from None
            if {system.name for system in self.systems} <= evaluation.scores.keys():
                return evaluation
        if not self.systems:
            return None
        groups = self.plan.groups if self.plan else ()
        settings = load_decoding(self.folder / "config.yaml")
        # All pairs of seventeen arms take minutes.
        against = [system.name for system in self.systems if system.name in REFERENCES]
        return compare(self.systems, settings, groups, against=against or None)

    @property
    def data_notes(self) -> list[str]:
        """What evaluations during training leave out or do otherwise, as the run has found at its start."""
        path = self.folder / "notes.txt"
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    @cached_property
    def test_set(self) -> Mapping[str, Utterance]:
        path = self.folder / "data" / "test.arrow"
        return {each.id: each for each in UtteranceTable.open(path)} if path.is_file() else {}

    def _sketches(self, name: str) -> Sketches | None:
        path = self.folder / f"{name}.safetensors"
        return Sketches.load(path) if path.is_file() else None
