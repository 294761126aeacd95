"""Runs that are killed in every phase, also inside saving and inside replacement, and end as if nothing had happened."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.end_to_end.runs import losses, metrics, run
from tests.launch import launch

pytestmark = pytest.mark.launcher

KILLED = "tests/end_to_end/killed_train.py"
STEP = "gdps_ds.distributed.engine:Engine.step"
SAVING = "gdps_ds.training.checkpoint"
REPLACER = "gdps_ds.distributed.replacer"
PHASES = "gdps_ds.training.phases"
MINING = "gdps_ds.training.planning:mine_batch"
DEV_BATCH = "gdps_ds.training.selection:utterance_losses"
TEST_BATCH = "gdps_ds.evaluation.decoding:_generate"

Place = tuple[str, int, int]
"""Function, call and rank (-1 for all)."""

_random = random.Random(1)
CAMPAIGN: list[Place] = [  # in the order of a run
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
    (DEV_BATCH, 2, 1),
    (f"{SAVING}:PhaseCheckpoints._record", 1, 0),
    (MINING, _random.randint(1, 5), 1),
    ("gdps_ds.distributed.gatherer:GradientGatherer.reduce", 1, 0),
    ("gdps_ds.training.planning:make_plan", 1, 0),
    (f"{REPLACER}:partitioned_blocks", 1, 1),
    (f"{REPLACER}:install", 1, 0),
    (f"{REPLACER}:carry_over", 1, 1),
    (f"{REPLACER}:_fill", 2, -1),
    (STEP, _random.randint(1, 3), 0),
    (f"{SAVING}:_described", 1, 0),
    (STEP, _random.randint(1, 4), 1),
    (DEV_BATCH, 1, 0),
    (MINING, 2, 0),
    (TEST_BATCH, 2, 1),
    (f"{PHASES}:Run._score", 1, 0),
    (f"{PHASES}:restore", 1, 1),
    (STEP, _random.randint(1, 4), -1),
    (f"{PHASES}:Run._summarise", 1, 0),
]
SIGNALS: list[Place] = [  # to one rank, in the order of a run, where nothing but a checkpoint or the work of rank 0 is going on
    ("gdps_ds.training.inputs:prepare_role", 2, 0),
    (DEV_BATCH, 2, 1),
    (f"{SAVING}:save_state", 1, 0),
    (DEV_BATCH, 1, 0),
    (MINING, 3, 1),
    ("gdps_ds.training.planning:make_plan", 1, 0),
    (MINING, 2, 0),
    (TEST_BATCH, 2, 1),
    (f"{PHASES}:Run._score", 1, 0),
]
SMALL = "decode.max_utterances=4"
"""Several batches of the test set on each rank: what a signal in one of them ends is the translation."""


def stopped_again_and_again(experiment: Path, folder: Path, stops: Iterable[tuple[str, Place]], *options: str) -> None:
    """One run, stopped by a kill (--die) or a signal (--signal) in each place in turn and started again, and at last let be."""
    options = (*options, SMALL)
    for what, (function, call, rank) in stops:
        arguments = (what, f"{function}:{call}:{rank}", "--config", experiment, f"run.dir={folder}", *options)
        code, output = launch(KILLED, *arguments)
        expected = "return code = -9" if what == "--die" else "stopped by a signal"
        assert code != 0 and expected in output, f"{what} {function} was not reached:\n{output[-3000:]}"
        assert what == "--die" or "Traceback" not in output, output[-3000:]
        assert not (folder / "summary.json").exists()
    run(experiment, folder, *options)


def dev_lines(folder: Path) -> dict[tuple[str, int], int]:
    """How often each phase was evaluated at each update."""
    return Counter((phase, line["update"]) for phase in ("unified", "gdps") for line in metrics(folder, phase) if "dev" in line)


def same_end(folder: Path, finished: Path) -> None:
    assert losses(folder) == losses(finished)
    assert json.loads((folder / "summary.json").read_text()) == json.loads((finished / "summary.json").read_text())


def test_a_run_killed_while_it_saves_and_replaces_loses_nothing_but_steps(
    finished: Path, experiment: Path, tmp_path: Path
) -> None:
    stops = [("--die", CAMPAIGN[4]), ("--die", (DEV_BATCH, 2, 1)), ("--signal", (MINING, 3, 1))]
    stops += [("--die", (f"{REPLACER}:carry_over", 1, 1)), ("--signal", (TEST_BATCH, 2, 1))]
    stopped_again_and_again(experiment, tmp_path / "run", stops)
    same_end(tmp_path / "run", finished)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_run_killed_in_every_phase_loses_nothing_but_steps(finished: Path, experiment: Path, tmp_path: Path) -> None:
    stopped_again_and_again(experiment, tmp_path / "run", [("--die", place) for place in CAMPAIGN])
    same_end(tmp_path / "run", finished)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_run_that_is_signalled_in_every_phase_loses_nothing(finished: Path, experiment: Path, tmp_path: Path) -> None:
    """With no checkpoint but those that a signal or the end of a phase is the reason for."""
    stops = [("--signal", place) for place in SIGNALS]
    stopped_again_and_again(experiment, tmp_path / "run", stops, "train.checkpoint_every=100")
    same_end(tmp_path / "run", finished)
    assert dev_lines(tmp_path / "run") == dev_lines(finished)


def test_a_failed_replacement_says_what_is_left(finished: Path, experiment: Path, tmp_path: Path) -> None:
    """An exception on one rank after the point of no return."""
    spec = f"{REPLACER}:carry_over:1:1"
    code, output = launch(KILLED, "--fail", spec, "--config", experiment, f"run.dir={tmp_path / 'run'}", "run.arms=[gdps]")
    assert code != 0
    assert "MemoryError: no room" in output and "start the run again to go on from the last checkpoint" in output
    run(experiment, tmp_path / "run", "run.arms=[gdps]")
    arm = {key: value for key, value in losses(finished).items() if not key[0].startswith("uniform")}
    assert losses(tmp_path / "run") == arm
