from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gdps_ds.model.families import hidden_widths, lanes_of
from gdps_ds.model.grouped_ffn import GroupedFeedForward
from gdps_ds.model.routing import Router
from gdps_ds.model.surgery import keeps_function, split_model
from gdps_ds.plan import SharingPlan
from tests.tiny import HIDDEN, LANGUAGES, SITES, random_batch, tiny_model, tiny_plan

GROUPS = (("aeb", "gle"), ("bem", "est"))


def logits(model: nn.Module, router: Router | None, seed: int = 0, languages: Tensor | None = None) -> Tensor:
    batch = random_batch(seed, languages=languages)
    if router is not None:
        router.assign(batch.languages, "cpu")
    return model(
        input_features=batch.input_features, attention_mask=batch.attention_mask, decoder_input_ids=batch.decoder_input_ids
    ).logits


@pytest.fixture
def dense() -> nn.Module:
    return tiny_model().eval()


def test_the_preserving_split_computes_the_same_function(dense: nn.Module) -> None:
    """Up to the rounding of sums over neurons in another order."""
    before = logits(dense, None)
    router = split_model(dense, tiny_plan(sites=SITES), LANGUAGES, seed=1)
    torch.testing.assert_close(logits(dense, router), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("width", "init"), [("constant", "neurons"), ("preserve", "svd"), ("preserve", "random")])
def test_other_splits_change_the_function_and_say_so(dense: nn.Module, width: str, init: str) -> None:
    before, plan = logits(dense, None), tiny_plan(width, init)
    router = split_model(dense, plan, LANGUAGES, seed=1)
    after = logits(dense, router)
    assert not keeps_function(plan)
    assert torch.isfinite(after).all()
    assert (after - before).abs().max() > 1e-3


def test_constant_width_keeps_the_number_of_parameters(dense: nn.Module) -> None:
    count = sum(parameter.numel() for parameter in dense.parameters())
    split_model(dense, tiny_plan("constant"), LANGUAGES, seed=1)
    assert sum(parameter.numel() for parameter in dense.parameters()) == count


def test_each_utterance_passes_through_its_own_lane(dense: nn.Module) -> None:
    """Spoil group 1's lane: only utterances of bem and est may change."""
    router = split_model(dense, tiny_plan(), LANGUAGES, seed=1)
    before = logits(dense, router)
    with torch.no_grad():
        dense.get_submodule(SITES[-1]).private[1].output_dense.weight.zero_()
    change = (logits(dense, router) - before).abs().amax((1, 2))
    assert change[[0, 3]].tolist() == [0, 0]
    assert (change[[1, 2]] > 1e-3).all()


def test_every_private_parameter_has_a_gradient_when_its_group_is_absent(dense: nn.Module) -> None:
    router = split_model(dense, tiny_plan(), LANGUAGES, seed=1)
    logits(dense, router, languages=torch.tensor([0, 3, 0, 0])).square().sum().backward()
    present, absent = dense.get_submodule(SITES[-1]).private
    assert all(parameter.grad.abs().sum() > 0 for parameter in present.parameters())
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in absent.parameters())


def test_private_gradients_are_those_of_the_groups_utterances(dense: nn.Module) -> None:
    """At the split, a dense neuron's gradient is the sum of its copies' gradients over the groups."""
    split = copy.deepcopy(dense)
    router = split_model(split, tiny_plan(), LANGUAGES, seed=1)
    logits(dense, None).square().sum().backward()
    logits(split, router).square().sum().backward()
    neurons = list(tiny_plan().sites[0].private[0])
    whole = dense.get_submodule(SITES[-1]).intermediate_dense.weight.grad[neurons]
    copies = sum(lane.intermediate_dense.weight.grad for lane in split.get_submodule(SITES[-1]).private)
    torch.testing.assert_close(copies, whole, atol=1e-4, rtol=1e-4)


