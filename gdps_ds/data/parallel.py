"""Map over utterances in a pool of processes, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    progress: bool,
    label: str,
    chunk: int = 32,
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in the order of ``items`` whatever the number of ``workers``.

    ``workers`` 0 works in this process. The first error of any item is raised. Processes are spawned, because a fork
    of a process that holds threads of torch or a collective library may hang.
    """
    with tqdm(desc=label, total=len(items), disable=not progress) as bar:
        if workers == 0:
            for item in items:
                yield function(item)
                bar.update()
            return
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for result in pool.map(function, items, chunksize=chunk):
                yield result
                bar.update()
