"""The handful of collectives that the package uses, in one narrow object that is passed in.

Ranks stay alive because they do the same things in the same order: rank 0 computes, *success or its error* is broadcast,
and what all ranks must agree on is compared by digest before it is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from gdps_ds.distributed.environment import EnvironmentFault, is_alone, little_shared_memory, variables_of_one

T = TypeVar("T")


class RankZeroError(RuntimeError):
    """Something that only rank 0 does has failed; raised on every rank with rank 0's message."""


class MeetingError(RuntimeError):
    """The ranks have not come together; the message says where they were to meet."""


class RankError(RuntimeError):
    """Something that every rank does has failed on some; raised on every rank with their messages."""


class Communicator:
    """Collectives over all ranks. Every method is called by every rank, in the same order."""

    def __init__(self, rank: int, world_size: int, local_rank: int, device: torch.device) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.device = device
        self._timeout: float | None = None

    @classmethod
    def start(cls, local_rank: int, timeout: float | None = None, *, engine: bool = True) -> Communicator:
        """Join the process group that the launcher's environment describes; alone, where no launcher has started this process.

        Args:
            timeout: seconds that ranks wait for each other, here and in collectives; None takes DeepSpeed's default.
            engine: whether there will be an engine, which needs a process group even where this process is alone.

        Raises:
            MeetingError: rank 0's port is in use, a rank has not come in time, or several processes do not know of each other.
        """
        try:
            alone = is_alone(os.environ)
        except EnvironmentFault as error:
            raise MeetingError(str(error)) from None
        if alone and not engine:
            return cls(0, 1, 0, torch.device(get_accelerator().current_device_name()))
        if alone:
            os.environ.update(variables_of_one() | os.environ)
        # On CPU DeepSpeed would compile collectives in shared memory, which only its inference uses: that needs a compiler, a
        # build that is killed leaves a lock for which later starts wait without end, and every rank leaves 66 MB in /dev/shm.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        accelerator = get_accelerator()
        if accelerator.device_name() != "cpu":
            accelerator.set_device(local_rank)
        waiting = {} if timeout is None else {"timeout": timedelta(seconds=timeout)}
        try:
            deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False, **waiting)
        except dist.DistError as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} (MASTER_ADDR, MASTER_PORT)"
            advice = "where another run has the port, take another (deepspeed --master_port)"
            raise MeetingError(f"ranks cannot meet at {place}: {str(error).partition(chr(10))[0]}; {advice}") from error
        comm = cls(dist.get_rank(), dist.get_world_size(), local_rank, torch.device(accelerator.current_device_name()))
        comm._timeout = timeout
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", accelerator.device_count())))
        if local_rank == 0 and comm.device.type == "cuda" and (warning := little_shared_memory(min(ranks, comm.world_size))):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        return comm

    @staticmethod
    def stop() -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def limit_waiting(self, timeout: float | None = None) -> None:
        """Let every process group that there is by now wait for ``timeout`` seconds, or as long as was said last.

        A group that a library makes later, as DeepSpeed does of the world's, has torch's 30 minutes until this is called again.
        """
        self._timeout = self._timeout if timeout is None else timeout
        if self._timeout is not None and dist.is_initialized():
            for group in process_groups():
                c10d._set_pg_timeout(timedelta(seconds=self._timeout), group)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks; ``tensor`` stays as it is."""
        total = tensor.detach().to(self.device, copy=True)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def sum_floats(self, *values: float) -> list[float]:
        """Sums over ranks of a few numbers, in float64, in one collective."""
        return self.sum(torch.tensor(values, dtype=torch.float64)).tolist()

    def gather(self, value: T) -> list[T]:
        """Every rank's picklable ``value``, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, compute: Callable[[], T]) -> T:
        """Run ``compute`` on rank 0 and give its result to all ranks.

        Raises:
            RankZeroError: on every rank if it failed on rank 0, with that error's message.
        """
        outcome: list[Any] = [None, None]
        cause: Exception | None = None
        if self.is_main:
            try:
                outcome[0] = compute()
            except Exception as error:
                cause = error
                outcome[1] = f"{type(error).__name__}: {error}"
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, src=0, device=self.device)
        if outcome[1] is not None:
            raise RankZeroError(outcome[1]) from cause
        return outcome[0]

    def everywhere(self, compute: Callable[[], T], what: str) -> T:
        """Run ``compute`` on every rank; each keeps its own result.

        Raises:
            RankError: on every rank if it failed on any, naming the ranks and their errors.
        """
        result: Any = None
        cause: Exception | None = None
        try:
            result = compute()
        except Exception as error:
            cause = error
        errors = self.gather(None if cause is None else f"{type(cause).__name__}: {cause}")
        if any(errors):
            listing = "; ".join(f"rank {rank}: {error}" for rank, error in enumerate(errors) if error)
            raise RankError(f"{what} failed ({listing})") from cause
        return result

    def agree(self, digest: str, what: str) -> None:
        """Check that every rank holds the same ``digest`` of ``what``.

        Raises:
            RuntimeError: on every rank, listing the digests, if they differ.
        """
        digests = self.gather(digest)
        if len(set(digests)) > 1:
            listing = ", ".join(f"rank {rank}: {each[:12]}" for rank, each in enumerate(digests))
            raise RuntimeError(f"ranks disagree on {what} ({listing}); are all nodes on the same version and files?")


def process_groups() -> list[dist.ProcessGroup]:
    """The process groups that this rank is in."""
    return [group for group in c10d._world.pg_map if isinstance(group, dist.ProcessGroup)]
