from __future__ import annotations

import pytest
import torch

from gdps_ds.training.metered import MeteredBatches
from tests.tiny import ALONE, random_batch


def test_waiting_and_padding_are_shares_since_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock in seconds: made at 0, the batch asked for at 1 comes at 3, that of 4 at 4.5; asked for shares at 10."""
    clock = iter([0.0, 1.0, 3.0, 4.0, 4.5, 10.0, 10.0, 12.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    batches = [random_batch(seed) for seed in range(2)]
    metered = MeteredBatches(iter(batches))
    assert [next(metered) is batch for batch in batches] == [True, True]
    masks = torch.cat([batch.attention_mask.flatten() for batch in batches])
    assert metered.reduce(ALONE) == {"data_wait": 0.25, "padding": pytest.approx(1 - float(masks.double().mean()))}
    assert metered.reduce(ALONE) == {"data_wait": 0.0, "padding": 1.0}
