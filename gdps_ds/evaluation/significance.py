"""Whether two systems differ by more than chance: resampled scores, paired tests and intervals.

Paired bootstrap resampling (Koehn 2004, "Statistical significance tests for machine translation evaluation") draws test sets
from the test set. Approximate randomisation (Riezler & Maxwell 2005, "On some pitfalls in automatic evaluation and significance
testing for MT") swaps the two systems' translations of random utterances. Draws and p-values are those of sacreBLEU's paired
tests; unlike there, draws are kept as arrays, so that a mean over languages is tested by the mean of independent draws in each
language. One thing differs: a draw as large as the observed difference counts as at least as large, so that a system compared
with itself has p = 1.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gdps_ds.evaluation.metrics import Statistics

Draws = NDArray[np.float64]
"""(R,) or (T,): a score, or a difference of scores, in every resample or trial."""
BLOCK = 1000
"""Draws made at a time: with 10,000 utterances these are 80 MB of indices."""
ROUNDING = 1e-9


class Interval(NamedTuple):
    low: float
    high: float


def generator(seed: int, purpose: str, language: str) -> np.random.Generator:
    """Seeded by names, so that a language has the same draws whatever other languages and systems are compared."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), zlib.crc32(language.encode())])


def bootstrap(statistics: Statistics, resamples: int, rng: np.random.Generator) -> Draws:
    """(R,) scores of resampled test sets; two systems are paired by generators in the same state."""
    count = len(statistics.rows)

    def sums(size: int) -> NDArray[np.float64]:
        drawn = rng.choice(count, size=(size, count), replace=True)
        weights = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
        return weights @ statistics.rows

    return _scores(statistics, _blocks(resamples, sums))


def randomise(first: Statistics, second: Statistics, trials: int, rng: np.random.Generator) -> Draws:
    """(T,) differences, first minus second, after swapping the translations of half of the utterances at random."""
    gain = second.rows - first.rows

    def moved(size: int) -> NDArray[np.float64]:
        return rng.integers(2, size=(size, len(gain)), dtype=bool).astype(np.float64) @ gain

    shifts = list(_blocks(trials, moved))
    ours = _scores(first, (first.rows.sum(0) + shift for shift in shifts))
    return ours - _scores(second, (second.rows.sum(0) - shift for shift in shifts))


def bootstrap_p(differences: Draws, observed: float) -> float:
    """p-value of an observed difference from the differences of resampled test sets, as sacreBLEU (and Moses) have it:
    where the resamples agree on the better system, the one-sided p-value of no difference."""
    sizes = np.abs(differences)
    return _share_as_large(sizes - sizes.mean(), observed)


def randomisation_p(differences: Draws, observed: float) -> float:
    """Two-sided p-value of an observed difference from the differences of trials in which the systems are swapped."""
    return _share_as_large(np.abs(differences), observed)


def interval(draws: Draws, level: float = 0.95) -> Interval:
    """Percentile interval."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _share_as_large(draws: Draws, observed: float) -> float:
    """One is added to both counts: the observed assignment is one of those that chance could have made."""
    return float(((draws >= abs(observed) - ROUNDING).sum() + 1) / (len(draws) + 1))


def _blocks(total: int, make: Callable[[int], NDArray[np.float64]]) -> Iterator[NDArray[np.float64]]:
    for done in range(0, total, BLOCK):
        yield make(min(BLOCK, total - done))


def _scores(statistics: Statistics, sums: Iterator[NDArray[np.float64]]) -> Draws:
    return np.array([statistics.of_sum(row) for block in sums for row in block.tolist()])
