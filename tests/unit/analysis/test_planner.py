from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from gdps_ds.analysis.planner import make_plan
from gdps_ds.analysis.sketch import SiteSketch, Sketches
from gdps_ds.config import PlanConfig
from gdps_ds.plan import SharingPlan
from tests.unit.analysis.planted import PlantedSite, plant

HIDDEN = 64
CALM = PlantedSite(between=0.97)
TORN = "speech_encoder.encoder.layers.10.ffn2"
SITES = {
    "speech_encoder.encoder.layers.2.ffn1": CALM,
    "speech_encoder.encoder.layers.2.ffn2": dataclasses.replace(CALM, scale=3.0),
    TORN: PlantedSite(between=0.4),
}


def plan_of(sketches: Sketches, **settings: object) -> SharingPlan:
    chosen = PlanConfig.model_validate({"round_to": 8, "bootstrap": 200} | settings)
    return make_plan(sketches, chosen)


def sketches_of(labels: Sequence[int] = (0, 1, 0, 0), noise: float = 0.5, seed: int = 0, **changes: object) -> Sketches:
    return plant(labels, SITES, noise=noise, seed=seed, **changes).sketches  # type: ignore[arg-type]


def labels_of(plan: SharingPlan) -> list[int]:
    return [plan.group_of(language) for language in plan.languages]


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 2, 0, 1, 2], [0] * 5 + [1] * 3 + [2] * 4])
def test_planted_groups_and_site_are_found_where_separation_is_twice_the_noise(labels: list[int]) -> None:
    """Groups at cosine .4 are sqrt(2 * .6) = 1.1 apart; the noise of a fold has norm .5."""
    for seed in range(5):
        plan = plan_of(sketches_of(labels, seed=seed))
        assert adjusted_rand_score(labels, labels_of(plan)) == 1.0
        assert [site.name for site in plan.sites] == [TORN]
        plan.validate({name: HIDDEN for name in SITES}, plan.languages)
        # rho between the groups is .4: 25.6 of 64 neurons, in steps of 8.
        assert len(plan.sites[0].shared) == 24


@pytest.mark.parametrize("languages", [2, 4, 7])
@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_languages_that_differ_by_noise_alone_are_not_split(languages: int, noise: float) -> None:
    alike = {name: PlantedSite(between=1.0) for name in SITES}
    amounts = [1, 4, 2, 8, 1, 3, 1][:languages]
    splits = 0
    for seed in range(34):  # 204 draws over all cases; the bound leaves room for 5 % of each
        sketches = plant([0] * languages, alike, noise=noise, seed=seed, utterances=amounts).sketches
        plan = plan_of(sketches, bootstrap=100)
        splits += not plan.is_uniform
        assert plan.groups == (plan.languages,) or not plan.is_uniform
    assert splits <= 1


def test_languages_that_agree_for_all_practical_purposes_are_not_split() -> None:
    sketches = plant([0, 1], {TORN: PlantedSite(between=0.97)}, noise=0.2, seed=0, utterances=16).sketches
    plan = plan_of(sketches)
    assert plan.is_uniform
    assert plan.evidence["sites"][TORN]["significant"]
    assert "does not stay below 0.95" in plan.reason


def test_languages_that_conflict_without_groups_are_not_split() -> None:
    sketches = plant([0] * 6, {TORN: PlantedSite(between=0.5, within=0.5)}, noise=2.0, seed=3).sketches
    plan = plan_of(sketches)
    assert plan.is_uniform
    assert "no grouping is stable" in plan.reason and "plan.min_stability" in plan.reason


def test_pure_noise_leaves_the_model_uniform_with_a_reason() -> None:
    sketches = plant([0, 1, 0], {TORN: PlantedSite(scale=1.0)}, noise=1e4, seed=0).sketches
    for settings in ({}, {"sites": (TORN,)}, {"groups": 2}):
        plan = plan_of(sketches, **settings)
        assert plan.is_uniform
        assert "noise" in plan.reason or "told from 0" in plan.reason


def test_a_noisy_language_is_named() -> None:
    sketches = plant([0, 1, 1], {TORN: PlantedSite()}, noise=1.0, seed=0).sketches
    core = sketches.sites[TORN].core.copy()
    core[:, 2] = 100 * np.random.default_rng(0).standard_normal(core[:, 2].shape)
    noisy = dataclasses.replace(sketches, sites={TORN: dataclasses.replace(sketches.sites[TORN], core=core)})
    plan = plan_of(noisy, sites=(TORN,))
    assert plan.is_uniform
    assert "groups: one, rho is undefined for est: its gradient cannot be told from noise" in plan.reason


