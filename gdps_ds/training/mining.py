"""When gradients are mined: in a pass without updates, or in a window of ordinary training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from gdps_ds.data.collate import Batch
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.training.loss import target_tokens, utterance_losses


def mine_batch(engine: Engine, gatherer: GradientGatherer, batch: Batch, label_smoothing: float) -> None:
    """One forward and backward pass of the summed token loss, in evaluation mode, that leaves no gradient anywhere.

    With every parameter frozen for the moment, and the features requiring a gradient instead, autograd goes through the
    layers without forming a single weight gradient: about a third cheaper, and nothing for ZeRO to reduce.
    """
    _watch(gatherer, batch, 1.0)
    engine.train(False)
    trainable = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        features = engine.inputs(batch)["input_features"].detach().requires_grad_(True)
        logits = engine.forward_around(batch, features)
        utterance_losses(logits, batch, label_smoothing).sum().backward()
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        engine.train(True)


class MiningWindow:
    """Mines every ``every``-th update after ``first`` while the model trains.

    Args:
        make: gives an empty gatherer, when the window begins: its sums take memory and room in checkpoints.
    """

    def __init__(self, make: Callable[[], GradientGatherer], first: int, every: int) -> None:
        self.first = first
        self.every = every
        self._make = make
        self._gatherer: GradientGatherer | None = None

    @property
    def gatherer(self) -> GradientGatherer:
        if self._gatherer is None:
            self._gatherer = self._make()
        return self._gatherer

    def saved(self, update: int) -> GradientGatherer | None:
        """What a checkpoint after ``update`` must hold; None before the window."""
        return self.gatherer if update > self.first else None

    def covers(self, update: int) -> bool:
        return update > self.first and (update - self.first - 1) % self.every == 0

    @contextlib.contextmanager
    def of(self, update: int, engine: Engine, global_tokens: float) -> Iterator[Callable[[Batch], None]]:
        """Hooks on during a covered update; gives what must be told of each micro-batch before its forward pass."""
        if not self.covers(update):
            yield lambda batch: None
            return
        scale = engine.undo_scaling(global_tokens)
        with self.gatherer.attached():
            yield lambda batch: _watch(self.gatherer, batch, scale)


def _watch(gatherer: GradientGatherer, batch: Batch, scale: float) -> None:
    gatherer.watch(batch.languages, batch.folds, batch.attention_mask, target_tokens(batch), scale)
