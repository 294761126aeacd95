"""Ctrl-C, SIGTERM and SIGUSR1 (a scheduler's warning) end a run at the next step, on all ranks together, with a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def leave_signals_to_the_rank(worker: int) -> None:
    """For loader processes: schedulers signal them too, and a rank whose loader has died of it saves nothing."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interrupted(Exception):
    """A signal has asked the run to stop, and it has stopped in order; run it again to go on."""


class StopSignal:
    """Remembers SIGINT, SIGTERM and SIGUSR1 instead of dying of them.

    A signal reaches the ranks at different steps, and may miss some. Ranks therefore never act on :attr:`received` alone, but
    on its sum over ranks, which travels with a collective that every step has anyway.
    """

    def __init__(self) -> None:
        self.received = False
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True
