from __future__ import annotations

import numpy as np
import pytest

from gdps_ds.analysis.planner import fold_weights, make_plan, measure_sites
from gdps_ds.analysis.stability import Agreement, agreement, conflict_ratio, half_of, halves_of, mean_agreement, rho_by_site
from gdps_ds.config import PlanConfig
from gdps_ds.plan import SharingPlan, SitePlan
from tests.unit.analysis.planted import PlantedSite, plant

SITES = {"a": PlantedSite(between=0.97), "b": PlantedSite(between=0.4)}


def plan(groups: tuple[tuple[str, ...], ...], split: tuple[str, ...], scores: dict[str, float | None]) -> SharingPlan:
    lanes = tuple(SitePlan(name, 2, (0,), ((1,),) * len(groups)) for name in split)
    evidence = {"sites": {name: {"score": score} for name, score in scores.items()}}
    return SharingPlan(("aeb", "bem", "est", "gle"), groups, lanes, evidence=evidence)


def rho(first: float, second: float = 0.5) -> dict[str, np.ndarray]:
    """Two sites, of which the first has ``first`` at every pair of languages."""
    return {name: np.where(np.eye(4, dtype=bool), 1.0, value) for name, value in (("a", first), ("b", second))}


def test_agreement_worked_by_hand() -> None:
    one = plan((("aeb", "bem"), ("est", "gle")), ("a", "b"), {"a": 0.3, "b": 0.2, "c": 0.1})
    two = plan((("aeb",), ("bem", "est", "gle")), ("b",), {"a": 0.2, "b": 0.3, "c": None})
    # Adjusted Rand index of {1,2},{3,4} and {1},{2,3,4}: one pair of 6 is together in both; 2 and 3 pairs are in either;
    # expected 2 * 3 / 6 = 1, largest (2 + 3) / 2: (1 - 1) / (2.5 - 1) = 0. One site of two. Ranks 3 2 1 and 2 3 1:
    # 1 - 6 (1 + 1 + 0) / (3 * 8) = .5. rho differs by .2 at one site of two.
    found = agreement([one, two], [rho(0.4) | {"c": rho(0.1)["b"]}, rho(0.6) | {"c": rho(0.1)["b"]}])
    assert (found.groups, found.sites) == (pytest.approx(0), 0.5)
    assert (found.ranking, found.rho) == (pytest.approx(0.5), pytest.approx(0.2 / 3))
    # Of three plans, two of them the same: (1 + 0 + 0) / 3 and so on.
    three = agreement([one, one, two], [rho(0.4) | {"c": rho(0.1)["b"]}] * 2 + [rho(0.6) | {"c": rho(0.1)["b"]}])
    np.testing.assert_allclose([three.groups, three.sites, three.ranking, three.rho], [1 / 3, 2 / 3, 2 / 3, 0.4 / 9], atol=1e-9)


def test_what_is_undefined_does_not_count() -> None:
    uniform = plan((("aeb", "bem", "est", "gle"),), (), {"a": None, "b": None})
    found = agreement([uniform, uniform], [rho(np.nan), rho(0.1, 0.25)])
    assert (found.groups, found.sites, found.rho) == (1.0, 1.0, 0.25)
    assert np.isnan(found.ranking)
    assert mean_agreement([found, Agreement(0.0, 0.0, 0.5, np.nan)]) == Agreement(0.5, 0.5, 0.5, 0.25)


def test_half_of_the_folds() -> None:
    sketches = plant([0, 1, 0, 0], SITES, noise=0.5, seed=0, utterances=[1, 2, 3, 4]).sketches
    even = half_of(sketches, 0)
    assert even.tokens.shape == (4, 8) and even.tokens.sum() == sketches.tokens[:, ::2].sum()
    np.testing.assert_array_equal(even.sites["b"].core, sketches.sites["b"].core[:, :, ::2])
    neurons, whole = even.sites["b"].neurons, sketches.sites["b"].neurons
    assert neurons is not None and whole is not None
    np.testing.assert_allclose(neurons.sum(axis=1), whole[:, 0])
    np.testing.assert_allclose(neurons[:, 0], neurons[:, 1])  # both places hold as many tokens


def test_halves_of_clear_data_agree_and_two_folds_have_none() -> None:
    halves = halves_of(plant([0, 1, 0, 0], SITES, noise=0.5, seed=0).sketches)
    measured = [measure_sites(half, fold_weights(half, 50)) for half in halves]
    plans = [make_plan(half, PlanConfig(round_to=8), each) for half, each in zip(halves, measured, strict=True)]
    found = agreement(plans, [rho_by_site(each) for each in measured])
    assert (found.groups, found.sites, found.ranking) == (1, 1, pytest.approx(1))
    assert 0 < found.rho < 0.05
    assert halves_of(plant([0, 1], SITES, noise=0.5, seed=0, folds=2).sketches) == ()


def test_conflict_ratio_worked_by_hand() -> None:
    # Neurons 1 and 3 hold 0.5 of 4 on half of the seats, where chance has 2.
    assert conflict_ratio([2, 0, 1.5, 0.5], (1, 3)) == 0.25
