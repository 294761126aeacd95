"""Which evaluation is the best, and when patience is over."""

from __future__ import annotations

import pytest

from gdps_ds.config import PhaseConfig, SelectConfig
from gdps_ds.data.sampling import Position
from gdps_ds.training.checkpoint import Best, Progress
from gdps_ds.training.selection import BLEU, LOSS, better_of, is_over
from tests.tiny import tiny_train

VALUES = {LOSS: {"aeb": 2.0, "bem": 4.0, "all": 9.0}, BLEU: {"aeb": 30.0, "bem": 10.0}}


@pytest.mark.parametrize(
    ("select", "value"),
    [
        (SelectConfig(), 3.0),  # the mean over languages, not over tokens
        (SelectConfig(language="bem"), 4.0),
        (SelectConfig(by="bleu"), 20.0),
        (SelectConfig(by="bleu", language="aeb"), 30.0),
    ],
)
def test_the_best_evaluation_is_the_lowest_loss_or_the_highest_bleu(select: SelectConfig, value: float) -> None:
    better = -0.1 if select.by == "loss" else 0.1
    assert better_of(None, 7, VALUES, select) == Best(7, value)
    assert better_of(Best(3, value - better), 7, VALUES, select) == Best(7, value)
    assert better_of(Best(3, value + better), 7, VALUES, select) == Best(3, value + better)
    assert better_of(Best(3, value), 7, VALUES, select) == Best(3, value)  # the first of equals


@pytest.mark.parametrize(
    ("update", "best", "patience", "over"),
    [
        (100, None, None, True),
        (99, Best(0, 1.0), None, False),
        (40, None, 1, False),  # not evaluated yet
        (40, Best(20, 1.0), 2, True),
        (39, Best(20, 1.0), 2, False),
        (20, Best(20, 1.0), 1, False),
    ],
)
def test_a_phase_ends_with_its_updates_or_its_patience(
    update: int, best: Best | None, patience: int | None, over: bool
) -> None:
    phase = PhaseConfig(updates=100, lr=1.0, patience=patience)
    assert is_over(Progress(update, Position(), best), phase, tiny_train(dev_every=10)) is over
