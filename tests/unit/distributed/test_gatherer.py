"""The sketches of one process against autograd's own gradients, in float64 where they are compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gdps_ds.analysis.sketch import Sketches, random_projection
from gdps_ds.config import MineConfig
from gdps_ds.data.collate import Batch
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.gatherer import GradientGatherer, _exact_halves
from gdps_ds.model.families import INPUT_LINEAR, OUTPUT_LINEAR, lanes_of
from gdps_ds.model.routing import Router
from gdps_ds.model.surgery import split_model
from gdps_ds.training.loss import target_tokens, utterance_losses
from tests.plain_gradients import PlainGradients
from tests.tiny import ALONE, HIDDEN, LANGUAGES, SITES, random_batch, tiny_model, tiny_plan

SEED, FOLDS, K = 5, 4, 12
SETTINGS = MineConfig(sketch=K, folds=FOLDS)


def forward(model: torch.nn.Module, batch: Batch) -> Tensor:
    logits = model(
        input_features=batch.input_features, attention_mask=batch.attention_mask, decoder_input_ids=batch.decoder_input_ids
    ).logits
    return utterance_losses(logits, batch, 0.1)


def gatherer_of(model: torch.nn.Module, sites: tuple[str, ...] = SITES, exact: tuple[str, ...] = ()) -> GradientGatherer:
    return GradientGatherer(model, sites, LANGUAGES, SETTINGS, SEED, torch.device("cpu"), exact)


def accumulate(
    gatherer: GradientGatherer, model: torch.nn.Module, batches: list[Batch], scale: float = 1.0, router: Router | None = None
) -> None:
    with gatherer.attached():
        for batch in batches:
            if router is not None:
                router.assign(batch.languages, "cpu")
            gatherer.watch(batch.languages, batch.folds, batch.attention_mask, target_tokens(batch), 1 / scale)
            (forward(model, batch).sum() * scale).backward()


def gather(model: torch.nn.Module, batches: list[Batch], scale: float = 1.0) -> Sketches:
    gatherer = gatherer_of(model)
    accumulate(gatherer, model, batches, scale)
    return gatherer.reduce(ALONE)


def test_sums_collapse_onto_rank_zero_and_are_counted_once() -> None:
    """Two ranks save a checkpoint after two batches of three each; a run of one rank goes on from it."""
    model, batches = tiny_model().eval(), [random_batch(number) for number in range(6)]
    ranks = [gatherer_of(model, exact=SITES[:1]) for _ in range(2)]
    for rank, gatherer in enumerate(ranks):
        accumulate(gatherer, model, batches[rank:4:2])
    before = [{name: tensor.clone() for name, tensor in gatherer.state().items()} for gatherer in ranks]
    for rank, gatherer in enumerate(ranks):
        comm = Communicator(rank, 2, rank, torch.device("cpu"))
        totals = iter([before[0][name] + before[1][name] for name in before[0]])
        comm.sum = lambda tensor, totals=totals: next(totals)
        gatherer.collapse(comm)
    assert all(tensor.count_nonzero() == 0 for tensor in ranks[1].state().values())
    resumed = gatherer_of(model, exact=SITES[:1])
    resumed.load_state({name: tensor.clone() for name, tensor in ranks[0].state().items()})
    accumulate(resumed, model, batches[4:])
    whole = gatherer_of(model, exact=SITES[:1])
    accumulate(whole, model, batches)
    assert torch.equal(resumed.state()["counts"], whole.state()["counts"])
    for name, tensor in whole.state().items():
        torch.testing.assert_close(resumed.state()[name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()))


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
    assert {site.hidden for site in sketches.sites.values()} == {HIDDEN}
    for fold in range(FOLDS):
        gradients = language_gradients(batches, language, {fold})
        for role_number, role in enumerate((INPUT_LINEAR, OUTPUT_LINEAR)):
            name = f"{SITES[0]}.{role}"
            gradient = gradients[f"{name}.weight"]
            p_in = random_projection(K, gradient.shape[1], SEED, name, "in").double()
            p_out = random_projection(K, gradient.shape[0], SEED, name, "out").double()
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
        p_in = random_projection(K, rows.shape[1], SEED, f"{site}.{INPUT_LINEAR}", "in").double()
        omega = random_projection(K, 1, SEED, f"{site}.{INPUT_LINEAR}", "bias").double()
        p_out = random_projection(K, columns.shape[1], SEED, f"{site}.{OUTPUT_LINEAR}", "out").double()
        expected = (rows @ p_in.T + bias[:, None] @ omega.T + columns @ p_out.T).numpy()
        np.testing.assert_allclose(neurons[language, half], expected, atol=2e-5 * max(1, abs(expected).max()))


@pytest.mark.parametrize("site", [SITES[0], "speech_encoder.adapter.layers.0.ffn", "speech_encoder.intermediate_ffn"])
def test_exact_gradients_are_autograds_own(batches: list[Batch], site: str) -> None:
    """Also in the adaptor, which sees an eighth of the frames, with a mask of its own."""
    model = tiny_model().eval()
    gatherer = gatherer_of(model, (site,), exact=(site,))
    accumulate(gatherer, model, batches)
    for language in range(len(LANGUAGES)):
        gradients = language_gradients(batches, language, set(range(FOLDS)))
        for role, found in zip((INPUT_LINEAR, OUTPUT_LINEAR), gatherer.exact(site, ALONE), strict=True):
            expected = gradients[f"{site}.{role}.weight"].numpy()
            np.testing.assert_allclose(found[language], expected, atol=2e-5 * max(1, abs(expected).max()))


def test_lanes_of_a_split_block_can_be_mined(batches: list[Batch]) -> None:
    """At the split the lanes' gradients are slices of the dense block's; a private lane holds its group's languages only."""
    dense, split_one = tiny_model().eval(), tiny_model().eval()
    whole = gatherer_of(dense, SITES[1:], exact=SITES[1:])
    accumulate(whole, dense, batches)
    router = split_model(split_one, tiny_plan(), LANGUAGES, seed=1)
    lanes = tuple(lanes_of(split_one, SITES[1]))
    parts = gatherer_of(split_one, lanes, exact=lanes)
    accumulate(parts, split_one, batches, router=router)
    expected = whole.exact(SITES[1], ALONE)[0]
    plan = tiny_plan()
    np.testing.assert_allclose(parts.exact(lanes[0], ALONE)[0], expected[:, plan.sites[0].shared], atol=1e-4)
    for group, lane in enumerate(lanes[1:]):
        found = parts.exact(lane, ALONE)[0]
        for language, name in enumerate(LANGUAGES):
            own = plan.group_of(name) == group
            np.testing.assert_allclose(
                found[language],
                expected[language][list(plan.sites[0].private[group])] * own,
                atol=1e-4,
                err_msg=f"{lane} {name}",
            )