def test_groups_that_are_asked_for_fall_back_on_the_cosine_where_rho_is_undefined() -> None:
    for seed in range(5):
        sketches = plant([0, 1, 0, 0], {TORN: PlantedSite(within=0.95)}, noise=8.0, seed=seed).sketches
        assert plan_of(sketches, sites=(TORN,)).is_uniform
        plan = plan_of(sketches, sites=(TORN,), groups=2)
        assert plan.groups == (("aeb", "est", "gle"), ("bem",))
        assert "groups: 2 by k-means on the cosine of mean gradients, as rho is undefined for " in plan.reason
        # delta is about 0 in so much noise: the published rule then shares most.
        assert len(plan.sites[0].shared) == 0.75 * HIDDEN
        assert "as rho between the groups is undefined here" in plan.reason
        assert json.loads(plan.to_json())["evidence"]["grouping"]["measure"] == "cosine"
    by_ward = plan_of(sketches, sites=(TORN,), groups=3, clustering="ward", shared=0.5)
    assert len(by_ward.groups) == 3 and len(by_ward.sites[0].shared) == HIDDEN // 2
    assert "groups: 3 by Ward linkage on the cosine" in by_ward.reason


@pytest.mark.parametrize("method", ["average", "ward", "k-means"])
@pytest.mark.parametrize("rule", ["ours", "paper"])
def test_either_rule_takes_every_method_of_clustering(rule: str, method: str) -> None:
    plan = plan_of(sketches_of(), rule=rule, sites=(TORN,), clustering=method, bootstrap=20)
    assert plan.groups == (("aeb", "est", "gle"), ("bem",))
    grouping = plan.evidence["grouping"]
    assert (grouping["method"], grouping["measure"]) == (method, "rho" if rule == "ours" else "cosine")
    assert ("linkage" in grouping) == (method != "k-means")


