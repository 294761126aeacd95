"""The sketches of one process against autograd's own gradients, in float64 where they are compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gdps_ds.analysis.sketch import Sketches, sign_projection
from gdps_ds.config import MineConfig
from gdps_ds.data.collate import Batch
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.model.families import INPUT_LINEAR, OUTPUT_LINEAR
from gdps_ds.training.loss import target_tokens, utterance_losses
from tests.tiny import LANGUAGES, SITES, random_batch, tiny_model

SEED, FOLDS, K = 5, 4, 12
SETTINGS = MineConfig(sketch=K, folds=FOLDS)


def forward(model: torch.nn.Module, batch: Batch) -> Tensor:
    logits = model(
        input_features=batch.input_features, attention_mask=batch.attention_mask, decoder_input_ids=batch.decoder_input_ids
    ).logits
    return utterance_losses(logits, batch, 0.1)


def gather(model: torch.nn.Module, batches: list[Batch], scale: float = 1.0) -> Sketches:
    gatherer = GradientGatherer(model, SITES, LANGUAGES, SETTINGS, SEED, torch.device("cpu"))
    with gatherer.attached():
        for batch in batches:
            gatherer.watch(batch.languages, batch.folds, batch.attention_mask, target_tokens(batch), 1 / scale)
            (forward(model, batch).sum() * scale).backward()
    return gatherer.reduce(Communicator(0, 1, 0, torch.device("cpu")))


def language_gradients(batches: list[Batch], language: int, folds: set[int]) -> dict[str, Tensor]:
    """Autograd's gradient of the summed token loss of one language's utterances in some folds."""
    model = tiny_model().eval()
    for batch in batches:
        rows = (batch.languages == language) & torch.tensor([fold.item() in folds for fold in batch.folds])
        (forward(model, batch) * rows).sum().backward()
    return {name: parameter.grad.double() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return [random_batch(seed, size=6) for seed in range(3)]


@pytest.mark.parametrize("language", range(len(LANGUAGES)))
def test_core_sketch_is_the_projected_gradient_of_the_language(batches: list[Batch], language: int) -> None:
    """C = P_out G P_in^T per fold. Padded frames carry no gradient, so masking them loses nothing."""
    sketches = gather(tiny_model().eval(), batches)
    for fold in range(FOLDS):
        gradients = language_gradients(batches, language, {fold})
        for role_number, role in enumerate((INPUT_LINEAR, OUTPUT_LINEAR)):
            name = f"{SITES[0]}.{role}"
            gradient = gradients[f"{name}.weight"]
            p_in = sign_projection(K, gradient.shape[1], SEED, name, "in").double()
            p_out = sign_projection(K, gradient.shape[0], SEED, name, "out").double()
            expected = (p_out @ gradient @ p_in.T).numpy()
            found = sketches.sites[SITES[0]].core[role_number, language, fold]
            np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, abs(expected).max()))


@pytest.mark.parametrize("language", range(len(LANGUAGES)))
def test_neuron_sketch_is_the_projected_neuron_gradient(batches: list[Batch], language: int) -> None:
    """Y = Gamma Omega: input row, bias and output column of each neuron, projected."""
    site = SITES[1]
    neurons = gather(tiny_model().eval(), batches).sites[site].neurons
    assert neurons is not None
    for half in (0, 1):
        gradients = language_gradients(batches, language, {fold for fold in range(FOLDS) if fold % 2 == half})
        rows, bias = gradients[f"{site}.{INPUT_LINEAR}.weight"], gradients[f"{site}.{INPUT_LINEAR}.bias"]
        columns = gradients[f"{site}.{OUTPUT_LINEAR}.weight"].T
        p_in = sign_projection(K, rows.shape[1], SEED, f"{site}.{INPUT_LINEAR}", "in").double()
        omega = sign_projection(K, 1, SEED, f"{site}.{INPUT_LINEAR}", "bias").double()
        p_out = sign_projection(K, columns.shape[1], SEED, f"{site}.{OUTPUT_LINEAR}", "out").double()
        expected = (rows @ p_in.T + bias[:, None] @ omega.T + columns @ p_out.T).numpy()
        np.testing.assert_allclose(neurons[language, half], expected, atol=2e-5 * max(1, abs(expected).max()))


def test_counts_are_kept_apart_from_sums(batches: list[Batch]) -> None:
    sketches = gather(tiny_model().eval(), batches)
    assert sketches.utterances.sum() == 18
    assert sketches.tokens.sum() == sum(batch.target_tokens for batch in batches)
    for language in range(len(LANGUAGES)):
        assert sketches.utterances[language].sum() == sum(int((batch.languages == language).sum()) for batch in batches)


def test_batch_make_up_does_not_matter(batches: list[Batch]) -> None:
    """The same utterances one by one: fp32 sums in another order, hence 1e-4 of the largest value."""
    whole, single = (
        gather(tiny_model().eval(), batches),
        gather(tiny_model().eval(), [b for batch in batches for b in split(batch)]),
    )
    for site in SITES:
        for left, right in zip(
            (whole.sites[site].core, whole.sites[site].neurons),
            (single.sites[site].core, single.sites[site].neurons),
            strict=True,
        ):
            np.testing.assert_allclose(right, left, atol=1e-4 * abs(left).max())


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_counts_once(batches: list[Batch], reentrant: bool) -> None:
    plain, recomputed = tiny_model(), tiny_model()
    recomputed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    recomputed.train()
    # Re-entrant checkpointing differentiates only what depends on an input that requires a gradient.
    recomputed.speech_encoder.feature_projection.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    for module in recomputed.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    left, right = gather(plain.eval(), batches), gather(recomputed, batches)
    for site in SITES:
        np.testing.assert_allclose(right.sites[site].core, left.sites[site].core, atol=1e-4 * abs(left.sites[site].core).max())


def test_a_scaled_loss_is_unscaled(batches: list[Batch]) -> None:
    left, right = gather(tiny_model().eval(), batches), gather(tiny_model().eval(), batches, scale=1024.0)
    np.testing.assert_allclose(
        right.sites[SITES[0]].core, left.sites[SITES[0]].core, atol=1e-5 * abs(left.sites[SITES[0]].core).max()
    )


def test_an_absent_language_is_zero(batches: list[Batch]) -> None:
    only = [random_batch(1, languages=torch.tensor([0, 0, 2, 2]))]
    sketches = gather(tiny_model().eval(), only)
    assert sketches.tokens[1].sum() == 0
    assert not sketches.sites[SITES[0]].core[:, 1].any()
    assert sketches.sites[SITES[0]].core[:, 2].any()


def test_hooks_leave_no_trace(batches: list[Batch]) -> None:
    model = tiny_model().eval()
    before = forward(model, batches[0])
    gather(model, batches)
    assert not any(module._forward_hooks for name, module in model.named_modules() if name.endswith("_dense"))
    assert torch.equal(forward(model, batches[0]), before)


def split(batch: Batch) -> list[Batch]:
    """One batch a row, cut to its own length."""
    rows = []
    for row in range(len(batch)):
        frames, labels = int(batch.attention_mask[row].sum()), int((batch.labels[row] >= 0).sum())
        rows.append(
            Batch(
                batch.input_features[row : row + 1, :frames],
                batch.attention_mask[row : row + 1, :frames],
                batch.labels[row : row + 1, :labels],
                batch.decoder_input_ids[row : row + 1, :labels],
                batch.languages[row : row + 1],
                batch.folds[row : row + 1],
                ("eng",),
                batch.utterances[row : row + 1],
                frames * 0.02,
                frames,
                labels,
            )
        )
    return rows
