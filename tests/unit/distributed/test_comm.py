from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import pytest
import torch.distributed as dist
from deepspeed.comm.torch import build_shm_op
from deepspeed.ops.op_builder import OpBuilder

from gdps_ds.distributed.comm import Communicator, MeetingError
from gdps_ds.distributed.environment import CLOUDS, MPI, NAMES, EnvironmentFault, is_alone, little_shared_memory
from tests.launch import environment

TRAINS_ALONE = """
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.watchdog import Watchdog
import torch.distributed as dist
comm = Communicator.start(0, 60.0)
watchdog = Watchdog.start(comm, 60.0)
watchdog.close()
print(comm.rank, comm.world_size, dist.get_world_size(), comm.from_main(lambda: "here"))
"""
ALL = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher has said; it is forgotten after the test."""
    for name, value in (ALL | {"RANK": "0", "WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(other.port))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: dist.TCPStore("127.0.0.1", other.port, is_master=True))
    place = rf"127\.0\.0\.1:{other.port} \(MASTER_ADDR, MASTER_PORT\)"
    with pytest.raises(MeetingError, match=rf"ranks cannot meet at {place}: .*EADDRINUSE.*another \(deepspeed --master_port"):
        Communicator.start(0)


def test_no_extension_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectives in shared memory would need a compiler where a run starts, and nothing here calls them."""
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: build_shm_op())
    monkeypatch.setattr(OpBuilder, "load", lambda builder: pytest.fail("compiled"))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    assert Communicator.start(0).world_size == 1


def test_a_process_that_no_launcher_has_started_trains_alone() -> None:
    """DeepSpeed would ask MPI, of which there need be none."""
    without = {name: value for name, value in environment().items() if name not in (*NAMES, *MPI, *CLOUDS)}
    result = subprocess.run([sys.executable, "-c", TRAINS_ALONE], env=without, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "0 1 1 here"


def test_a_process_that_only_translates_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name)
    comm = Communicator.start(0, engine=False)
    assert (comm.rank, comm.world_size) == (0, 1)
    assert not dist.is_initialized() and "RANK" not in os.environ


def test_one_process_is_told_from_several_that_do_not_know_of_each_other() -> None:
    """Each of several would train alone, in one run directory."""
    assert is_alone({}) and is_alone({"MASTER_PORT": "29500"}) and is_alone({"SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "1"})
    assert not is_alone(ALL) and not is_alone(dict.fromkeys(CLOUDS, "x"))
    for found, message in (
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun has started 4 tasks, but RANK is not set; start ranks with deepspeed"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "MPI has started several processes, but RANK is not set; install mpi4py"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT: not in the environment"),
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: not in the environment"),
    ):
        with pytest.raises(EnvironmentFault, match=message):
            is_alone(found)
    for name in NAMES:
        with pytest.raises(EnvironmentFault, match=rf"^{name}: not in the environment"):
            is_alone({other: value for other, value in ALL.items() if other != name})


def test_ranks_that_were_started_by_halves_are_told_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(MeetingError, match="MASTER_PORT: not in the environment, unlike other variables of ranks; start ranks"):
        Communicator.start(0)


def test_a_container_with_little_shared_memory_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def of(size: int, free: int) -> None:
        monkeypatch.setattr(
            os, "statvfs", lambda folder: SimpleNamespace(f_frsize=4096, f_blocks=size * 256, f_bavail=free * 256)
        )

    of(64, 60)
    warning = little_shared_memory(8, tmp_path)
    assert warning is not None
    assert warning.startswith(
        f"{tmp_path} has 64 MiB, 60 of them free; 8 ranks on a node may need more for NCCL: docker run --shm"
    )
    assert little_shared_memory(1, tmp_path) is None
    assert little_shared_memory(8, tmp_path / "nowhere") is None
    of(8192, 8000)
    assert little_shared_memory(8, tmp_path) is None
