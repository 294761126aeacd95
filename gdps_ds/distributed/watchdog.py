"""Ends the job on every rank once one of them has failed, stands still or is gone, and says why in the last line.

Ranks wait for each other in collectives; where one stops, the others would wait until those time out, and then complain about
the connection. So each rank runs a thread that talks to the others over the process group's key-value store, which is not
stuck when collectives are:

    pulse/<rank>   a rank's :class:`Pulse`, once a second
    cause          why the job ends; the first to write it is right
    ended          how many ranks have read it and are gone

Rank 0 alone reads the pulses (one request for all of them), so the store's load grows with the ranks and not with their
square.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import NoReturn

import torch
import torch.distributed as dist

from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.environment import LARGER, is_want_of_shared_memory

EXIT_CODE = 1
INTERVAL = 1.0
"""Seconds between pulses."""
SILENCE = 3.0
"""Seconds without a pulse after which a rank is held to be the reason why a collective broke."""
PATIENCE = 8.0
"""Seconds that a rank waits for others at the end: for the cause, or to be the last to speak."""
WORK = 0.01
"""Seconds of processor time that show that a main thread without beats goes on."""


@dataclass(frozen=True)
class Pulse:
    """What a rank tells of itself.

    Attributes:
        number: counts the pulses; it stands still when the process is gone.
        beats: steps that the main thread has told of.
        still: seconds since the last of them; None where none are expected.
        doing: what the main thread said it was about to do.
    """

    number: int
    beats: int
    still: float | None
    doing: str


def verdict(pulses: Sequence[Pulse], silent: Sequence[float], timeout: float) -> str | None:
    """Why the job must end, or None.

    Ranks that stand still are many, for the others wait for the one that does: that is the one with the fewest beats.

    Args:
        pulses: of each rank.
        silent: seconds since a new pulse of each rank.
        timeout: seconds that a rank may stand still, or be silent.
    """
    for rank, seconds in enumerate(silent):
        if seconds >= timeout:
            return f"nothing has been heard of rank {rank} for {seconds:.0f} s; its node or the network is lost"
    waiting = [(pulse.beats, -pulse.still, rank) for rank, pulse in enumerate(pulses) if pulse.still is not None]
    if not waiting or -min(waiting)[1] < timeout:
        return None
    fewest, _, rank = min(waiting)
    who = "every rank stands" if len(waiting) > 1 and fewest == max(waiting)[0] else f"rank {rank} stands"
    return f"{who} still since {pulses[rank].still:.0f} s: {pulses[rank].doing} (guard.timeout: {timeout:g})"


def is_consequence(error: BaseException) -> bool:
    """Whether an error may only say that another rank has left a collective, or that it has not come to one."""
    text = str(error).lower()
    if is_want_of_shared_memory(text):
        return False
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text))


def _advice(error: BaseException) -> str:
    """The options behind an error that names none."""
    if isinstance(error, torch.OutOfMemoryError):
        return "; lower data.max_frames (where it translates, decode.max_frames), or take another ZeRO stage or offload"
    if is_want_of_shared_memory(str(error)):
        return f"; where /dev/shm is full, make it larger: {LARGER}"
    return ""


class Watchdog:
    """The thread of one rank.

    Args:
        store: a connection of its own, for a store's client does one thing at a time.
        timeout: seconds that a rank may stand still while it is watched, or be silent.
        end: ends the process with an exit code, whatever its other threads do.
    """

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, timeout: float, end: Callable[[int], object] = os._exit
    ) -> None:
        self._store, self._rank, self._world_size, self._timeout, self._end = store, rank, world_size, timeout, end
        self._beats, self._doing, self._watched, self._last = 0, "starting", False, time.monotonic()
        self._failure: str | None = None
        self._failed_at: float | None = None
        self._is_consequence = self._closing = False
        self._clock: int | None = None  # of the main thread's processor time, while it works alone
        self._used = 0.0
        self._wake = threading.Event()
        self._heard: list[tuple[Pulse | None, float]] = [(None, 0.0)] * world_size
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, comm: Communicator, timeout: float) -> Watchdog:
        """Watch the ranks of ``comm`` from now on."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
        return cls(dist.PrefixStore("watchdog", store), comm.rank, comm.world_size, timeout)

    # What the main thread calls ---------------------------------------------------------------------------------------

    def beat(self, doing: str) -> None:
        """Tell that the main thread goes on, and with what."""
        self._beats, self._doing, self._last = self._beats + 1, doing, time.monotonic()

    @contextlib.contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """The main thread beats inside this block, on all ranks equally often."""
        self.beat(what)
        self._watched = True
        try:
            yield
        finally:
            self._watched = False
        self.beat(f"after {what}")

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Rank 0 works in this block for as long as it needs, and the others, which enter it too, wait for rank 0.

        Such work tells of no steps: rank 0 stands still once its main thread uses no processor, as where it waits for a file
        system or a lock. Ranks that only wait are not watched.
        """
        watched, self._watched = self._watched, False
        self.beat(what)
        if self._rank == 0:
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
            self._watched = True
        try:
            yield
        finally:
            self._clock, self._watched = None, watched
        self.beat(f"after {what}")

    def fail(self, error: Exception, *, told: bool = False) -> NoReturn:
        """End the job because of ``error``, on every rank. Does not return.

        Args:
            told: the message says it all, and needs no traceback.
        """
        self._is_consequence = is_consequence(error)
        if not told and not self._is_consequence:
            traceback.print_exception(error)
        self._failed_at = time.monotonic()
        found = f"rank {self._rank}, {self._doing}: {type(error).__name__}: {error}{_advice(error)}"
        self._failure = str(error) if told else found
        self._wake.set()
        self._thread.join(3 * PATIENCE)
        # The thread has not ended the process: it is stuck in a request to a store that cannot be reached.
        self._say(f"{self._failure}\ntrain: rank {self._rank} cannot reach rank 0; its node or the network is lost")
        self._end(EXIT_CODE)
        raise SystemExit(EXIT_CODE)

    def close(self) -> None:
        """Watch no longer. All ranks do this, and then meet in a barrier, before rank 0 ends, and the store with it."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    # The thread -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            cause = self._watch()
            if cause is not None:
                self._leave(cause)
        except Exception as error:
            # The store went with rank 0's process, which says why if it could. The launcher shall find that one first: it
            # reports the exit code of the rank whose end it sees first.
            time.sleep(2 * INTERVAL)
            reason = (self._failure or str(error)).partition("\n")[0]
            self._say(f"rank {self._rank}, {self._doing}: rank 0 has gone ({reason})")
            self._end(EXIT_CODE)

    def _watch(self) -> str | None:
        """Exchange pulses until the job must end, and give the cause; None when there is no need to watch any longer."""
        for number in itertools.count():
            if self._closing:
                return None
            self._notice_work()
            still = time.monotonic() - self._last if self._watched else None
            self._store.set(f"pulse/{self._rank}", json.dumps(astuple(Pulse(number, self._beats, still, self._doing))))
            found = self._known() or self._own_failure()
            if found is not None:
                return self._store.compare_set("cause", "", found).decode()
            self._wake.wait(INTERVAL)
        return None

    def _notice_work(self) -> None:
        clock = self._clock
        if clock is not None and (used := time.clock_gettime(clock)) - self._used > WORK:
            self._used, self._last = used, time.monotonic()

    def _own_failure(self) -> str | None:
        """What the main thread has failed of; a broken collective only counts when nobody else has a better cause by then."""
        if self._failed_at is None or not self._is_consequence:
            return self._failure
        if gone := self._gone():
            return f"rank {', '.join(gone)} ended without a word: killed, out of memory, or its node lost ({self._doing})"
        self._wake.clear()
        return self._failure if time.monotonic() - self._failed_at > PATIENCE else None

    def _known(self) -> str | None:
        """The cause, where a rank has written it or rank 0 sees it."""
        if self._store.check(["cause"]):
            return self._store.get("cause").decode()
        keys = [f"pulse/{rank}" for rank in range(self._world_size)]
        if self._rank != 0 or not self._store.check(keys):  # some have not begun
            return None
        pulses = [Pulse(*json.loads(value)) for value in self._store.multi_get(keys)]
        now = time.monotonic()
        self._heard = [
            (pulse, since if before is not None and before.number == pulse.number else now)
            for pulse, (before, since) in zip(pulses, self._heard, strict=True)
        ]
        return verdict(pulses, self._silences(), self._timeout)

    def _silences(self) -> list[float]:
        """Seconds since a new pulse of each rank, as rank 0 hears them."""
        return [0.0 if pulse is None else time.monotonic() - since for pulse, since in self._heard]

    def _gone(self) -> list[str]:
        return [str(rank) for rank, seconds in enumerate(self._silences()) if seconds > SILENCE]

    def _leave(self, cause: str) -> None:
        """End this process; rank 0 goes last, because the store ends with it, and has the last word."""
        if cause.startswith((f"rank {self._rank} stands", "every rank stands")):
            faulthandler.dump_traceback(file=sys.stderr)
        ended, present = self._store.add("ended", 1), self._world_size - len(self._gone())
        deadline = time.monotonic() + PATIENCE
        while self._rank == 0 and ended < present and time.monotonic() < deadline:
            time.sleep(INTERVAL / 20)
            ended = self._store.add("ended", 0)
        if self._rank == 0:
            self._say(cause)
        self._end(EXIT_CODE)

    @staticmethod
    def _say(text: str) -> None:
        sys.stdout.flush()
        print(f"train: {text}", file=sys.stderr, flush=True)
