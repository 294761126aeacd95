"""PCGrad against Algorithm 1 of Yu et al. (2020) written out in vectors, and against autograd."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gdps_ds.analysis.sketch import seed_of
from gdps_ds.config_file import ConfigError
from gdps_ds.training.loss import utterance_losses
from gdps_ds.training.pcgrad import PCGrad, pcgrad_weights, require_stage_zero
from tests.tiny import ALONE, LANGUAGES, SITES, random_batch, tiny_model


def algorithm_1(gradients: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(L, P) -> (P,), float64."""
    total = np.zeros(gradients.shape[1])
    for task, own in enumerate(gradients):
        projected = own.copy()
        for other in generator.permutation(len(gradients)):
            if other != task and (product := projected @ gradients[other]) < 0:
                projected -= product / (gradients[other] @ gradients[other]) * gradients[other]
        total += projected
    return total


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_those_of_the_algorithm(seed: int) -> None:
    gradients = np.random.default_rng(seed).standard_normal((5, 7)) * 10.0 ** np.arange(-2, 3)[:, None]
    weights = pcgrad_weights(gradients @ gradients.T, np.random.default_rng(seed))
    np.testing.assert_allclose(weights @ gradients, algorithm_1(gradients, np.random.default_rng(seed)), rtol=1e-9, atol=1e-9)


def test_two_that_oppose_each_other() -> None:
    """g = (1, 0) and (-1, 1): the projections are (1/2, 1/2) and (0, 1), which is 2 g_1 + 3/2 g_2."""
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
    np.testing.assert_allclose(pcgrad_weights(gradients @ gradients.T, np.random.default_rng(0)), [2.0, 1.5])


def test_without_conflict_the_sum_stays() -> None:
    gradients = np.abs(np.random.default_rng(0).standard_normal((4, 9)))
    gradients[2] = 0.0  # a language that is absent
    np.testing.assert_array_equal(pcgrad_weights(gradients @ gradients.T, np.random.default_rng(0)), 1.0)


def site_gradient(model: Any) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten().clone() for parameter in model.get_submodule(SITES[-1]).parameters()])


def test_the_gradient_of_the_site_and_nothing_else_is_replaced() -> None:
    model, batches = tiny_model(), [random_batch(seed) for seed in (0, 1)]
    by_language = []
    for language in range(len(LANGUAGES)):
        model.zero_grad()
        for batch in batches:
            rows = batch.languages == language
            utterance_losses(logits(model, batch), batch, 0.1)[rows].sum().backward()
        by_language.append(site_gradient(model).double().numpy())
    expected = algorithm_1(np.array(by_language), np.random.default_rng(seed_of(3, "pcgrad", 7)))
    model.zero_grad()
    pcgrad = PCGrad(SimpleNamespace(comm=ALONE, module=model), SITES[-1:], len(LANGUAGES), seed=3)
    with pcgrad.attached():
        for batch in batches:
            pcgrad.watch(batch)
            utterance_losses(logits(model, batch), batch, 0.1).sum().backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    np.testing.assert_allclose(np.sum(by_language, axis=0), site_gradient(model), atol=1e-5)
    pcgrad.project(update=7)
    assert np.abs(expected - np.sum(by_language, axis=0)).max() > 1e-3, "the languages do conflict"
    np.testing.assert_allclose(site_gradient(model), expected, atol=1e-5)
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter.grad, plain[name])]
    assert changed and all(name.startswith(f"{SITES[-1]}.") for name in changed)
    pcgrad.project(update=8)
    assert not site_gradient(model).any(), "each update starts from nothing"


def logits(model: Any, batch: Any) -> torch.Tensor:
    inputs = (batch.input_features, batch.attention_mask, batch.decoder_input_ids)
    names = ("input_features", "attention_mask", "decoder_input_ids")
    return model(**dict(zip(names, inputs, strict=True))).logits


def test_other_stages_are_refused() -> None:
    require_stage_zero({}, "zero0.json")
    with pytest.raises(
        ConfigError, match=r"zero2\.json.*\n.*pcgrad, which needs ZeRO stage 0, found stage 2; set deepspeed to"
    ):
        require_stage_zero({"zero_optimization": {"stage": 2}}, "zero2.json")
