"""Where the tensors of new blocks come from: pinned small cases, and what must hold for any change of lanes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gdps_ds.model.routing import Router
from gdps_ds.model.surgery import LaneContent, block_sources, changed_blocks, install, lanes_by, new_block, split_model
from gdps_ds.plan import SharingPlan, SitePlan
from tests.tiny import HIDDEN, LANGUAGES, SITES, tiny_model, tiny_plan, wider_plan

UNIFORM = SharingPlan.uniform(LANGUAGES)
WEIGHT = "intermediate_dense.weight"


def assembled(old: dict[str, LaneContent], new: dict[str, LaneContent], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    sources = block_sources(old, new)
    return {name: source.assemble(tensors.__getitem__) for name, source in sources.items() if name.endswith(WEIGHT)}


def rows(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_merging_takes_the_mean_over_languages() -> None:
    """Neuron 0 is shared (5). Neuron 1 is 1 for the group {a} and 4 for the group {b, c}: (1 + 4 + 4) / 3 = 3."""
    old = {
        "shared.": LaneContent((0,), ("a", "b", "c")),
        "private.0.": LaneContent((1,), ("a",)),
        "private.1.": LaneContent((1,), ("b", "c")),
    }
    tensors = {f"shared.{WEIGHT}": rows(5.0), f"private.0.{WEIGHT}": rows(1.0), f"private.1.{WEIGHT}": rows(4.0)}
    merged = assembled(old, {"": LaneContent((0, 1), ("a", "b", "c"))}, tensors)
    assert torch.equal(merged[WEIGHT], rows(5.0, 3.0))


def test_lanes_of_constant_width_give_each_neuron_to_whom_had_it() -> None:
    """Groups {a} and {b} had neurons 1 and 2 alone; the dense block takes each from its only owner, also for the other."""
    old = {
        "shared.": LaneContent((0,), ("a", "b")),
        "private.0.": LaneContent((1,), ("a",)),
        "private.1.": LaneContent((2,), ("b",)),
    }
    tensors = {f"shared.{WEIGHT}": rows(5.0), f"private.0.{WEIGHT}": rows(1.0), f"private.1.{WEIGHT}": rows(4.0)}
    assert torch.equal(assembled(old, {"": LaneContent((0, 1, 2), ("a", "b"))}, tensors)[WEIGHT], rows(5.0, 1.0, 4.0))
    again = assembled(old, {"shared.": LaneContent((1,), ("a", "b")), "private.0.": LaneContent((2,), ("a",))}, tensors)
    assert torch.equal(again[f"shared.{WEIGHT}"], rows(1.0))
    assert torch.equal(again[f"private.0.{WEIGHT}"], rows(4.0))


@st.composite
def plans(draw: st.DrawFn) -> SharingPlan:
    """Any plan of the tiny model's last site that preserves widths."""
    order = draw(st.permutations(LANGUAGES))
    cut = draw(st.integers(1, len(order) - 1))
    shared = tuple(sorted(draw(st.sets(st.integers(0, HIDDEN - 1), min_size=1, max_size=HIDDEN - 1))))
    others = tuple(neuron for neuron in range(HIDDEN) if neuron not in shared)
    return SharingPlan(
        LANGUAGES, (tuple(order[:cut]), tuple(order[cut:])), (SitePlan(SITES[-1], HIDDEN, shared, (others,) * 2),)
    )


def change(model: torch.nn.Module, old: SharingPlan, new: SharingPlan) -> None:
    router = None if new.is_uniform else Router(new.groups, LANGUAGES)
    changed = changed_blocks(old, new).items()
    install(model, {name: new_block(model, name, lanes, new, router, seed=1) for name, lanes in changed}, router)


@settings(max_examples=20, deadline=None)
@given(first=plans(), second=plans())
def test_lanes_that_have_not_learnt_yet_can_be_changed_and_merged_at_will(first: SharingPlan, second: SharingPlan) -> None:
    model = tiny_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for old, new in ((UNIFORM, first), (first, second), (second, UNIFORM)):
        change(model, old, new)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=1e-6, atol=0)  # weights of a mean such as 1/3 round


