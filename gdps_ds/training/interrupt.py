"""Ctrl-C, SIGTERM and SIGUSR1 (a scheduler's warning) end a run at the next step, on all ranks together, with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from gdps_ds.data.parallel import ignore
from gdps_ds.distributed.comm import Communicator

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def leave_signals_to_the_rank(worker: int) -> None:
    """For loader processes: schedulers signal them too, and a rank whose loader has died of it saves nothing."""
    ignore(SIGNALS)


class Interrupted(BaseException):
    """A signal has asked the run to stop, and it has stopped in order; run it again to go on.

    Like KeyboardInterrupt no :class:`Exception`: what is interrupted must not take it for a fault of its data.
    """


class StopSignal:
    """Remembers SIGINT, SIGTERM and SIGUSR1 instead of dying of them.

    A signal reaches the ranks at different steps, and may miss some. Ranks therefore never act on :attr:`received` alone, but
    on its sum over ranks, which travels with a collective that every step has anyway.
    """

    def __init__(self) -> None:
        self.received = False
        self._interrupting = False
        for number in SIGNALS:
            signal.signal(number, self._remember)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """For work without steps or collectives: a signal ends the block at once, wherever the main thread is in it.

        Raises:
            Interrupted: a signal has come, or came before.
        """
        self._interrupting = True
        try:
            if self.received:
                raise Interrupted
            yield
        finally:
            self._interrupting = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self._interrupting:
            self._interrupting = False  # once: what the block does in its end is not interrupted again
            raise Interrupted


class Interruptible(Communicator):
    """``comm`` for long work of rank 0 alone: a signal to rank 0 ends it at once, one to another rank the run after it."""

    def __init__(self, comm: Communicator, stop: StopSignal) -> None:
        super().__init__(comm.rank, comm.world_size, comm.local_rank, comm.device)
        self._stop = stop

    def from_main(self, compute: Callable[[], T]) -> T:
        """Like :meth:`Communicator.from_main`.

        Raises:
            Interrupted: on every rank, if a signal has come to any.
        """

        def until_stopped() -> list[T]:
            try:
                with self._stop.interrupting():
                    return [compute()]
            except Interrupted:
                return []

        result = super().from_main(until_stopped)
        if not result or self.sum_floats(self._stop.received)[0]:
            raise Interrupted("stopped by a signal; what rank 0 was at is done again when the run is resumed")
        return result[0]
