"""Sketches of every ZeRO stage and world size equal those of one plain process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gdps_ds.analysis.sketch import Sketches
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.training.loss import target_tokens, utterance_losses
from tests.distributed.mining_worker import SEED, SETTINGS, batches
from tests.launch import launch
from tests.tiny import ALONE, LANGUAGES, SITES, tiny_model

pytestmark = pytest.mark.launcher

STAGES = ("zero0", "zero1", "zero2", "zero3")
CASES = ("mixed", "lonely", "checkpointing", "training", "accumulated")
# At stage 3 all ranks gather weights together, so there a rank without data cannot be.
EMPTY = ("zero0", "zero2")
RUNS = [f"ds_configs/{stage}.json:{case}" for stage in STAGES for case in CASES]
RUNS += [f"ds_configs/{stage}.json:empty" for stage in EMPTY]
HALF_PRECISION = ("zero2_bf16", "zero2_fp16")
RUNS += [f"ds_configs/{name}.json:half" for name in HALF_PRECISION]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sketches")
    code, output = launch("tests/distributed/mining_worker.py", "--out", out, "--runs", *RUNS, ranks=request.param)
    assert code == 0, output[-3000:]
    return out


def plain(case: str) -> Sketches:
    """One process, no DeepSpeed, ordinary backward passes."""
    model = tiny_model().eval()
    gatherer = GradientGatherer(model, SITES, LANGUAGES, SETTINGS, SEED, torch.device("cpu"))
    with gatherer.attached():
        for batch in batches(case):
            gatherer.watch(batch.languages, batch.folds, batch.attention_mask, target_tokens(batch))
            logits = model(
                input_features=batch.input_features,
                attention_mask=batch.attention_mask,
                decoder_input_ids=batch.decoder_input_ids,
            ).logits
            utterance_losses(logits, batch, 0.1).sum().backward()
    return gatherer.reduce(ALONE)


@pytest.mark.parametrize("case", CASES)
def test_sketches_do_not_depend_on_stage_or_world_size(folder: Path, case: str) -> None:
    """Sums of the same fp32 terms in another order: 1e-5 of the largest value, some twenty units in its last place."""
    compare(folder, case, STAGES)


def test_a_rank_without_data_adds_zeros(folder: Path) -> None:
    compare(folder, "empty", EMPTY)


@pytest.mark.parametrize("name", HALF_PRECISION)
def test_half_precision_is_summed_in_fp32_and_unscaled(folder: Path, name: str) -> None:
    """Sums of the products that the pass itself has rounded, hence no coarser than in fp32 (bf16 rounds to 4e-3, fp16 to
    5e-4). fp16 training scales the loss by 2^16, which is undone: of the gradients in full precision, which half precision
    distorts by far less than a factor of sqrt(2), the nearest power of two is 1."""
    found, plain_pass = Sketches.load(folder / f"{name}-half.safetensors"), np.load(folder / f"{name}-plain.npz")
    full = plain("half")
    np.testing.assert_array_equal(found.tokens, full.tokens)
    for site in SITES:
        core, expected = found.sites[site].core, plain_pass[site]
        np.testing.assert_allclose(core, expected, rtol=0, atol=1e-5 * abs(expected).max())
        assert 2**-0.5 < np.vdot(core, full.sites[site].core) / np.vdot(full.sites[site].core, full.sites[site].core) < 2**0.5


def compare(folder: Path, case: str, stages: tuple[str, ...]) -> None:
    expected = plain(case)
    for stage in stages:
        found = Sketches.load(folder / f"{stage}-{case}.safetensors")
        assert found.languages == LANGUAGES
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.utterances, expected.utterances)
        for site in SITES:
            for left, right in (
                (expected.sites[site].core, found.sites[site].core),
                (expected.sites[site].neurons, found.sites[site].neurons),
            ):
                np.testing.assert_allclose(right, left, atol=1e-5 * abs(left).max(), err_msg=f"{stage} {site}")


def test_a_language_of_one_utterance_fills_one_fold(folder: Path) -> None:
    sketches = Sketches.load(folder / "zero2-lonely.safetensors")
    bem = LANGUAGES.index("bem")
    assert sketches.utterances[bem].sum() == 1
    filled = sketches.utterances[bem] > 0
    assert sketches.sites[SITES[0]].core[:, bem, filled].any()
    assert not sketches.sites[SITES[0]].core[:, bem, ~filled].any()
