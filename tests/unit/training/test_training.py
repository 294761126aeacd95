"""What the loop is made of: schedule, losses, the split."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from gdps_ds.config import Config, PhaseConfig, SpecialiseConfig
from gdps_ds.config_file import ConfigError
from gdps_ds.distributed.comm import Communicator, RankZeroError
from gdps_ds.distributed.engine import parameter_groups
from gdps_ds.distributed.settings import accumulation_steps, check_settings, runtime_settings
from gdps_ds.model.surgery import split_model
from gdps_ds.plan import SharingPlan
from gdps_ds.training import phases
from gdps_ds.training.language_losses import LanguageLosses
from gdps_ds.training.loss import utterance_losses
from gdps_ds.training.mining import MiningWindow
from gdps_ds.training.schedule import decay, hyperparameters
from tests.tiny import ALONE, LANGUAGES, SITES, random_batch, tiny_model, tiny_plan, tiny_train


def test_warm_up_then_inverse_square_root() -> None:
    """warmup 4: 1/4 at update 1, the peak at 4, half of it at 4 * 4 = 16."""
    assert [decay(update, 4) for update in (1, 2, 4, 16)] == [0.25, 0.5, 1.0, 0.5]
    assert decay(7, 0) == 1.0


def test_private_lanes_have_their_own_rates() -> None:
    phase = SpecialiseConfig(updates=9, lr=1e-3, warmup=2, weight_decay=0.1, private_lr=4e-3, private_weight_decay=0.0)
    rates = hyperparameters(phase, 1)
    assert rates["trunk"] == rates["sites"] == {"lr": 5e-4, "weight_decay": 0.1}
    assert rates["private"] == {"lr": 2e-3, "weight_decay": 0.0}
    assert hyperparameters(PhaseConfig(updates=9, lr=1e-3), 1)["private"] == {"lr": 1e-3, "weight_decay": 0.0}


def test_utterance_losses_are_transformers_loss_in_sums() -> None:
    batch = random_batch(0)
    logits = torch.randn(*batch.labels.shape, 60)
    losses = utterance_losses(logits, batch, 0.1)
    mean = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), label_smoothing=0.1)
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.sum() / batch.target_tokens, mean)


def test_losses_are_means_over_tokens_by_language() -> None:
    batch = random_batch(0)
    losses = LanguageLosses(LANGUAGES, ALONE)
    values = torch.arange(1.0, 5.0)
    assert losses.add(batch, values) == 10
    tokens = (batch.labels >= 0).sum(1)
    reduced = losses.reduce("a test")
    assert reduced["loss"]["bem"] == pytest.approx(2 / int(tokens[1]))
    assert reduced["loss"]["all"] == pytest.approx(10 / int(tokens.sum()))
    assert reduced["seen"] == {"tokens": int(tokens.sum()), "utterances": 4}


def test_a_loss_that_is_not_finite_names_its_language() -> None:
    losses = LanguageLosses(LANGUAGES, ALONE)
    losses.add(random_batch(0), torch.tensor([1.0, float("nan"), 1.0, 1.0]))
    with pytest.raises(FloatingPointError, match=r"not finite by update 3 of unified \(bem\); lower train"):
        losses.reduce("update 3 of unified")


def test_the_trunk_is_grouped_apart_from_what_may_be_split() -> None:
    model = tiny_model()
    split_model(model, tiny_plan(), LANGUAGES, seed=1)
    groups = {group["name"]: group["params"] for group in parameter_groups(model, SITES)}
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(".private." in named[id(parameter)] for parameter in groups["private"]) and len(groups["private"]) == 6
    assert len(groups["sites"]) == 8
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_ranks_must_be_able_to_share_an_update() -> None:
    assert accumulation_steps(tiny_train(micro_batches=6), 3) == 2
    with pytest.raises(ConfigError, match=r"train\.micro_batches: 1 fault\(s\)\n  - 6, which 4 ranks cannot share equally"):
        accumulation_steps(tiny_train(micro_batches=6), 4)
    assert runtime_settings({"zero_optimization": {"stage": 2}}, tiny_train(4), 2)["gradient_accumulation_steps"] == 2


def test_deepspeed_reads_its_file_before_anything_long_begins() -> None:
    """Sections in which DeepSpeed knows its keys are its own to check."""
    check_settings({"zero_optimization": {"stage": 2}}, tiny_train(2), 2, "zero.json")
    said = r"zero\.json: 1 fault\(s\)\n  - DeepSpeed refuses overlap_com: Extra inputs .*; did you mean 'overlap_comm'\?"
    with pytest.raises(ConfigError, match=said):
        check_settings({"zero_optimization": {"stage": 2, "overlap_com": True}}, tiny_train(2), 2, "zero.json")
    with pytest.raises(ConfigError, match="DeepSpeed refuses it: NVIDIA Apex AMP"):
        check_settings({"amp": {"enabled": True}}, tiny_train(2), 2, "zero.json")


def test_a_window_of_training_is_mined_every_so_often() -> None:
    window = MiningWindow(pytest.fail, first=4, every=3)
    assert [update for update in range(1, 12) if window.covers(update)] == [5, 8, 11]


def test_rank_zero_errors_reach_everybody() -> None:
    def fail() -> None:
        raise KeyError("plan")

    with pytest.raises(RankZeroError, match="KeyError: 'plan'"):
        ALONE.from_main(fail)
    assert ALONE.from_main(lambda: 3) == 3


def test_ranks_that_hold_different_plans_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ALONE.agree("one", "the sharing plan")
    two = Communicator(0, 2, 0, torch.device("cpu"))
    monkeypatch.setattr(two, "gather", lambda digest: [digest, "another"])
    with pytest.raises(
        RuntimeError, match=r"ranks disagree on the sharing plan \(rank 0: one, rank 1: another\); are all nodes"
    ):
        two.agree("one", "the sharing plan")


@pytest.mark.parametrize(
    ("width", "jump", "stops"), [("preserve", 0.1, True), ("preserve", 0.01, False), ("constant", 0.1, False)]
)
def test_a_split_that_changes_the_function_ends_the_run(
    run_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: str,
    jump: float,
    stops: bool,
) -> None:
    run, losses, engine = object.__new__(phases.Run), iter([2.0, 2.0 + jump]), object()
    run.comm, run.config, run.dir = ALONE, run_config, Path(run_config.run.dir)
    run.trainer = SimpleNamespace(tracker=SimpleNamespace(log=lambda *values, **named: None))
    monkeypatch.setattr(run, "_probe", lambda engine: next(losses))
    monkeypatch.setattr(phases, "replace_blocks", lambda engine, *rest: engine)
    replace = partial(run._replace, "gdps", engine, SharingPlan.uniform(LANGUAGES), tiny_plan(width), 0)
    if stops:
        with pytest.raises(
            RuntimeError, match=r"must keep the model's function, but the loss went from 2\.0+ to 2\.1.* is untouched"
        ):
            replace()
    else:
        assert replace() is engine
    assert f"split: loss 2.000000 before, {2 + jump:.6f} after" in capsys.readouterr().out
