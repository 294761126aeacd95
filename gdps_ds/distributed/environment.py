"""What a launcher tells a rank in environment variables, and a process that no launcher has started: it is the only rank."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
CLOUDS = ("AZUREML_EXPERIMENT_ID", "SM_TRAINING_ENV")
"""DeepSpeed translates their variables itself, as it does MPI's where mpi4py is there."""

SHARED_MEMORY = Path("/dev/shm")
MEMORY_OF_RANK = 128
"""MiB: NVIDIA advises containers of 8 ranks to take 1 GiB; Docker gives them 64 MiB."""
LARGER = "docker run --shm-size=8g, compose: shm_size, Kubernetes: an emptyDir with medium Memory at /dev/shm"


class EnvironmentFault(ValueError):
    """Several processes were started without what they need to know of each other."""


def is_alone(environment: Mapping[str, str]) -> bool:
    """Whether no launcher has started this process, so that it is the only rank.

    Raises:
        EnvironmentFault: there are others, but variables are missing; says how ranks are started.
    """
    missing = [name for name in NAMES if name not in environment]
    if not missing or any(name in environment for name in CLOUDS):
        return False
    how = "start ranks with deepspeed, torchrun or launchers/slurm/train.sbatch"
    if "RANK" in environment or int(environment.get("WORLD_SIZE", "1")) > 1:
        raise EnvironmentFault(f"{', '.join(missing)}: not in the environment, unlike other variables of ranks; {how}")
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise EnvironmentFault(f"srun has started {environment['SLURM_STEP_NUM_TASKS']} tasks, but RANK is not set; {how}")
    if any(int(environment.get(name, "1")) > 1 for name in MPI):
        if find_spec("mpi4py") is None:
            raise EnvironmentFault(f"MPI has started several processes, but RANK is not set; install mpi4py, or {how}")
        return False
    return True


def variables_of_one() -> dict[str, str]:
    """What a launcher would tell the only rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def little_shared_memory(ranks: int, folder: Path = SHARED_MEMORY) -> str | None:
    """A warning where NCCL, which puts buffers between the ``ranks`` of a node into shared memory, may find too little."""
    if ranks < 2 or not folder.is_dir():
        return None
    found = os.statvfs(folder)
    size, free = (blocks * found.f_frsize / 2**20 for blocks in (found.f_blocks, found.f_bavail))
    if free >= MEMORY_OF_RANK * ranks:
        return None
    return f"{folder} has {size:.0f} MiB, {free:.0f} of them free; {ranks} ranks on a node may need more for NCCL: {LARGER}"


def is_want_of_shared_memory(text: str) -> bool:
    """Whether an error tells of it: NCCL's, torch's, or that of a process that touched memory which was not there."""
    return any(sign in text.lower() for sign in ("/dev/shm", "shared memory", "bus error"))
