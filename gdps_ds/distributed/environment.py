"""What a launcher tells a rank in environment variables, and a process that no launcher has started: it is the only rank."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from importlib.util import find_spec

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
CLOUDS = ("AZUREML_EXPERIMENT_ID", "SM_TRAINING_ENV")
"""DeepSpeed translates their variables itself, as it does MPI's where mpi4py is there."""


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