def test_dividing_a_group_copies_its_lane() -> None:
    model, plan = tiny_model(), tiny_plan()
    split_model(model, plan, LANGUAGES, seed=1)
    with torch.no_grad():
        model.get_submodule(SITES[-1]).private[0].output_dense.weight.normal_()
    site = plan.sites[0]
    further = replace(
        plan,
        groups=(("bem", "est"), ("aeb",), ("gle",)),
        energy_shares=(),
        sites=(replace(site, private=site.private[:1] * 3),),
    )
    lanes = [lane.output_dense.weight.clone() for lane in model.get_submodule(SITES[-1]).private]
    change(model, plan, further)
    found = [lane.output_dense.weight for lane in model.get_submodule(SITES[-1]).private]
    assert [torch.equal(*pair) for pair in zip(found, (lanes[1], lanes[0], lanes[0]), strict=True)] == [True] * 3


def test_a_wider_block_keeps_the_function_and_can_learn() -> None:
    """24 new neurons own 24 (2 d + 1) parameters; their outputs are zero at first, and get a gradient."""
    model, states = tiny_model().eval(), torch.randn(3, 5, 16)
    block = model.get_submodule(SITES[-1])
    before, parameters = block(states), sum(each.numel() for each in block.parameters())
    router = split_model(model, wider_plan(24), LANGUAGES, seed=1)
    router.assign(torch.tensor([2, 0, 1]), "cpu")
    wider = model.get_submodule(SITES[-1])
    torch.testing.assert_close(wider(states), before, atol=1e-6, rtol=0)
    assert sum(each.numel() for each in wider.parameters()) == parameters + 24 * 33
    wider(states).square().sum().backward()
    assert wider.private[0].output_dense.weight.grad.abs().min() > 0
    assert wider.private[0].intermediate_dense.weight.std().item() == pytest.approx(0.2, rel=0.1)  # of the dense block's inputs


def test_a_wider_block_is_not_merged_into_one_that_has_no_room() -> None:
    model = tiny_model()
    split_model(model, wider_plan(24), LANGUAGES, seed=1)
    with pytest.raises(ValueError, match="has no room for the 24 neurons that width added gave it"):
        change(model, wider_plan(24), UNIFORM)


def test_a_frozen_block_gives_frozen_lanes() -> None:
    model = tiny_model()
    model.get_submodule(SITES[-1]).output_dense.weight.requires_grad_(False)
    split_model(model, tiny_plan(), LANGUAGES, seed=1)
    trained = {name: parameter.requires_grad for name, parameter in model.get_submodule(SITES[-1]).named_parameters()}
    assert [name for name, needed in trained.items() if not needed] == [
        "shared.output_dense.weight",
        "private.0.output_dense.weight",
        "private.1.output_dense.weight",
    ]


def test_only_what_differs_is_changed() -> None:
    two = tiny_plan(sites=SITES)
    assert list(changed_blocks(UNIFORM, two)) == sorted(SITES)
    assert list(changed_blocks(tiny_plan(sites=SITES[:1]), two)) == [SITES[1]]
    assert changed_blocks(two, two) == {}
    assert lanes_by(UNIFORM, SITES[0], 3) == {"": LaneContent((0, 1, 2), LANGUAGES)}


def test_blocks_that_stay_follow_the_new_router() -> None:
    model, one, two = tiny_model(), tiny_plan(sites=SITES[:1]), tiny_plan(sites=SITES)
    split_model(model, one, LANGUAGES, seed=1)
    change(model, one, two)
    assert model.get_submodule(SITES[0]).router is model.get_submodule(SITES[1]).router


@pytest.mark.parametrize("fallback", ["est", None])
def test_a_language_without_a_group_takes_the_fallback_or_is_refused(fallback: str | None) -> None:
    languages = (*LANGUAGES, "mar")
    plan = replace(tiny_plan(), fallback=fallback)
    if fallback is None:
        with pytest.raises(ValueError, match=r"but data\.languages has"):
            plan.validate({SITES[-1]: HIDDEN}, languages)
        with pytest.raises(ValueError, match="no group of the plan has mar"):
            Router(plan.groups, languages)
        return
    plan.validate({SITES[-1]: HIDDEN}, languages)
    router = Router(plan.groups, languages, fallback)
    router.assign(torch.tensor([4, 0]), "cpu")
    assert router.rows(plan.group_of("est")).tolist() == [0]
