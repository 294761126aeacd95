"""Keys of DeepSpeed files that are known to be right: checkpoints hold the model, and training goes on."""

from __future__ import annotations

import json

import pytest

from gdps_ds.deepspeed_file import TESTED, untested_keys
from tests.distributed.options import OPTIONS
from tests.launch import launch

pytestmark = pytest.mark.launcher

ROUNDING = 5e-6
"""Engines of one process lie at other addresses, by whose alignment matrix products round."""
FULL_PRECISION = [name for name in OPTIONS if "16-bit" not in name and "autocast" not in name]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("options")
    code, output = launch("tests/distributed/options_worker.py", "--out", out, ranks=request.param)
    assert code == 0, output[-3000:]
    return json.loads((out / "results.json").read_text())


def test_every_key_that_counts_as_tested_is_tried() -> None:
    assert {key for settings in OPTIONS.values() for key in _names(settings)} == TESTED
    assert [untested_keys(settings) for settings in OPTIONS.values()] == [[]] * len(OPTIONS)


def _names(tree: dict, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in tree.items():
        names += _names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_saved_is_the_model(results: dict[str, dict], name: str) -> None:
    """Bit for bit the weights that the module computes with, gathered by DeepSpeed itself."""
    assert results[name]["wrong"] == []
    assert results[name]["tensors"] > 100


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_engine_goes_on_as_the_saved_one(results: dict[str, dict], name: str) -> None:
    assert results[name]["resumed"] == pytest.approx(results[name]["losses"][6:], abs=ROUNDING)


@pytest.mark.parametrize("name", FULL_PRECISION)
def test_training_is_that_of_stage_0(results: dict[str, dict], name: str) -> None:
    """Moments that belonged to other neurons would show after the split."""
    assert results[name]["losses"] == pytest.approx(results["stage 0"]["losses"], abs=5e-5)


def test_parameters_that_are_all_sent_in_16_bits_are_trained(results: dict[str, dict]) -> None:
    losses = results["linears alone"]["losses"]
    assert len(set(losses)) == 4 and all(3 < loss < 6 for loss in losses)


def test_an_engine_that_cannot_be_read_is_refused(results: dict[str, dict]) -> None:
    """Offsets of two parameters exchanged, and an optimiser of another kind: told on every rank, with the keys to remove."""
    said = results["refusals"]
    assert "of 129 parameters, such as shared.weight, have other values in DeepSpeed's fp32 weights" in said["moved"]
    assert "is not supported" in said["moved"]
    assert "DeepSpeed keeps the weights in its BF16_Optimizer, not in a DeepSpeedZeroOptimizer" in said["other optimiser"]
    assert "remove dump_state from the DeepSpeed file" in said["other optimiser"]
