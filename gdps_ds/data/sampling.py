"""Which utterances meet in which micro-batch: arithmetic on (seed, epoch, position), the same on every rank.

The order of the global micro-batches is a pure function of the corpus and the settings. An update takes the next
``train.micro_batches`` of them and rank r of W works on every W-th, so 1, 2 or 4 ranks make the same updates, and a
run resumes from a :class:`Position` without replaying anything: of an epoch of millions, only one chunk is ever sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from gdps_ds.data.manifest import DataError

Indices = NDArray[np.int64]
Draw = tuple[int, int]
"""An utterance's index and the epoch that draws it, which says how it is augmented."""

LENGTH_JITTER = 0.1
"""Lengths are sorted after stretching each by up to this share: neighbours change between epochs, padding hardly."""

CHUNK = 2**17
"""Draws that are sorted by length together: enough for batches of like lengths, and quick to sort."""

_CYCLE, _CHUNK = 0, 1  # keep the seeds of the two kinds of draws apart


def length_batches(lengths: NDArray[np.integer], *, max_frames: int, max_utterances: int) -> list[Indices]:
    """Every utterance once, longest first, for dev losses and decoding: what does not fit in memory fails at once."""
    _check(lengths, max_frames, max_utterances)
    return _cut(np.argsort(-lengths.astype(np.int64), kind="stable"), lengths, max_frames, max_utterances)


