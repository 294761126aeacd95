"""Runs that are killed in every phase, also inside saving and inside replacement, and end as if nothing had happened."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.end_to_end.runs import losses, run
from tests.launch import launch

pytestmark = pytest.mark.launcher

KILLED = "tests/end_to_end/killed_train.py"
STEP = "gdps_ds.distributed.engine:Engine.step"
SAVING = "gdps_ds.training.checkpoint"
REPLACER = "gdps_ds.distributed.replacer"
PHASES = "gdps_ds.training.phases"

_random = random.Random(1)
CAMPAIGN = [  # in the order of a run: (function, call, rank; -1 for all)
    ("gdps_ds.training.inputs:prepare_role", 2, 0),
    ("gdps_ds.training.inputs:train_tokenizer", 1, 0),
    (STEP, _random.randint(1, 3), 1),
    ("gdps_ds.distributed.saved_state:save_file", 1, 1),
    (f"{SAVING}:_described", 1, 1),
    (f"{SAVING}:sync", 3, 0),
    (f"{SAVING}:PhaseCheckpoints._point", 1, 0),
    (STEP, _random.randint(1, 3), -1),
    (f"{SAVING}:PhaseCheckpoints._prune", 1, 0),
    (f"{SAVING}:save_state", 1, -1),
    ("gdps_ds.training.planning:mine_batch", _random.randint(1, 5), 1),
    ("gdps_ds.distributed.gatherer:GradientGatherer.reduce", 1, 0),
    ("gdps_ds.training.planning:make_plan", 1, 0),
    (f"{REPLACER}:partitioned_blocks", 1, 1),
    (f"{REPLACER}:install", 1, 0),
    (f"{REPLACER}:carry_over", 1, 1),
    (f"{REPLACER}:_fill", 2, -1),
    (STEP, _random.randint(1, 3), 0),
    (f"{SAVING}:_described", 1, 0),
    (STEP, _random.randint(1, 4), 1),
    (f"{PHASES}:translate", 1, 1),
    (f"{PHASES}:Run._score", 1, 0),
    (f"{PHASES}:restore", 1, 1),
    (STEP, _random.randint(1, 4), -1),
    (f"{PHASES}:Run._summarise", 1, 0),
]


def killed_again_and_again(experiment: Path, folder: Path, kills: list[tuple[str, int, int]]) -> None:
    """One run, killed at each of ``kills`` in turn and started again, and at last let be."""
    for function, call, rank in kills:
        code, output = launch(KILLED, "--die", f"{function}:{call}:{rank}", "--config", experiment, f"run.dir={folder}")
        assert code != 0 and "return code = -9" in output, f"{function} was not reached:\n{output[-3000:]}"
        assert not (folder / "summary.json").exists()
    run(experiment, folder)


def same_end(folder: Path, finished: Path) -> None:
    assert losses(folder) == losses(finished)
    assert json.loads((folder / "summary.json").read_text()) == json.loads((finished / "summary.json").read_text())


def test_a_run_killed_while_it_saves_and_replaces_loses_nothing_but_steps(
    finished: Path, experiment: Path, tmp_path: Path
) -> None:
    killed_again_and_again(experiment, tmp_path / "run", [CAMPAIGN[number] for number in (4, 6, 10, 15, 18)])
    same_end(tmp_path / "run", finished)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_run_killed_in_every_phase_loses_nothing_but_steps(finished: Path, experiment: Path, tmp_path: Path) -> None:
    killed_again_and_again(experiment, tmp_path / "run", CAMPAIGN)
    same_end(tmp_path / "run", finished)


def test_a_failed_replacement_says_what_is_left(finished: Path, experiment: Path, tmp_path: Path) -> None:
    """An exception on one rank after the point of no return."""
    spec = f"{REPLACER}:carry_over:1:1"
    code, output = launch(KILLED, "--fail", spec, "--config", experiment, f"run.dir={tmp_path / 'run'}", "run.arms=[gdps]")
    assert code != 0
    assert "MemoryError: no room" in output and "start the run again to go on from the last checkpoint" in output
    run(experiment, tmp_path / "run", "run.arms=[gdps]")
    arm = {key: value for key, value in losses(finished).items() if not key[0].startswith("uniform")}
    assert losses(tmp_path / "run") == arm
