"""Updates that are not finite, and run directories that are not shared."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest
import torch

from gdps_ds.config import GuardConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.training.language_losses import LanguageLosses, NonFiniteUpdates
from gdps_ds.training.run_dir import check_shared
from tests.tiny import ALONE, LANGUAGES, random_batch

PLAIN = {"by_loss_scale": False, "mined": False}


def losses_of(*values: float) -> LanguageLosses:
    losses = LanguageLosses(LANGUAGES, ALONE)
    losses.add(random_batch(0), torch.tensor(values))
    return losses


def test_a_dropped_update_leaves_no_trace_in_the_losses() -> None:
    losses = losses_of(1.0, 2.0, 3.0, 4.0)
    losses.keep()
    losses.add(random_batch(1), torch.tensor([1.0, math.nan, 1.0, math.inf]))
    assert losses.drop() == ["utterance-1-1", "utterance-1-3"]
    assert losses.drop() == []
    assert losses.reduce("a test") == losses_of(1.0, 2.0, 3.0, 4.0).reduce("a test")
    losses.add(random_batch(1), torch.tensor([math.nan] * 4))
    losses.drop()
    assert losses.reduce("a test") == {"seen": {"tokens": 0.0, "utterances": 0.0}}


def test_updates_left_out_are_counted_and_limited_in_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    updates, losses = NonFiniteUpdates(GuardConfig(nonfinite="skip", max_skipped=2), ALONE), losses_of(1.0, 1.0, 1.0, 1.0)
    for applied in (False, False, True, False, False):
        updates.saw("update 1 of unified", applied, losses, **PLAIN)
    assert "the gradient, though no loss, is not finite; the update is left out" in capsys.readouterr().out
    assert (updates.count(), updates.count()) == (4, 0)
    with pytest.raises(FloatingPointError, match=r"like the 2 before it \(guard.max_skipped\)"):
        updates.saw("update 6 of unified", False, losses, **PLAIN)


def test_an_update_that_may_not_be_left_out_names_utterances() -> None:
    stop, skip = (NonFiniteUpdates(GuardConfig(nonfinite=policy), ALONE) for policy in ("stop", "skip"))
    broken = (math.nan, 1.0, 1.0, 1.0)
    with pytest.raises(FloatingPointError, match="update 3: the loss of utterance-0-0 is not finite; mend the data"):
        stop.saw("update 3", False, losses_of(*broken), **PLAIN)
    with pytest.raises(FloatingPointError, match=r"the sketches have seen it; set mine\.during: pass"):
        skip.saw("update 3", False, losses_of(*broken), by_loss_scale=False, mined=True)
    # A loss scale that was too high is no fault, a loss that is not finite is one at any scale.
    stop.saw("update 4", False, losses_of(1.0, 1.0, 1.0, 1.0), by_loss_scale=True, mined=False)
    with pytest.raises(FloatingPointError, match=r"the loss scale overflowed .* set mine\.during: pass"):
        stop.saw("update 4", False, losses_of(1.0, 1.0, 1.0, 1.0), by_loss_scale=True, mined=True)
    with pytest.raises(FloatingPointError, match="utterance-0-0"):
        stop.saw("update 5", False, losses_of(*broken), by_loss_scale=True, mined=False)


def test_a_run_directory_that_a_node_does_not_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_shared(tmp_path, ALONE)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "exists", lambda path: not path.name.startswith(".seen-"))
    with pytest.raises(
        DataError, match=rf"not the same folder everywhere: {socket.gethostname()} did not find there"
    ) as caught:
        check_shared(tmp_path, ALONE, patience=0.1)
    assert "put it on a file system that all nodes share" in str(caught.value)