def test_only_the_chosen_sites_get_neuron_sketches(batches: list[Batch]) -> None:
    model = tiny_model().eval()
    gatherer = gatherer_of(model)
    accumulate(gatherer, model, batches)
    core = gatherer.reduce(ALONE, neurons=False)
    assert [site.neurons for site in core.sites.values()] == [None, None]
    chosen = gatherer.with_neurons(core, SITES[1:], ALONE)
    assert chosen.sites[SITES[0]].neurons is None
    np.testing.assert_array_equal(chosen.sites[SITES[1]].neurons, gatherer.reduce(ALONE).sites[SITES[1]].neurons)


def test_sums_go_on_from_a_checkpoint(batches: list[Batch]) -> None:
    model = tiny_model().eval()
    first, second = gatherer_of(model), gatherer_of(model)
    accumulate(first, model, batches[:1])
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    accumulate(second, model, batches[1:])
    whole = gather(tiny_model().eval(), batches)
    np.testing.assert_array_equal(second.reduce(ALONE).sites[SITES[0]].core, whole.sites[SITES[0]].core)
    other = GradientGatherer(model, SITES[:1], LANGUAGES, SETTINGS, SEED, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"other sites or another mine\.sketch, mine\.folds"):
        other.load_state(first.state())


def test_counts_beyond_fp32_stay_exact() -> None:
    counts = torch.tensor([[2.0**40 + 1, 3.0, 0.0]], dtype=torch.float64)
    high, low = _exact_halves(counts)
    assert torch.equal(high.double() + low.double(), counts)


def test_a_gradient_that_is_not_finite_is_an_error(batches: list[Batch]) -> None:
    model = tiny_model().eval()
    gatherer = gatherer_of(model)
    with torch.no_grad():
        model.get_submodule(SITES[0]).output_dense.weight[0, 0] = float("nan")
    accumulate(gatherer, model, batches[:1])
    with pytest.raises(ValueError, match="not finite at 'speech_encoder"):
        gatherer.reduce(ALONE)


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


def test_frozen_weights_are_mined_all_the_same(batches: list[Batch]) -> None:
    """Only the gradient at the layer's output is read, and it flows on to whatever is trained below."""
    frozen = tiny_model().eval()
    for site in SITES:
        frozen.get_submodule(site).requires_grad_(False)
    left, right = gather(tiny_model().eval(), batches), gather(frozen, batches)
    for site in SITES:
        np.testing.assert_array_equal(right.sites[site].core, left.sites[site].core)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_sums_are_kept_in_fp32(batches: list[Batch], dtype: torch.dtype) -> None:
    """Against autograd of the same pass, whose gradients are summed in fp64: bf16 sums would be off by some 1e-3."""
    model, site = tiny_model().eval(), SITES[0]
    truth = PlainGradients(model, (site,), len(LANGUAGES), FOLDS)
    gatherer = gatherer_of(model, (site,), exact=(site,))
    with torch.autocast("cpu", dtype=dtype), gatherer.attached():
        for batch in batches:
            truth.watch(batch)
            gatherer.watch(batch.languages, batch.folds, batch.attention_mask, target_tokens(batch))
            forward(model, batch).sum().backward()
    truth.take()
    core, expected = gatherer.reduce(ALONE).sites[site].core, truth.core(site, K, SEED)
    assert core.dtype == np.float64
    np.testing.assert_allclose(core, expected, rtol=0, atol=1e-5 * abs(expected).max())
    for role, found in zip((INPUT_LINEAR, OUTPUT_LINEAR), gatherer.exact(site, ALONE), strict=True):
        exact = truth.sums[f"{site}.{role}"].sum(1).detach().numpy()
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * abs(exact).max())
