"""Learning rates: linear warm-up, then inverse square root decay (Vaswani et al. 2017, Section 5.3)."""

from __future__ import annotations

from gdps_ds.config import PhaseConfig, SpecialiseConfig
from gdps_ds.distributed.engine import PRIVATE, SITES, TRUNK


def decay(update: int, warmup: int) -> float:
    """Share of the peak rate at update 1, 2, ...: rises to 1 at ``warmup``, then sqrt(warmup / update); 1 without warm-up."""
    return 1.0 if warmup == 0 else min(update / warmup, (warmup / update) ** 0.5)


def hyperparameters(phase: PhaseConfig, update: int) -> dict[str, dict[str, float]]:
    """``lr`` and ``weight_decay`` of each parameter group at update 1, 2, ... of a phase."""
    share = decay(update, phase.warmup)
    common = {"lr": phase.lr * share, "weight_decay": phase.weight_decay}
    private = dict(common)
    if isinstance(phase, SpecialiseConfig):
        if phase.private_lr is not None:
            private["lr"] = phase.private_lr * share
        if phase.private_weight_decay is not None:
            private["weight_decay"] = phase.private_weight_decay
    return {TRUNK: common, SITES: common, PRIVATE: private}
