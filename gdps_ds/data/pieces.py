"""Audio that is longer than what a model is given at once, cut into pieces for translation.

The rule: S samples become the fewest pieces, n, of at most the longest allowed length; they are equally long, piece k being the
samples from k S // n up to (k + 1) S // n. Each is normalised by itself, as an utterance of training is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

import numpy as np
from numpy.typing import NDArray

from gdps_ds.data.audio import SAMPLE_RATE
from gdps_ds.data.collate import Example, SpeechDataset
from gdps_ds.data.features import frames_of_samples, log_mel, waveform_of
from gdps_ds.data.sampling import Indices, length_batches


def bounds_of(samples: int, longest: int) -> list[int]:
    """Where ``samples`` are cut, from 0 to ``samples``: pieces of at most ``longest``."""
    count = max(1, -(-samples // longest))
    return [number * samples // count for number in range(count + 1)]


@dataclass(frozen=True)
class Piece:
    """Samples ``start`` to ``stop`` of utterance ``index`` of a set; ``whole`` where those are all."""

    index: int
    start: int
    stop: int
    whole: bool


class Pieces:
    """What a set is translated from: its utterances in order, long ones in pieces, those without a frame left out.

    Attributes:
        pieces: each of them. lengths: (P,) frames. whole: (P,) which are whole utterances.
        counts: (N,) pieces of each utterance of the set; 0 for what cannot be translated.
    """

    def __init__(self, dataset: SpeechDataset, max_seconds: float) -> None:
        self._dataset, self._waveform = dataset, (-1, np.empty(0, dtype=np.float32))
        self.pieces = list(_pieces(dataset, math.floor(max_seconds * SAMPLE_RATE)))
        frames = [
            int(dataset.lengths[each.index]) if each.whole else frames_of_samples(each.stop - each.start)
            for each in self.pieces
        ]
        self.lengths = np.array(frames, dtype=np.int32)
        self.whole = np.array([each.whole for each in self.pieces], dtype=np.bool_)
        found = Counter(piece.index for piece in self.pieces)
        self.counts = [found[index] for index in range(len(dataset))]

    def batches(self, ranks: int, *, max_frames: int, max_utterances: int) -> list[Indices]:
        """:func:`~gdps_ds.data.sampling.length_batches` of the pieces, in the order in which ``ranks`` take turns at them.

        The pieces of an utterance, which are equally long, stand beside each other and are for one rank, so that it is decoded
        about once. Which pieces make a batch does not depend on ``ranks``.
        """
        found = length_batches(self._together(), max_frames=max_frames, max_utterances=max_utterances)
        cut = [batch for batch in found if not self.whole[batch].all()]
        shares = [[cut[index] for index in share] for share in np.array_split(np.arange(len(cut)), ranks)]
        turns = [batch for turn in zip_longest(*shares) for batch in turn if batch is not None]
        return turns + [batch for batch in found if self.whole[batch].all()]

    def _together(self) -> NDArray[np.int32]:
        """(P,) frames, those of the longest piece for all pieces of an utterance: a sort by length keeps them together."""
        index = np.array([each.index for each in self.pieces], dtype=np.int64)
        longest = np.zeros(len(self.counts), dtype=np.int32)
        np.maximum.at(longest, index, self.lengths)
        return longest[index]

    def __getitem__(self, place: int) -> Example:
        piece = self.pieces[place]
        if piece.whole:
            return self._dataset[piece.index]
        utterance = self._dataset.utterances[piece.index]
        example = self._dataset.example(piece.index, log_mel(self._samples(piece.index)[piece.start : piece.stop]))
        place_in_file = utterance.offset + piece.start / SAMPLE_RATE
        part = replace(utterance, offset=place_in_file, duration=(piece.stop - piece.start) / SAMPLE_RATE)
        return replace(example, utterance=part)

    def _samples(self, index: int) -> NDArray[np.float32]:
        """The last utterance stays decoded: its pieces are asked for one after the other."""
        if self._waveform[0] != index:
            self._waveform = index, waveform_of(self._dataset.utterances[index])
        return self._waveform[1]


def _pieces(dataset: SpeechDataset, longest: int) -> Iterator[Piece]:
    samples = np.rint(dataset.utterances.durations() * SAMPLE_RATE).astype(np.int64).tolist()
    for index, (count, frames) in enumerate(zip(samples, dataset.lengths.tolist(), strict=True)):
        if frames:
            bounds = bounds_of(count, longest)
            yield from (Piece(index, start, stop, len(bounds) == 2) for start, stop in pairwise(bounds))
