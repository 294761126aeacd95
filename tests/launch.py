"""Starts rank programs through the real ``deepspeed`` launcher on a free port, and never leaves one running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = Path(sys.executable).parent / "deepspeed"
PATIENCE = 900.0
"""Seconds after which a process that a test waits for is held to hang: on no machine the measure of its speed."""


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
