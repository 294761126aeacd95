"""One training job at a time in a run directory: a lock that the kernel takes back however the job ends.

It is a record lock (``fcntl``), which also holds between nodes where the file system has locks (NFSv4, Lustre with
``-o flock``). Children do not inherit it, so that a loader that outlives a killed rank does not keep it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from gdps_ds.config_file import ConfigError

LOCK = "run.lock"
JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
_held: list[TextIO] = []
"""Open for the life of the process: closing *any* descriptor of the file would give the lock up, so none else is opened."""


def hold_run_dir(folder: Path) -> None:
    """Lock a run directory, made where there is none, for the life of this process.

    Where the file system has no locks, that is told, and only a job that lives on this node is refused.

    Raises:
        ConfigError: another job trains there, and which; or nothing can be written there.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(folder), [f"run.dir cannot be written to: {error}"]) from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(file)
        if error.errno in (errno.EACCES, errno.EAGAIN) or _is_alive_here(holder):
            file.close()
            raise ConfigError(str(folder), [_refusal(holder)]) from None
        print(
            f"train: {path}: the file system has no locks ({error.strerror}); no other node may train in this run.dir",
            file=sys.stderr,
            flush=True,
        )
    job = next((f"{name}={os.environ[name]}" for name in JOB_IDS if name in os.environ), None)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "job": job, "since": since}))
    file.flush()
    _held.append(file)


def _holder(file: TextIO) -> dict[str, object]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive_here(holder: dict[str, object]) -> bool:
    pid = holder.get("pid")
    return (
        holder.get("host") == socket.gethostname()
        and isinstance(pid, int)
        and pid != os.getpid()
        and Path(f"/proc/{pid}").exists()
    )


def _refusal(holder: dict[str, object]) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    job = f" (job {holder['job']})" if holder.get("job") else ""
    since = f" since {holder.get('since', '?')}"
    return f"another job trains in run.dir: {who}{job}{since}; wait for it, end it, or choose another run.dir"
