"""Which utterances meet in which micro-batch: arithmetic on (seed, epoch, position), the same on every rank.

The order of the global micro-batches is a pure function of the corpus and the settings. An update takes the next
``train.micro_batches`` of them and rank r of W works on every W-th, so 1, 2 or 4 ranks make the same updates, and a
run resumes from a :class:`Position` without replaying anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from gdps_ds.data.manifest import DataError

Indices = NDArray[np.int64]

LENGTH_JITTER = 0.1
"""Lengths are sorted after stretching each by up to this share: neighbours change between epochs, padding hardly."""

_CYCLE, _EPOCH = 0, 1  # keep the seeds of the two kinds of draws apart


def epoch_batches(
    lengths: NDArray[np.integer],
    languages: NDArray[np.integer],
    *,
    seed: int,
    epoch: int,
    temperature: float,
    max_frames: int,
    max_utterances: int,
) -> list[Indices]:
    """The micro-batches of one epoch, in order: arrays of utterance indices.

    An epoch has as many draws as there are utterances. At temperature 1 every utterance is drawn once.

    Args:
        lengths: (N,) frames of each utterance.
        languages: (N,) language index of each utterance.
        temperature: language l gets draws in proportion to n_l ** (1 / temperature).
        max_frames: a batch's longest utterance times its count stays within this.

    Raises:
        DataError: no utterances, an empty utterance, or one that does not fit into ``max_frames``.
    """
    _check(lengths, max_frames, max_utterances)
    drawn = draw(languages, seed=seed, epoch=epoch, temperature=temperature)
    random = np.random.default_rng([seed, _EPOCH, epoch])
    stretched = lengths[drawn] * (1.0 + LENGTH_JITTER * random.random(len(drawn)))
    batches = _cut(drawn[np.argsort(stretched, kind="stable")], lengths, max_frames, max_utterances)
    return [batches[number] for number in random.permutation(len(batches))]


def length_batches(lengths: NDArray[np.integer], *, max_frames: int, max_utterances: int) -> list[Indices]:
    """Every utterance once, longest first, for dev losses and decoding: what does not fit in memory fails at once."""
    _check(lengths, max_frames, max_utterances)
    return _cut(np.argsort(-lengths.astype(np.int64), kind="stable"), lengths, max_frames, max_utterances)


def draw(languages: NDArray[np.integer], *, seed: int, epoch: int, temperature: float) -> Indices:
    """The utterances of an epoch, grouped by language: (N,) indices.

    Each language is an endless chain of fresh permutations, of which an epoch takes the next stretch. So a language
    comes round completely before an utterance repeats, however few or many draws an epoch gives it.
    """
    counts = np.bincount(languages)
    quotas = _quotas(counts, temperature)
    pools = np.split(np.argsort(languages, kind="stable"), np.cumsum(counts)[:-1])
    return np.concatenate(
        [
            _stretch(pool, start=epoch * quota, count=quota, seed=(seed, _CYCLE, language))
            for language, (pool, quota) in enumerate(zip(pools, quotas.tolist(), strict=True))
        ]
    )


@dataclass(frozen=True, order=True)
class Position:
    """The next global micro-batch of a run: number ``batch`` of ``epoch``."""

    epoch: int = 0
    batch: int = 0


class MicroBatches:
    """The endless sequence of global micro-batches of a corpus; arguments as for :func:`epoch_batches`.

    Moving to any :class:`Position` costs at most one epoch's sort. Two epochs are kept, because an update may
    straddle them.
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
    ) -> None:
        _check(lengths, max_frames, max_utterances)
        self._lengths = lengths

        @lru_cache(maxsize=2)
        def batches_of(epoch: int) -> list[Indices]:
            return epoch_batches(
                lengths,
                languages,
                seed=seed,
                epoch=epoch,
                temperature=temperature,
                max_frames=max_frames,
                max_utterances=max_utterances,
            )

        self._batches_of = batches_of

    def advance(self, position: Position, count: int) -> Position:
        """The position ``count`` micro-batches later; always names a batch that exists.

        Raises:
            DataError: ``position`` lies outside its epoch, so it comes from another corpus or another budget.
        """
        epoch, batch = position.epoch, position.batch
        if batch > len(self._batches_of(epoch)):
            raise DataError(
                f"batch {batch} of epoch {epoch} does not exist ({len(self._batches_of(epoch))} batches): the corpus, "
                "data.max_frames, data.max_utterances or data.temperature changed since the checkpoint"
            )
        batch += count
        while batch >= (size := len(self._batches_of(epoch))):
            epoch, batch = epoch + 1, batch - size
        return Position(epoch, batch)

    def take(self, position: Position, count: int) -> list[Indices]:
        """The ``count`` global micro-batches from ``position`` on, across epochs where need be."""
        taken: list[Indices] = []
        while len(taken) < count:
            position = self.advance(position, 0)
            piece = self._batches_of(position.epoch)[position.batch :][: count - len(taken)]
            taken += piece
            position = self.advance(position, len(piece))
        return taken

    def padding_waste(self, epoch: int = 0) -> float:
        """Share of an epoch's frames that is padding."""
        batches = self._batches_of(epoch)
        lengths = [self._lengths[batch] for batch in batches]
        return 1.0 - sum(int(part.sum()) for part in lengths) / sum(int(part.max()) * part.size for part in lengths)


class UpdateSampler(Sampler[list[int]]):
    """A torch ``batch_sampler``: one rank's share of the next ``updates`` updates, in order.

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

    def __iter__(self) -> Iterator[list[int]]:
        position = self._start
        for _ in range(self._updates):
            for batch in self._micro_batches.take(position, self._per_update)[self._rank :: self._world_size]:
                yield batch.tolist()
            position = self._micro_batches.advance(position, self._per_update)


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


def _stretch(pool: Indices, *, start: int, count: int, seed: tuple[int, ...]) -> Indices:
    """Elements ``start`` to ``start + count`` of the endless chain of permutations of ``pool``."""
    if count == 0:
        return pool[:0]
    first, last = start // pool.size, (start + count - 1) // pool.size
    chain = [np.random.default_rng([*seed, cycle]).permutation(pool) for cycle in range(first, last + 1)]
    return np.concatenate(chain)[start - first * pool.size :][:count]


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
