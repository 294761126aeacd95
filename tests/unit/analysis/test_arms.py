"""Arms differ from ours, or from the published method, in the one thing that they are named after."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from gdps_ds.analysis import arms
from gdps_ds.analysis.arms import PLANS, Origin, arm_plan
from gdps_ds.analysis.planner import make_plan
from gdps_ds.config import Arm, PlanConfig
from gdps_ds.plan import SharingPlan
from tests.unit.analysis.planted import PlantedSite, plant

SITE, HIDDEN = "encoder.layers.1.ffn2", 64
SITES = {f"encoder.layers.{layer}.{block}": PlantedSite(between=0.9) for layer in (0, 1, 2) for block in ("ffn1", "ffn2")}
SKETCHES = plant((0, 1, 0, 0), SITES | {SITE: PlantedSite(between=0.4)}, noise=0.5, seed=0, hidden=HIDDEN).sketches
SETTINGS = PlanConfig(round_to=8, bootstrap=40)
OURS = make_plan(SKETCHES, SETTINGS)
ORIGIN = Origin(OURS, SKETCHES, SETTINGS, seed=1)


def plan(arm: str, **changes: object) -> SharingPlan:
    return arm_plan(arm, replace(ORIGIN, **changes))


def groups(of: SharingPlan) -> set[frozenset[str]]:
    return {frozenset(group) for group in of.groups}


def widths(of: SharingPlan) -> list[tuple[str, int]]:
    return [(site.name, len(site.shared)) for site in of.sites]


def neurons(of: SharingPlan) -> int:
    return sum(len(site.shared) + sum(map(len, site.private)) for site in of.sites)


def test_the_configuration_and_the_table_know_every_arm() -> None:
    assert set(PLANS) == set(get_args(Arm))
    assert [arm for arm in PLANS if arm not in str(arms.__doc__)] == []


@pytest.mark.parametrize("arm", PLANS)
def test_every_arm_can_be_applied_and_is_made_again(arm: str) -> None:
    found = plan(arm)
    found.validate(dict.fromkeys(SITES, HIDDEN), OURS.languages)
    assert SharingPlan.from_json(found.to_json()).digest == found.digest == plan(arm).digest


def test_ours_is_the_plan_of_the_run() -> None:
    assert groups(OURS) == {frozenset({"bem"}), frozenset({"aeb", "est", "gle"})} and widths(OURS)[0][0] == SITE
    assert plan("gdps").digest == OURS.digest
    assert plan("uniform").is_uniform and plan("pcgrad").is_uniform


def test_random_groups_have_our_sizes_and_never_our_languages() -> None:
    drawn = [plan("random-groups", seed=seed) for seed in range(12)]
    assert all(groups(each) != groups(OURS) and widths(each) == widths(OURS) for each in drawn)
    assert all(sorted(map(len, each.groups)) == [1, 3] for each in drawn)
    assert len({frozenset(groups(each)) for each in drawn}) == 3  # the other languages that may stand alone


@pytest.mark.parametrize("width", ["preserve", "constant"])
def test_random_neurons_keep_all_but_which(width: str) -> None:
    settings = SETTINGS.model_copy(update={"width": width, "shared": 0.5})
    origin = Origin(make_plan(SKETCHES, settings), SKETCHES, settings, seed=1)
    found = arm_plan("random-neurons", origin)
    assert (found.groups, widths(found)) == (origin.ours.groups, widths(origin.ours))
    assert found.sites[0].shared != origin.ours.sites[0].shared
    assert found.digest != arm_plan("random-neurons", replace(origin, seed=2)).digest


def test_wide_has_as_many_neurons_as_ours_and_no_groups() -> None:
    found = plan("wide")
    assert neurons(found) == neurons(OURS) and found.groups == (OURS.languages,)
    settings = SETTINGS.model_copy(update={"width": "constant"})
    with pytest.raises(ValueError, match=r"'wide' cannot be planned: plan\.width: constant adds no parameters"):
        plan("wide", ours=make_plan(SKETCHES, settings), settings=settings)


def test_groups_and_widths_that_are_given() -> None:
    alone = plan("per-language")
    assert groups(alone) == {frozenset({language}) for language in OURS.languages} and widths(alone) == widths(OURS)
    shared = {arm: widths(plan(arm)) for arm in ("all-private", "shared-25", "shared-50", "shared-75")}
    assert shared == {arm: [(SITE, r)] for arm, r in zip(shared, (8, 16, 32, 48), strict=True)}
    assert all(groups(plan(arm)) == groups(OURS) for arm in shared)


def test_other_sites_are_neighbours() -> None:
    width = widths(OURS)[0][1]
    assert widths(plan("other-ffn")) == [("encoder.layers.1.ffn1", width)]
    assert widths(plan("other-layer")) == [("encoder.layers.0.ffn2", width)]
    few = replace(SKETCHES, sites={SITE: SKETCHES.sites[SITE]})
    with pytest.raises(ValueError, match=r"'other-ffn' cannot be planned: mine\.sites has no other block beside"):
        plan("other-ffn", sketches=few)
    with pytest.raises(ValueError, match=r"mine\.sites has no layer but that of 'encoder\.layers\.1\.ffn2'"):
        plan("other-layer", sketches=few)


def test_the_published_method_loses_one_component_at_a_time() -> None:
    paper, no_a, no_b, no_c = (plan(arm) for arm in ("paper", "paper-no-a", "paper-no-b", "paper-no-c"))
    for each in (paper, no_a, no_b, no_c):
        assert (each.width, each.init, len(each.groups), neurons(each)) == ("constant", "svd", 2, HIDDEN)
    assert groups(no_a) == {frozenset({"aeb", "bem"}), frozenset({"est", "gle"})} != groups(paper)
    assert (groups(no_b), no_b.energy_shares) == (groups(paper), paper.energy_shares)
    assert [len(lane) for site in no_b.sites for lane in (site.shared, *site.private)] == [24, 20, 20]
    assert (no_c.sites, no_c.energy_shares) == (paper.sites, (0.5, 0.5)) and paper.energy_shares != (0.5, 0.5)


@pytest.mark.parametrize("arm", sorted({*PLANS} - {"gdps", "uniform", "paper", "paper-no-a", "paper-no-b", "paper-no-c"}))
def test_variants_need_a_plan_that_splits(arm: str) -> None:
    with pytest.raises(ValueError, match=rf"run\.arms: '{arm}' cannot be planned: .* stays uniform; leave it out, or"):
        plan(arm, ours=SharingPlan.uniform(OURS.languages))


def test_languages_that_are_all_alone_have_no_other_groups() -> None:
    with pytest.raises(ValueError, match="only one way to put each language in a group of its own"):
        plan("random-groups", ours=plan("per-language"))