def test_paper_rule() -> None:
    sketches = sketches_of()
    plan = plan_of(sketches, rule="paper", sites=(TORN,), width="constant", init="svd")
    assert plan.groups == (("aeb", "est", "gle"), ("bem",))
    # Folds hold noise .5: S_self = 1 / 1.25 = .8; S_cross = .8 for 3 pairs of 6 and .32 for the others; delta = .24.
    figures = plan.evidence["splits"][TORN]["capacity"]
    assert figures["delta"] == pytest.approx(0.24, abs=0.02)
    assert (figures["rule"], len(plan.sites[0].shared)) == ("paper", HIDDEN // 4)
    # Twelve languages in three groups: the paper's k is two, whatever the data say.
    twelve = plan_of(plant([0, 1, 2] * 4, SITES, noise=0.5, seed=0).sketches, rule="paper")
    assert len(twelve.groups) == 2


def test_paper_rule_takes_the_site_of_lowest_purity() -> None:
    plan = plan_of(sketches_of(), rule="paper")
    purity = {name: np.mean(site["purity"]) for name, site in plan.evidence["sites"].items()}
    assert plan.sites[0].name == min(purity, key=lambda name: purity[name])
    # Purity is low where languages are alike: at the torn site S_self is .8 and S_cross .56 on average.
    assert purity[TORN] == pytest.approx(0.59, abs=0.02) and max(purity.values()) == purity[TORN]


def test_paper_rule_splits_where_ours_does_not() -> None:
    alike = plant([0, 0, 0], {TORN: PlantedSite(between=1.0)}, noise=2.0, seed=0).sketches
    assert len(plan_of(alike, rule="paper").groups) == 2
    assert plan_of(alike).is_uniform


def test_what_the_settings_give_is_taken() -> None:
    sketches = sketches_of()
    calm = "speech_encoder.encoder.layers.2.ffn1"
    groups = (("gle", "aeb"), ("bem", "est"))
    plan = plan_of(sketches, groups=groups, sites=("*.layers.2.ffn1", "*.ffn2"), shared=0.5, width="constant")
    assert plan.groups == (("aeb", "gle"), ("bem", "est"))
    assert [site.name for site in plan.sites] == [calm, "speech_encoder.encoder.layers.2.ffn2", TORN]
    assert all((len(site.shared), len(site.private[0])) == (32, 16) for site in plan.sites)
    plan.validate({name: HIDDEN for name in SITES}, plan.languages)
    four = plan_of(sketches, groups=4)
    assert four.groups == tuple((language,) for language in four.languages)


def test_most_sites_are_those_with_significant_conflict() -> None:
    both = SITES | {"speech_encoder.encoder.layers.3.ffn2": PlantedSite(between=0.6)}
    alike = {name: dataclasses.replace(site, between=1.0) if site.between > 0.9 else site for name, site in both.items()}
    plan = plan_of(plant([0, 0, 1], alike, noise=0.5, seed=1).sketches, sites=3)
    assert [site.name for site in plan.sites] == ["speech_encoder.encoder.layers.3.ffn2", TORN]
    assert len(plan.sites[0].shared) > len(plan.sites[1].shared)


def test_empty_folds_are_left_out() -> None:
    sketches = sketches_of(noise=0.2)
    sketches.tokens[1, :5] = 0
    for site in sketches.sites.values():
        site.core[:, 1, :5] = 0
    assert plan_of(sketches).groups == (("aeb", "est", "gle"), ("bem",))


def test_plans_are_deterministic_and_survive_json() -> None:
    sketches = sketches_of()
    plan, again = plan_of(sketches), plan_of(sketches)
    assert plan.to_json() == again.to_json()
    assert SharingPlan.from_json(plan.to_json()) == plan
    louder = {  # by a power of two, which rounds nothing
        name: SiteSketch(site.hidden, 8 * site.core, None if site.neurons is None else 8 * site.neurons)
        for name, site in sketches.sites.items()
    }
    assert plan_of(dataclasses.replace(sketches, sites=louder)).digest == plan.digest


def test_evidence_holds_the_figures_behind_each_decision() -> None:
    plan = plan_of(sketches_of())
    evidence = json.loads(plan.to_json())["evidence"]
    torn = evidence["sites"][TORN]
    # Three pairs of six lie across the groups: conflict .5 * .6.
    assert torn["conflict"]["low"] < 0.3 < torn["conflict"]["high"]
    assert sum(site["energy_share"] for site in evidence["sites"].values()) == pytest.approx(1, abs=1e-3)
    # Gradients are 1, 3 and 1 times as large: 9 of 11 parts of the energy are not where the conflict is.
    assert evidence["sites"]["speech_encoder.encoder.layers.2.ffn2"]["energy_share"] == pytest.approx(9 / 11, abs=0.02)
    assert np.shape(evidence["similarity"][TORN]["rho"]["value"]) == (4, 4)
    assert evidence["grouping"]["labels"] == [0, 1, 0, 0]
    assert evidence["grouping"]["by_method"] == {key: [0, 1, 0, 0] for key in ("average", "ward", "k-means")}
    split = evidence["splits"][TORN]
    assert split["capacity"]["common_share"]["low"] < 0.4 < split["capacity"]["common_share"]["high"]
    assert sum(split["energies"]["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert plan.energy_shares == pytest.approx((0.75, 0.25), abs=0.05)
    neurons = split["neurons"]
    assert neurons["conflict_left"] < 0.5 * neurons["conflict_left_by_random_lane"]
    assert set(split["cca_languages"]["pairs"]) == {"aeb|bem", "aeb|est", "aeb|gle", "bem|est", "bem|gle", "est|gle"}
    assert set(split["cca_groups"]["pairs"]) == {"aeb+est+gle|bem"}
    assert plan.provenance["settings"]["rule"] == "ours" and "scikit-learn" in plan.provenance["versions"]
    for part in (TORN, "conflict", "replicates agree", "24 of 64 neurons shared"):
        assert part in plan.summary()


def test_without_neuron_sketches_only_new_weights_can_fill_the_lanes() -> None:
    sketches = sketches_of()
    bare = sketches.sites | {TORN: dataclasses.replace(sketches.sites[TORN], neurons=None)}
    partly = dataclasses.replace(sketches, sites=bare)
    with pytest.raises(ValueError, match=rf"plan\.sites: '{TORN}' has no neuron sketch, .* mine\.neurons: all"):
        plan_of(partly, sites=("*10*",))
    with pytest.raises(ValueError, match=r"plan\.sites: 4 sites to split, but mine\.sites has 3"):
        plan_of(partly, sites=4)
    plan = plan_of(partly, init="svd")
    assert plan.sites[0].name == TORN
    assert plan.sites[0].shared == tuple(range(24))


def test_what_does_not_go_together_is_an_error() -> None:
    sketches = sketches_of()
    with pytest.raises(ValueError, match=r"plan\.sites: 'decoder\*' matches none of the sketched sites"):
        plan_of(sketches, sites=("decoder*",))
    with pytest.raises(ValueError, match=r"plan\.groups: 5 groups of 4 languages"):
        plan_of(sketches, groups=5)
    with pytest.raises(ValueError, match=r"plan\.groups names aeb, bem, the sketches hold aeb, bem, est, gle"):
        plan_of(sketches, groups=(("aeb",), ("bem",)))
    with pytest.raises(ValueError, match=r"plan\.round_to: no multiple of 64 below the hidden width 64"):
        plan_of(sketches, round_to=64)


def test_faulty_sketches_name_language_and_site() -> None:
    absent = sketches_of()
    absent.tokens[2] = 0
    with pytest.raises(ValueError, match=r"no target token of est was mined; raise mine\.updates or check data\.corpora"):
        plan_of(absent)
    broken = sketches_of()
    broken.sites[TORN].core[1, 3, 2, 0, 0] = np.nan
    with pytest.raises(ValueError, match=f"'{TORN}' holds NaN or infinity for gle"):
        plan_of(broken)
    lopsided = sketches_of()
    lopsided.tokens[1, ::2] = 0
    for site in lopsided.sites.values():
        site.core[:, 1, ::2] = 0
    with pytest.raises(
        ValueError, match=r"no utterance of bem \(\d+ mined\) in one half of the folds, even or odd; raise mine\.updates"
    ):
        plan_of(lopsided)


def test_one_language_stays_uniform() -> None:
    plan = plan_of(sketches_of([0]))
    assert plan.is_uniform and plan.groups == (("aeb",),)
