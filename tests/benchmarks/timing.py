"""Ratios of two ways of doing a thing, measured side by side: machine noise is larger than what is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Work = Callable[[], object]


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(left: Work, right: Work, rounds: int = 7) -> float:
    """Median over rounds of time(left) / time(right), the two in turn, after one round that does not count."""
    seconds(left), seconds(right)
    return statistics.median(seconds(left) / seconds(right) for _ in range(rounds))
