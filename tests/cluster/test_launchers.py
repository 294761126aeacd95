"""Slurm's script with a made-up Slurm around it, torchrun, and what neither run directory nor log may hold."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.two_nodes import wait_until
from tests.end_to_end.runs import TRAIN
from tests.end_to_end.test_kills import same_end
from tests.launch import PATIENCE, ROOT, environment, free_port

pytestmark = pytest.mark.launcher

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    echo $! >> "$PIDS"
done
code=0
for pid in $(< "$PIDS"); do
    wait "$pid" || code=$?
done
exit $code
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo localhost; else echo "$@" >> "$REQUEUED"; fi
"""
SECRETS = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "HF_TOKEN": "hf_" + "S3cretS3cret" * 3}


def slurm(folder: Path) -> dict[str, str]:
    """The environment of a job of two tasks on this machine."""
    for name, script in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS": "2", "MASTER_PORT": str(free_port())}
    files = {"PIDS": str(folder / "pids"), "REQUEUED": str(folder / "requeued"), "PYTHON": sys.executable}
    return environment() | SECRETS | job | files | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_job_is_queued_again_when_slurm_warns_and_goes_on_under_torchrun(
    finished: Path, experiment: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--config", str(experiment), f"run.dir={run}", "track.wandb=true"]
    script = ["bash", "launchers/slurm/train.sbatch", *arguments]
    with log.open("w") as file:
        job = subprocess.Popen(
            script, cwd=ROOT, env=slurm(tmp_path), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        metrics = run / "metrics.jsonl"
        wait_until(
            lambda: job.poll() is not None or (metrics.is_file() and metrics.stat().st_size), PATIENCE, "the first update"
        )
        for pid in (tmp_path / "pids").read_text().split():
            os.kill(int(pid), signal.SIGUSR1)
        assert job.wait(timeout=PATIENCE) == os.EX_TEMPFAIL, log.read_text()[-4000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert "stopped by a signal after update" in log.read_text()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TRAIN, *arguments]
    variables = environment() | SECRETS
    again = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert again.returncode == 0, again.stderr[-4000:]
    same_end(run, finished)

    said = log.read_text() + again.stdout + again.stderr
    kept = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" for path in kept)
    for name, secret in SECRETS.items():
        assert secret not in said, f"{name} is in the log"
        assert not [path for path in kept if secret.encode() in path.read_bytes()], f"{name} is in the run directory"