class Draws:
    """The utterances of every epoch, a chunk at a time; an epoch has as many draws as there are utterances.

    Each language is an endless chain of fresh permutations, of which an epoch takes the next stretch, and a chunk of the
    epoch its even share. So a language comes round completely before an utterance repeats, however few or many draws an
    epoch gives it; at temperature 1 every utterance is drawn once an epoch.

    Args:
        languages: (N,) language index of each utterance.
        rows: (M,) the utterances that are drawn at all; None draws all.
        temperature: language l gets draws in proportion to n_l ** (1 / temperature).
    """

    def __init__(self, languages: NDArray[np.integer], *, seed: int, temperature: float, rows: Indices | None = None) -> None:
        rows = np.arange(len(languages)) if rows is None else rows
        drawn = languages[rows]
        counts = np.bincount(drawn)
        self.chunks = -(-len(drawn) // CHUNK)
        self._quotas: list[int] = _quotas(counts, temperature).tolist()
        pools = [rows[drawn == language] for language in range(len(counts))]
        self._sizes = [pool.size for pool in pools]
        # Two of each, because a chunk may straddle them.
        self._permutations = [
            lru_cache(maxsize=2)(partial(_permutation, pool, seed, language)) for language, pool in enumerate(pools)
        ]

    def chunk(self, epoch: int, number: int) -> Indices:
        """The utterances of one of an epoch's ``chunks``, grouped by language."""
        parts = [np.empty(0, dtype=np.int64)]
        for language, (quota, size) in enumerate(zip(self._quotas, self._sizes, strict=True)):
            start = epoch * quota + quota * number // self.chunks
            stop = epoch * quota + quota * (number + 1) // self.chunks
            for cycle in range(start // max(size, 1), -(-stop // max(size, 1))):
                first = cycle * size
                parts.append(self._permutations[language](cycle)[max(start - first, 0) : stop - first])
        return np.concatenate(parts)


@dataclass(frozen=True, order=True)
class Position:
    """The next global micro-batch of a run: number ``batch`` of chunk ``chunk`` of ``epoch``."""

    epoch: int = 0
    chunk: int = 0
    batch: int = 0


class MicroBatches:
    """The endless sequence of global micro-batches of a corpus.

    Moving to any :class:`Position` costs a permutation of the corpus and the sort of one chunk.

    Args:
        lengths: (N,) frames of each utterance.
        languages, seed, temperature, rows: as for :class:`Draws`.
        max_frames: a batch's longest utterance times its count stays within this.

    Raises:
        DataError: no utterances, an empty utterance, or one that does not fit into ``max_frames``.
    """

    def __init__(
        self,
        lengths: NDArray[np.integer],
        languages: NDArray[np.integer],
        *,
        seed: int,
        temperature: float,
        max_frames: int,
        max_utterances: int,
        rows: Indices | None = None,
    ) -> None:
        _check(lengths, max_frames, max_utterances)
        self._lengths, self._seed = lengths, seed
        self._max_frames, self._max_utterances = max_frames, max_utterances
        self._draws = Draws(languages, seed=seed, temperature=temperature, rows=rows)
        # Two, because an update may straddle them.
        self._batches_of = lru_cache(maxsize=2)(self._chunk)

    def _chunk(self, epoch: int, number: int) -> list[Indices]:
        drawn = self._draws.chunk(epoch, number)
        random = np.random.default_rng([self._seed, _CHUNK, epoch, number])
        stretched = self._lengths[drawn] * (1.0 + LENGTH_JITTER * random.random(len(drawn)))
        order = drawn[np.argsort(stretched, kind="stable")]
        batches = _cut(order, self._lengths, self._max_frames, self._max_utterances)
        return [batches[number] for number in random.permutation(len(batches))]

    def epoch(self, epoch: int) -> Iterator[Indices]:
        """The micro-batches of one epoch, in order: arrays of utterance indices."""
        for number in range(self._draws.chunks):
            yield from self._batches_of(epoch, number)

    def advance(self, position: Position, count: int) -> Position:
        """The position ``count`` micro-batches later; always names a batch that exists.

        Raises:
            DataError: ``position`` lies outside its epoch, so it comes from another corpus or another budget.
        """
        epoch, chunk, batch = position.epoch, position.chunk, position.batch
        if chunk >= self._draws.chunks or batch > len(self._batches_of(epoch, chunk)):
            raise DataError(
                f"batch {batch} of chunk {chunk} of epoch {epoch} does not exist: the corpus, data.max_frames, "
                "data.max_utterances or data.temperature changed since the checkpoint"
            )
        batch += count
        while batch >= (size := len(self._batches_of(epoch, chunk))):
            batch -= size
            epoch, chunk = (epoch, chunk + 1) if chunk + 1 < self._draws.chunks else (epoch + 1, 0)
        return Position(epoch, chunk, batch)

    def after(self, position: Position) -> Iterator[tuple[int, Indices]]:
        """The micro-batches from ``position`` on, each with its epoch; without end."""
        while True:
            position = self.advance(position, 0)
            batches = self._batches_of(position.epoch, position.chunk)
            for batch in batches[position.batch :]:
                yield position.epoch, batch
            position = replace(position, batch=len(batches))

    def take(self, position: Position, count: int) -> list[Indices]:
        """The ``count`` global micro-batches from ``position`` on, across epochs where need be."""
        return [batch for _, batch in islice(self.after(position), count)]

    def padding_waste(self, epoch: int = 0) -> float:
        """Share of an epoch's frames that is padding."""
        lengths = [self._lengths[batch] for batch in self.epoch(epoch)]
        return 1.0 - sum(int(part.sum()) for part in lengths) / sum(int(part.max()) * part.size for part in lengths)


class UpdateSampler(Sampler[list[Draw]]):
    """A torch ``batch_sampler``: one rank's share of the next ``updates`` updates, in order, as indices with their epochs.

    Rank r of W works on micro-batches r, r + W, ... of the ``per_update`` that make up an update.

    Raises:
        DataError: ``per_update`` is not a multiple of ``world_size``; ranks would make unequal numbers of steps.
    """

    def __init__(
        self,
        micro_batches: MicroBatches,
        start: Position,
        *,
        updates: int,
        per_update: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if per_update % world_size:
            raise DataError(f"train.micro_batches ({per_update}) must be a multiple of the world size ({world_size})")
        self._micro_batches, self._start = micro_batches, start
        self._updates, self._per_update = updates, per_update
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return self._updates * (self._per_update // self._world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        count = self._updates * self._per_update
        for epoch, batch in islice(self._micro_batches.after(self._start), self._rank, count, self._world_size):
            yield [(index, epoch) for index in batch.tolist()]


def _check(lengths: NDArray[np.integer], max_frames: int, max_utterances: int) -> None:
    if lengths.size == 0:
        raise DataError("no utterances to make batches of")
    if lengths.min() < 1:
        raise DataError(f"utterance number {lengths.argmin()} has no frames")
    if lengths.max() > max_frames:
        raise DataError(
            f"utterance number {lengths.argmax()} has {lengths.max()} frames, but a batch holds {max_frames}: "
            "raise max_frames or lower data.max_seconds"
        )
    if max_utterances < 1:
        raise DataError(f"max_utterances must be at least 1, found {max_utterances}")


def _quotas(counts: NDArray[np.integer], temperature: float) -> Indices:
    """Draws of each language: counts ** (1 / temperature), scaled to the corpus size by largest remainder."""
    weights = counts ** (1.0 / temperature)
    exact = counts.sum() * weights / weights.sum()
    quotas = np.floor(exact).astype(np.int64)
    missing = counts.sum() - quotas.sum()
    quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
    return quotas


def _permutation(pool: Indices, seed: int, language: int, cycle: int) -> Indices:
    return np.random.default_rng([seed, _CYCLE, language, cycle]).permutation(pool)


def _cut(order: Indices, lengths: NDArray[np.integer], max_frames: int, max_utterances: int) -> list[Indices]:
    """Cut ``order`` into runs as long as the budget (padding included) allows."""
    edges, longest = [0], 0
    for end, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length)
        count = end - edges[-1] + 1
        if count > max_utterances or longest * count > max_frames:
            edges.append(end)
            longest = length
    return [order[start:end] for start, end in pairwise([*edges, len(order)])]
