"""Ctrl-C and SIGTERM end a run at the next step, on all ranks together, with a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupted(Exception):
    """A signal has asked the run to stop, and it has stopped in order; run it again to go on."""


class StopSignal:
    """Remembers SIGINT and SIGTERM instead of dying of them.

    A signal reaches the ranks at different steps, and may miss some. Ranks therefore never act on :attr:`received` alone, but
    on its sum over ranks, which travels with a collective that every step has anyway.
    """

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True
