"""Utterances, features and label ids -> padded batches of one tensor type each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gdps_ds.analysis.sketch import fold_of
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.table import UtteranceTable

IGNORED_LABEL = -100


class Features(Protocol):
    """What a dataset needs to know of a feature store: :mod:`gdps_ds.data.features` has a cached and a direct one."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(N,) frames of each utterance."""

    def __getitem__(self, index: int, /) -> NDArray[np.float32]:
        """(frames, 160) filter banks of one utterance."""


@dataclass(frozen=True)
class Example:
    """One utterance, ready to be padded; ``labels`` is None where there is no reference."""

    utterance: Utterance
    features: NDArray[np.float32]
    labels: Sequence[int] | None
    language: int
    fold: int


class SpeechDataset(Dataset[Example]):
    """Prepared utterances with their features and labels.

    Args:
        utterances: prepared.
        features: cached or direct filter banks of the same utterances.
        targets: label ids of each utterance (language token, pieces, ``</s>``); None decodes without references.
        languages: source languages in the order of ``data.languages``; indices refer to it.
        folds: utterances fall into this many folds by a hash of their ids (``mine.folds``).
        rows: (M,) the utterances that training draws; None for all.

    Attributes:
        lengths: (N,) frames. language_ids: (N,) indices into ``languages``. Both are what ``MicroBatches`` takes.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        features: Features,
        targets: Sequence[Sequence[int]] | None,
        *,
        languages: Sequence[str],
        folds: int,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        sizes = {"utterances": len(utterances), "features": len(features.lengths)}
        sizes |= {} if targets is None else {"targets": len(targets)}
        if len(set(sizes.values())) > 1:
            raise DataError(f"a dataset needs equally many {sizes}")
        self.utterances, self.features, self.targets, self.folds = UtteranceTable.of(utterances), features, targets, folds
        self.lengths, self.rows = features.lengths, rows
        self.language_ids = self.utterances.language_ids(languages)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Example:
        return self.example(index, self.features[index])

    def example(self, index: int, features: NDArray[np.float32]) -> Example:
        """An utterance with (frames, 160) ``features`` in the place of its own."""
        utterance = self.utterances[index]
        return Example(
            utterance=utterance,
            features=features,
            labels=None if self.targets is None else self.targets[index],
            language=int(self.language_ids[index]),
            fold=fold_of(utterance.id, self.folds),
        )


@dataclass(frozen=True)
class Batch:
    """B utterances padded to T frames and U labels.

    Attributes:
        input_features: (B, T, 160) float32, zero where padded.
        attention_mask: (B, T) int64, 1 at real frames.
        labels: (B, U) int64, -100 where padded; None without references.
        decoder_input_ids: (B, U) int64, the labels shifted right; None without references.
        languages: (B,) int64, index of the source language.
        folds: (B,) int64.
        target_languages: ISO 639-3 code of each translation.
        utterances: ids.
        seconds: audio in the batch.
        frames: real frames; the padded ones are ``attention_mask.numel() - frames``.
        target_tokens: labels that count in the loss.
    """

    input_features: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    decoder_input_ids: Tensor | None
    languages: Tensor
    folds: Tensor
    target_languages: tuple[str, ...]
    utterances: tuple[str, ...]
    seconds: float
    frames: int
    target_tokens: int

    def __len__(self) -> int:
        return len(self.utterances)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Called by a DataLoader with ``pin_memory=True``; lets :meth:`to` overlap with computation."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)


@dataclass(frozen=True)
class Collator:
    """Examples -> :class:`Batch`; a DataLoader's ``collate_fn``.

    Attributes:
        pad_id: fills ``decoder_input_ids`` (0 in SeamlessM4T).
        start_id: first decoder input (``decoder_start_token_id``, 3 in SeamlessM4T).
    """

    pad_id: int
    start_id: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        lengths = [len(example.features) for example in examples]
        labels = [example.labels for example in examples if example.labels is not None]
        if len(labels) not in (0, len(examples)):
            raise DataError("a batch has either labels for every utterance or for none")
        # The model shifts labels itself only where it computes the loss; ours is summed per language outside of it.
        shifted = [[self.start_id, *row[:-1]] for row in labels]
        return Batch(
            input_features=_pad_features([example.features for example in examples]),
            attention_mask=(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long(),
            labels=_pad_ids(labels, IGNORED_LABEL) if labels else None,
            decoder_input_ids=_pad_ids(shifted, self.pad_id) if labels else None,
            languages=torch.tensor([example.language for example in examples]),
            folds=torch.tensor([example.fold for example in examples]),
            target_languages=tuple(example.utterance.target_lang for example in examples),
            utterances=tuple(example.utterance.id for example in examples),
            seconds=sum(example.utterance.duration or 0.0 for example in examples),
            frames=sum(lengths),
            target_tokens=sum(map(len, labels)),
        )


def _pad_features(rows: Sequence[NDArray[np.float32]]) -> Tensor:
    padded = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), dtype=np.float32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def _pad_ids(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    padded = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.long)
    return padded