def test_generate_with_beams_routes_whole_batches(dense: nn.Module) -> None:
    router = split_model(dense, tiny_plan(), LANGUAGES, seed=1)
    batch = random_batch(3)
    router.assign(batch.languages, "cpu")
    start = torch.full((len(batch), 1), 7)
    together = dense.generate(
        batch.input_features, attention_mask=batch.attention_mask, decoder_input_ids=start, num_beams=3, max_new_tokens=6
    )
    for row in range(len(batch)):
        router.assign(batch.languages[row : row + 1], "cpu")
        frames = int(batch.attention_mask[row].sum())
        alone = dense.generate(
            batch.input_features[row : row + 1, :frames],
            attention_mask=batch.attention_mask[row : row + 1, :frames],
            decoder_input_ids=start[:1],
            num_beams=3,
            max_new_tokens=6,
        )[0]
        width = min(len(alone), together.shape[1])
        assert together[row, :width].tolist() == alone[:width].tolist()


def test_repeated_rows_follow_their_utterance() -> None:
    """Where a lane sees beams, an utterance's rows stand together: the assignment repeats."""
    torch.manual_seed(0)
    router = Router(GROUPS, LANGUAGES)
    block = GroupedFeedForward(4, 3, [2, 2], activation=torch.relu, dropout=0.0, router=router)
    x = torch.randn(4, 5, 4)
    router.assign(torch.tensor([1, 0, 2, 3]), "cpu")
    torch.testing.assert_close(block(x.repeat_interleave(3, 0)), block(x).repeat_interleave(3, 0))


def test_a_batch_of_another_size_is_refused() -> None:
    router = Router(GROUPS, LANGUAGES)
    with pytest.raises(RuntimeError, match=r"call Router\.assign"):
        router.assignment(4)
    router.assign(torch.tensor([0, 1, 2]), "cpu")
    with pytest.raises(RuntimeError, match="set for 3 utterances, but the batch has 4"):
        router.assignment(4)


def test_a_language_without_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no group of the plan has mar .*data\.languages"):
        Router(GROUPS, (*LANGUAGES, "mar"))


def test_sites_and_lanes_are_found_by_name(dense: nn.Module) -> None:
    assert set(SITES) <= set(hidden_widths(dense))
    assert hidden_widths(dense)[SITES[0]] == HIDDEN
    assert list(lanes_of(dense, SITES[-1])) == [SITES[-1]]
    split_model(dense, tiny_plan(), LANGUAGES, seed=1)
    assert list(lanes_of(dense, SITES[-1])) == [f"{SITES[-1]}.{lane}" for lane in ("shared", "private.0", "private.1")]
    assert SITES[-1] not in hidden_widths(dense)


def test_svd_lanes_rebuild_the_linear_equivalent(dense: nn.Module) -> None:
    """Shared + all private lanes scaled by shares that sum to 1 give W_out W_in back (paper, Section 3.4)."""
    block = dense.get_submodule(SITES[-1])
    whole = (block.output_dense.weight @ block.intermediate_dense.weight).detach()
    plan = tiny_plan("preserve", "svd")
    plan = SharingPlan(plan.languages, plan.groups, plan.sites, plan.width, plan.init, energy_shares=(0.3, 0.7))
    split_model(dense, plan, LANGUAGES, seed=1)
    lanes = lanes_of(dense, SITES[-1]).values()
    rebuilt = sum(lane.output_dense.weight @ lane.intermediate_dense.weight for lane in lanes)
    torch.testing.assert_close(rebuilt, whole, atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_split_block_compiles_and_exports(dense: nn.Module) -> None:
    """torch.compile follows the router from batch to batch; torch.export freezes one batch's groups, as a program must."""
    router = split_model(dense, tiny_plan(), LANGUAGES, seed=1)
    block = dense.get_submodule(SITES[-1])
    compiled = torch.compile(block, backend="aot_eager")
    hidden = torch.randn(4, 9, 16, requires_grad=True)
    for languages in ([0, 1, 2, 3], [0, 3, 0, 0], [1, 1, 1, 2]):
        router.assign(torch.tensor(languages), "cpu")
        torch.testing.assert_close(compiled(hidden), block(hidden))
        found, expected = (torch.autograd.grad(each(hidden).square().sum(), hidden)[0] for each in (compiled, block))
        torch.testing.assert_close(found, expected)
    program = torch.export.export(block, (hidden.detach(),))
    torch.testing.assert_close(program.module()(hidden.detach()), block(hidden).detach())
