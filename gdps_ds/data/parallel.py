"""Map over utterances in a pool of processes, in order and as they come."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

from gdps_ds.data.manifest import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4
"""Parts a worker that are taken from the items before they are needed: enough to keep all busy, and few in memory."""


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    progress: bool,
    label: str,
    total: int | None = None,
    part: int = 32,
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in the order of ``items`` whatever the number of ``workers``.

    ``workers`` 0 works in this process. The first error of any item is raised. Items are taken, ``part`` at a time, only a
    little before their results are wanted.

    Raises:
        DataError: a process has ended without a word.
    """
    with tqdm(desc=label, total=total, disable=not progress) as bar:
        try:
            for result in _results(function, items, workers, part):
                yield result
                bar.update()
        except BrokenProcessPool as error:
            advice = "lower data.workers (launchers/prepare.py: --workers)"
            raise DataError(f"{label}: a worker process was killed, as the system does for want of memory; {advice}") from error


def parts_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items, the last one shorter."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def _results(function: Callable[[Item], Result], items: Iterable[Item], workers: int, size: int) -> Iterator[Result]:
    if workers == 0:
        yield from map(function, items)
        return
    # Spawned, because a fork of a process that holds threads of torch or a collective library may hang.
    ours = [number for number in signal.valid_signals() if _is_handled(number)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=ignore, initargs=(ours,)) as pool:
        pending: deque[Future[list[Result]]] = deque()
        try:
            for part in parts_of(items, size):
                pending.append(pool.submit(_each, function, part))
                if len(pending) > AHEAD * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:  # where this ends early, what is not begun is not wanted
                future.cancel()


def _is_handled(number: int) -> bool:
    return callable(handler := signal.getsignal(number)) and handler is not signal.default_int_handler


def ignore(numbers: Iterable[int]) -> None:
    """Schedulers signal all processes of a job: where this one outlives a signal, a worker that dies of it would be a fault."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _each(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]
