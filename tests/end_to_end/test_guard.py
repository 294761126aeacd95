"""What stops a rank ends the job in the time set, and the last line says why; an update that is not finite is left out."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.end_to_end.runs import losses, metrics, run
from tests.end_to_end.test_kills import DEV_BATCH, KILLED, MINING, STEP, TEST_BATCH
from tests.launch import launch

pytestmark = pytest.mark.launcher

TIMEOUT = 10
"""Seconds that a rank may stand still: enough for a micro-batch, or reading data, on a machine that has other things to do."""


def broken(experiment: Path, folder: Path, *options: str) -> list[str]:
    """The lines of a run that is broken on purpose, without the launcher's."""
    overrides = (f"run.dir={folder}", "track.progress=false")
    code, output = launch(KILLED, *options, "--config", experiment, *overrides)
    assert code != 0, output
    return [line for line in output.splitlines() if not re.search(r"\[(INFO|ERROR|WARNING)\]", line)]


def test_a_rank_that_fails_or_hangs_ends_the_job_with_the_cause_last(experiment: Path, tmp_path: Path) -> None:
    """The loader of one rank hangs; an exception on one rank, while the other waits for it; a rank is killed."""
    lines = broken(
        experiment, tmp_path / "run", "--hang", "gdps_ds.data.collate:Collator.__call__:5:1", f"guard.timeout={TIMEOUT}"
    )
    assert re.match(r"train: rank 1 stands still since \d+ s: waiting for the data of update 3 of unified", lines[-1]), lines
    assert any("in hang" in line for line in lines)  # the stack of the rank that hangs
    lines = broken(experiment, tmp_path / "run", "--fail", f"{STEP}:2:1")
    assert lines[-1].startswith("train: rank 1, micro-batch 2 of update 3 of unified: MemoryError: no room"), lines
    assert sum("Traceback" in line for line in lines) == 1
    lines = broken(experiment, tmp_path / "run", "--die", f"{STEP}:2:1")
    assert lines[-1].startswith("train: rank 1 ended without a word: killed, out of memory, or its node lost"), lines


@pytest.mark.soak
@pytest.mark.parametrize(
    ("place", "said"),
    [
        (f"{DEV_BATCH}:1:1", "rank 1 stands still since \\d+ s: the dev loss"),
        (f"{MINING}:2:1", "rank 1 stands still since \\d+ s: batch 2 of mining"),
        ("gdps_ds.training.planning:make_plan:1:0", "rank 0 stands still since \\d+ s: planning"),
        (f"{TEST_BATCH}:1:1", "rank 1 stands still since \\d+ s: the translation of the test set by gdps"),
    ],
)
def test_a_rank_that_hangs_outside_of_training_is_named(experiment: Path, tmp_path: Path, place: str, said: str) -> None:
    lines = broken(experiment, tmp_path / "run", "--hang", place)
    assert re.match(f"train: {said}", lines[-1]), lines
    assert any("in hang" in line for line in lines)


def test_an_update_that_is_not_finite_ends_the_run_or_is_left_out(experiment: Path, tmp_path: Path) -> None:
    """At ZeRO 2, and 0 where DeepSpeed itself would apply it; the soak has all stages and numbers of ranks."""
    poisoned = ("--poison", "est-train-00003")
    lines = broken(experiment, tmp_path / "stop", *poisoned)
    assert re.match(
        r"train: update \d of unified: the loss of est-train-00003 is not finite; mend the data, lower", lines[-1]
    ), lines
    found = []
    for name, stage in (("a", 2), ("b", 0)):
        overrides = (f"run.dir={tmp_path / name}", f"deepspeed=ds_configs/zero{stage}.json", "run.arms=[uniform]")
        options = ("guard.nonfinite=skip", "plan.groups=auto")
        code, output = launch(KILLED, *poisoned, "--config", experiment, *overrides, *options)
        assert code == 0, output[-3000:]
        assert "est-train-00003 is not finite; the update is left out" in output
        assert sum(line.get("skipped", 0) for line in metrics(tmp_path / name, "unified")) >= 1
        found.append(losses(tmp_path / name))
    assert all(math.isfinite(loss) for loss in found[0].values())
    assert found[1] == pytest.approx(found[0], abs=2e-4)


def test_a_full_disk_leaves_the_checkpoint_before(finished: Path, experiment: Path, tmp_path: Path) -> None:
    lines = broken(experiment, tmp_path / "run", "--full", "gdps_ds.distributed.saved_state:save_file:2:1")
    folder = tmp_path / "run" / "checkpoints" / "unified"
    assert lines[-1] == (
        f"train: {folder / 'update-000004'} could not be saved: writing failed (rank 1: OSError: [Errno 28] No space left on "
        "device); update-000002 before it is whole: make room and start again to go on from there"
    )
    assert [path.name for path in folder.glob("*update*")] == ["update-000002"]
    run(experiment, tmp_path / "run", "run.arms=[uniform]")
    assert losses(tmp_path / "run") == {key: loss for key, loss in losses(finished).items() if not key[0].startswith("gdps")}
