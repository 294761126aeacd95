"""The mining pass: gradients of every language's summed loss, without an update and without a trace."""

from __future__ import annotations

from gdps_ds.data.collate import Batch
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.training.loss import target_tokens, utterance_losses


def mine_batch(engine: Engine, gatherer: GradientGatherer, batch: Batch, label_smoothing: float) -> None:
    """One forward and backward pass of the summed token loss, in evaluation mode, that leaves no gradient anywhere.

    With every parameter frozen for the moment, and the features requiring a gradient instead, autograd goes through the
    layers without forming a single weight gradient: about a third cheaper, and nothing for ZeRO to reduce.
    """
    gatherer.watch(batch.languages, batch.folds, batch.attention_mask, target_tokens(batch))
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
