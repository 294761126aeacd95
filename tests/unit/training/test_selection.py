"""Which evaluation is the best, and when patience is over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gdps_ds.config import PhaseConfig, SelectConfig
from gdps_ds.data.collate import Batch, Collator, SpeechDataset
from gdps_ds.data.manifest import Utterance
from gdps_ds.data.sampling import Position
from gdps_ds.data.table import LabelTable, UtteranceTable, write_labels
from gdps_ds.training import selection
from gdps_ds.training.checkpoint import Best, Progress
from gdps_ds.training.selection import BLEU, LOSS, DevSet, better_of, is_over
from tests.tiny import ALONE, tiny_train

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


class Scored:
    """Stands in for an engine: the loss of every token is the number in its utterance's id."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        yield

    def forward(self, batch: Batch) -> Batch:
        self.seen += batch.utterances
        return batch


def test_the_dev_loss_is_of_whole_utterances_that_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Utterances 1 to 5 have 0, 5, 9, 12 and 4 frames, and 1, 2, 3, 2 and 0 pieces; a micro-batch holds 10 frames."""
    lengths, pieces = np.array([0, 5, 9, 12, 4], dtype=np.int32), [1, 2, 3, 2, 0]
    table = UtteranceTable.of(Utterance(str(number), "a.wav", "bem", "eng", "x", duration=1.0) for number in range(1, 6))
    write_labels(tmp_path / "labels.arrow", [[9] + [8] * count + [3] for count in pieces], "key")

    class Features:
        def __init__(self) -> None:
            self.lengths = lengths

        def __getitem__(self, index: int) -> np.ndarray:
            return np.zeros((lengths[index], 160), dtype=np.float32)

    dataset = SpeechDataset(table, Features(), LabelTable(tmp_path / "labels.arrow"), languages=["bem"], folds=2)
    monkeypatch.setattr(
        selection,
        "utterance_losses",
        lambda batch, _, smoothing: torch.tensor([float(name) for name in batch.utterances]) * (batch.labels >= 0).sum(1),
    )
    data = SimpleNamespace(languages=("bem",), max_frames=10, max_utterances=8)
    inputs: Any = SimpleNamespace(dev=dataset, collate=Collator(pad_id=0, start_id=3))
    engine: Any = Scored()
    dev = DevSet(SimpleNamespace(data=data), ALONE, inputs, lambda what: None)  # type: ignore[arg-type]
    found = dev.losses(engine)
    assert sorted(engine.seen) == ["2", "3"]
    assert found["bem"] == pytest.approx((2.0 * 4 + 3.0 * 5) / 9)
