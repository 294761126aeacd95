"""One job at a time writes a folder, such as a run directory: a lock that the kernel takes back however the job ends.

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
    """:func:`hold` a run directory for training."""
    hold(folder, LOCK, "trains in run.dir", "run.dir")


def hold(folder: Path, name: str, doing: str, option: str) -> None:
    """Lock the file ``name`` in a folder, made where there is none, for the life of this process.

    Where the file system has no locks, that is told, and only a job that lives on this node is refused.

    Args:
        doing: what the lock is for, as in "another job ``doing``".
        option: what names the folder.

    Raises:
        ConfigError: another job holds it, and which; or nothing can be written there.
    """
    file = _locked(folder, name, doing, option)
    job = next((f"{name}={os.environ[name]}" for name in JOB_IDS if name in os.environ), None)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    pid = os.getpid()
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": pid, "started": _start_of(pid), "job": job, "since": since}))
    file.flush()
    _held.append(file)


def check_free(folder: Path, name: str, doing: str, option: str) -> None:
    """Raise what :func:`hold` would, and hold nothing."""
    _locked(folder, name, doing, option).close()


def _locked(folder: Path, name: str, doing: str, option: str) -> TextIO:
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(folder), [f"{option} cannot be written to: {error}"]) from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(file)
        if error.errno in (errno.EACCES, errno.EAGAIN) or _is_alive_here(holder):
            file.close()
            raise ConfigError(str(folder), [_refusal(holder, doing, option)]) from None
        print(
            f"{path}: the file system has no locks ({error.strerror}); no job on another node may write this {option}",
            file=sys.stderr,
            flush=True,
        )
    return file


def _holder(file: TextIO) -> dict[str, object]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive_here(holder: dict[str, object]) -> bool:
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid == os.getpid():
        return False
    started = _start_of(pid)
    return started is not None and started == holder.get("started")


def _start_of(pid: int) -> str | None:
    """When a process on this node began, in the kernel's ticks; its number alone may be another's by now. None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19]  # the 22nd of all, behind the number and the name


def _refusal(holder: dict[str, object], doing: str, option: str) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    job = f" (job {holder['job']})" if holder.get("job") else ""
    since = f" since {holder.get('since', '?')}"
    return f"another job {doing}: {who}{job}{since}; wait for it, end it, or choose another {option}"
