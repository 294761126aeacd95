"""Starts rank programs through the real ``deepspeed`` launcher on a free port, and never leaves one running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = Path(sys.executable).parent / "deepspeed"
PATIENCE = 900.0
"""Seconds after which a process that a test waits for is held to hang: on no machine the measure of its speed."""


_HOLD = """
import pathlib, sys
from gdps_ds.training.run_lock import hold
hold(pathlib.Path(sys.argv[1]), sys.argv[2], "is tested here", "run.dir")
print(1, flush=True)
input()
"""


@contextmanager
def holding(folder: Path, lock: str = "run.lock") -> Iterator[int]:
    """Another job that holds a lock in ``folder``, by its process number, as job 77 of Slurm; it is killed in the end."""
    command, environment = [sys.executable, "-c", _HOLD, str(folder), lock], os.environ | {"SLURM_JOB_ID": "77"}
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "1\n"
        try:
            yield job.pid
        finally:
            job.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    """One thread a rank, the repository on the path of the rank programs in ``tests``, and every step on the bars."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "DS_ACCELERATOR": "cpu",
        "TQDM_MININTERVAL": "0",
    }


def start(script: str, *arguments: object, ranks: int = 2) -> subprocess.Popen[str]:
    """The launcher as a :func:`background` command."""
    return background(LAUNCHER, "--num_gpus", ranks, "--master_port", free_port(), ROOT / script, *arguments)


def background(*command: object) -> subprocess.Popen[str]:
    """A command in a process group of its own, its output as one stream."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(script: str, *arguments: object, ranks: int = 2, timeout: float = PATIENCE) -> tuple[int, str]:
    """Run to the end: (exit code, output)."""
    process = start(script, *arguments, ranks=ranks)
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, output
