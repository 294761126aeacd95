"""Half an hour of kills, exceptions, other numbers of ranks and ZeRO stages and a poisoned utterance: nothing is to be seen."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from tests.end_to_end.runs import losses
from tests.end_to_end.test_kills import DEV_BATCH, KILLED, MINING, STEP, TEST_BATCH
from tests.launch import launch

pytestmark = [pytest.mark.launcher, pytest.mark.soak]

SECONDS = float(os.environ.get("SOAK_SECONDS", "1800"))
POISONED = ("--poison", "est-train-00003")
SAVING = "gdps_ds.training.checkpoint:_described"
SEEN = {"--die": "return code = -9", "--fail": "MemoryError: no room", "--signal": "stopped by a signal"}
"""What shows that a fault has come, by its kind."""
TOLERANCE = 2e-4
"""Of a loss in nats, over sums in another order at other numbers of ranks and stages."""


def start(experiment: Path, folder: Path, *options: str, ranks: int = 2, stage: int = 2) -> tuple[int, str]:
    overrides = (f"run.dir={folder}", f"deepspeed=ds_configs/zero{stage}.json", "guard.nonfinite=skip", "guard.timeout=60")
    return launch(KILLED, *POISONED, *options, "--config", experiment, *overrides, ranks=ranks)


def disturbed(experiment: Path, folder: Path, chance: random.Random) -> int:
    """A run with a fault in every start, until one ends before its fault comes; gives the number of starts."""
    for number in range(1, 1000):
        ranks, stage = chance.choice([1, 2, 2, 4]), chance.choice([0, 1, 2, 3])
        what = chance.choice(list(SEEN))
        where = chance.choice([STEP, STEP, SAVING, DEV_BATCH, MINING, TEST_BATCH])
        call = chance.randint(3, 12) if where == STEP else chance.randint(1, 2)
        fault = f"{where}:{call}:{chance.randrange(-1 if what == '--die' else 0, ranks)}"
        code, output = start(experiment, folder, what, fault, ranks=ranks, stage=stage)
        if code == 0:
            return number
        assert SEEN[what] in output, f"{ranks} ranks, ZeRO {stage}, {what} {fault}:\n{output[-3000:]}"
    raise AssertionError("the run never ends")


@pytest.mark.timeout(int(SECONDS) + 1800)
def test_a_disturbed_run_ends_like_an_undisturbed_one(experiment: Path, tmp_path: Path) -> None:
    code, output = start(experiment, tmp_path / "undisturbed")
    assert code == 0, output[-3000:]
    wanted, seed, deadline = losses(tmp_path / "undisturbed"), 0, time.monotonic() + SECONDS
    plan = json.loads((tmp_path / "undisturbed" / "summary.json").read_text())["plan"]
    while time.monotonic() < deadline:
        folder = tmp_path / f"disturbed-{seed}"
        starts = disturbed(experiment, folder, random.Random(seed))
        assert losses(folder) == pytest.approx(wanted, abs=TOLERANCE), f"seed {seed}"
        found = json.loads((folder / "summary.json").read_text())["plan"]
        assert (found["groups"], found["sites"]) == (plan["groups"], plan["sites"])
        print(f"seed {seed}: {starts} starts, {deadline - time.monotonic():.0f} s left", flush=True)
        seed += 1
