"""How far a split moves the loss: lanes of copied neurons (ours) and of singular components (published), in nats a token."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.benchmarks.demo_run import corpus_in, metrics_of_run

UPDATES = 200
ARMS = {"gdps": "neurons", "paper": "svd"}
"""Arm of one unified model -> the initialisation of its lanes."""


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run, arms = Path(folder) / "run", f"[{', '.join(ARMS)}]"
        others = {"run.arms": arms, "mine.updates": 20, "mine.again": False, "track.report": False}
        lines = metrics_of_run(run, corpus_in(Path(folder)), updates=UPDATES, log_every=UPDATES, **others)
    jumps = {line["arm"]: line["after"] - line["before"] for line in lines if line["phase"] == "split"}
    return {f"loss_jump.{name}": jumps[arm] for arm, name in ARMS.items()}
