"""The training loss, as sums over target tokens that can be told apart by utterance."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gdps_ds.data.collate import IGNORED_LABEL, Batch


def utterance_losses(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """(B,) label-smoothed cross-entropy of each utterance in nats, summed over its target tokens, in fp32.

    Args:
        logits: (B, U, V) for the labels of ``batch``, which may still be on the host.

    Raises:
        ValueError: the batch has no references.
    """
    if batch.labels is None:
        raise ValueError("a batch without references has no loss")
    labels = batch.labels.to(logits.device, non_blocking=True)
    losses = F.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view_as(labels).sum(1)


def target_tokens(batch: Batch) -> Tensor:
    """(B,) labels that count in each utterance's loss."""
    if batch.labels is None:
        raise ValueError("a batch without references has no loss")
    return (batch.labels != IGNORED_LABEL).sum(1)
