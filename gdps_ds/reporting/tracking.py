"""Metrics of a run: always as JSON lines, and on Weights & Biases when asked. Only rank 0 writes."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any, TextIO

from gdps_ds.config import Config


class Tracker:
    """Writes ``metrics.jsonl`` in the run directory; a resumed run appends."""

    def __init__(self, config: Config, run_dir: Path, *, is_main: bool) -> None:
        self._file: TextIO | None = None
        self._wandb: Any = None
        if not is_main:
            return
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        if config.track.wandb:
            import wandb

            name = config.track.name or run_dir.name
            self._wandb = wandb.init(
                project=config.track.project,
                name=name,
                dir=str(run_dir),
                # The same id for every attempt of a run, so that a resumed run goes on in the same charts.
                id=_wandb_id(run_dir),
                resume="allow",
                config=config.model_dump(by_alias=True),
            )

    def log(self, phase: str, update: int, **values: Any) -> None:
        """One line: the phase, the update, the time (Unix seconds) and the values."""
        if self._file is not None:
            line = {"phase": phase, "update": update, "time": round(time.time(), 3)} | values
            self._file.write(json.dumps(line) + "\n")
        if self._wandb is not None:
            self._wandb.log({f"{phase}/{name}": value for name, value in _flat(values)} | {f"{phase}/update": update})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_id(run_dir: Path) -> str:
    path = run_dir / "wandb-id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text()


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested dictionaries as slash-separated names, which W&B shows as groups of panels."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs
