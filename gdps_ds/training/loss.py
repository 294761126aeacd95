"""The training loss, as sums over target tokens that can be told apart by utterance."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gdps_ds.data.collate import IGNORED_LABEL, Batch


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The arguments of the model's forward pass. Without ``labels``: the loss is ours, so the model must not add its own."""
    assert batch.decoder_input_ids is not None, "training and dev batches have references"
    return {
        "input_features": batch.input_features,
        "attention_mask": batch.attention_mask,
        "decoder_input_ids": batch.decoder_input_ids,
    }


def utterance_losses(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """(B,) label-smoothed cross-entropy of each utterance, summed over its target tokens, in fp32.

    Args:
        logits: (B, U, V). labels: (B, U), -100 where padded.
    """
    losses = F.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view_as(labels).sum(1)
