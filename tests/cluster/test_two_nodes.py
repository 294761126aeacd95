"""``deepspeed --hostfile`` over two nodes: the same run as on one, and what a lost cable or node does to it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.two_nodes import TwoNodes, two_nodes, wait_until
from tests.end_to_end.runs import TRAIN, losses
from tests.end_to_end.test_kills import KILLED, STEP, same_end
from tests.launch import PATIENCE

pytestmark = pytest.mark.launcher

TIMEOUT = 6.0
BOUND = TIMEOUT + 90.0
"""Seconds from the fault until nothing is left of the run on either node: the time-out, the last words, ssh's own
time-out and the launcher's 30 s, on a machine that has other things to do."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as found:
        yield found


def completed(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output[-4000:]
    return output


def test_two_nodes_make_the_run_of_one(nodes: TwoNodes, finished: Path, experiment: Path, tmp_path: Path) -> None:
    completed(nodes.start(TRAIN, "--config", experiment, f"run.dir={tmp_path / 'run'}"))
    same_end(tmp_path / "run", finished)


def test_a_lost_cable_and_a_lost_node_end_the_run_which_then_goes_on(
    nodes: TwoNodes, finished: Path, experiment: Path, tmp_path: Path
) -> None:
    command = ("--config", experiment, f"run.dir={tmp_path / 'run'}", f"guard.timeout={TIMEOUT}", "track.progress=false")

    def interrupted(call: str, rank: int) -> tuple[subprocess.Popen[str], Path]:
        """A run that waits in the middle for its file to be removed."""
        file = tmp_path / f"pause-{call}"
        process = nodes.start(KILLED, "--pause", f"{STEP}:{call}:{rank}", "--pause-file", file, *command)
        wait_until(lambda: file.exists() or process.poll() is not None, PATIENCE, "the pause")
        assert process.poll() is None, process.communicate()[0][-4000:]
        return process, file

    def ended(process: subprocess.Popen[str], start: float) -> list[str]:
        output = process.communicate(timeout=BOUND)[0]
        assert process.returncode != 0, output
        wait_until(lambda: not (nodes.ranks(0) or nodes.ranks(1)), BOUND - (time.monotonic() - start), "the end of every rank")
        return [line.partition("train: ")[2] for line in output.splitlines() if "train: " in line]

    process, file = interrupted("8", 1)
    nodes.cut()
    start = time.monotonic()
    file.unlink()
    said = ended(process, start)
    assert any("nothing has been heard of rank 1" in line or "rank 1 ended without a word" in line for line in said), said
    nodes.mend()

    process, file = interrupted("10", 0)
    nodes.kill(1)
    start = time.monotonic()
    file.unlink()
    said = ended(process, start)
    assert said[-1].startswith("rank 1 ended without a word: killed, out of memory, or its node lost"), said
    nodes.boot(1)

    completed(nodes.start(TRAIN, *command))
    assert losses(tmp_path / "run") == losses(finished)
