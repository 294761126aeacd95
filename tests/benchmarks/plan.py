"""What the planner costs at true size, and how well it recovers what was planted, beside the published rules.

Planted problems come from :mod:`tests.unit.analysis.planted`. A problem's *score* is between 0 and 1:

- ``two``, ``three+``: the adjusted Rand index of the groups, at a given site; two are what the published k = 2 assumes;
- ``two asked``, ``three+ asked``: the same where ``plan.groups`` tells both rules the number of groups, so that neither
  may leave the model uniform;
- ``none``: 1 where languages that differ by noise alone are left together;
- ``site``: 1 where the one site of six is chosen at which the groups fight.

A recovery curve is the score at each noise, its area the mean over the curve (noise in octaves). ``recovery_auc_ratio``
compares the areas of the rules where they decide for themselves, ``asked_auc_ratio`` where the number of groups is asked for.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import adjusted_rand_score

from gdps_ds.analysis import subspace
from gdps_ds.analysis.planner import make_plan
from gdps_ds.analysis.sketch import SiteSketch, Sketches
from gdps_ds.config import PlanConfig
from gdps_ds.plan import SharingPlan
from tests.benchmarks.timing import seconds
from tests.unit.analysis.planted import PlantedSite, plant

HIDDEN, SKETCH = 4096, 64
NOISES = tuple(2.0 ** (1 + half / 2) for half in range(9))
"""Norm of an utterance's noise, where gradients have norm 1 and a language has 16 utterances."""
DRAWS, ASKED_DRAWS = 10, 40
"""Problems at each noise; where both rules must split, their scores lie closer together."""
RULES = ("ours", "paper")
TORN = "encoder.layers.5.ffn2"
TWO = ([0, 1, 0, 0], [0, 0, 1, 1, 0, 1])
MORE = ([0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3])


def plan_of(sketches: Sketches, **settings: object) -> SharingPlan:
    chosen = PlanConfig.model_validate({"round_to": 8, "bootstrap": 200} | settings)
    return make_plan(sketches, chosen)


def true_size(sites: int, languages: int) -> Sketches:
    """Sketches of SeamlessM4T-Medium's blocks (h = 4096, k = 64, 16 folds), of which one site has neuron sketches.

    All sites share one core sketch: 48 of 100 languages would take 5 GB, and the planner reads one at a time.
    """
    names = [f"encoder.layers.{index // 2}.ffn{index % 2 + 1}" for index in range(sites)]
    labels = [index % 2 for index in range(languages)]
    drawn = plant(labels[:12], {TORN: PlantedSite()}, noise=1.0, seed=0, hidden=HIDDEN, sketch=SKETCH).sketches
    # plant names twelve languages; more repeat them, each with noise of its own.
    generator = np.random.default_rng(1)
    copies = np.arange(languages) % len(drawn.languages)
    core, neurons = drawn.sites[TORN].core[:, copies], drawn.sites[TORN].neurons
    assert neurons is not None
    core += core.std() * generator.standard_normal(core.shape)
    whole, bare = SiteSketch(HIDDEN, core, neurons[copies]), SiteSketch(HIDDEN, core)
    return Sketches(
        tuple(f"{chr(97 + index // 26)}{chr(97 + index % 26)}" for index in range(languages)),
        drawn.tokens[copies],
        drawn.utterances[copies],
        {name: whole if name == names[-1] else bare for name in names},
        seed=0,
    )


def plan_at_true_size(sites: int, languages: int) -> tuple[float, float]:
    """Seconds, and gigabytes that the process holds at its peak beyond those it held before planning (Linux)."""
    sketches = true_size(sites, languages)
    last = list(sketches.sites)[-1]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident_gigabytes("VmRSS")
    spent = seconds(lambda: make_plan(sketches, PlanConfig(sites=(last,))))
    return spent, resident_gigabytes("VmHWM") - before


def resident_gigabytes(field: str) -> float:
    """``VmRSS`` now, or ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6


def in_own_process(sites: int, languages: int) -> tuple[float, float]:
    """:func:`plan_at_true_size` in a process of its own, whose peak memory nothing else has raised."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(plan_at_true_size, (sites, languages))


def grouping_score(labels: Sequence[int], noise: float, seed: int, rule: str, groups: int | str = "auto") -> float:
    sketches = plant(labels, {TORN: PlantedSite(within=0.95)}, noise=noise, seed=seed).sketches
    plan = plan_of(sketches, rule=rule, sites=(TORN,), groups=groups)
    return max(0.0, float(adjusted_rand_score(labels, [plan.group_of(language) for language in plan.languages])))


def nothing_score(noise: float, seed: int, rule: str) -> float:
    languages = 3 + seed % 4
    sketches = plant([0] * languages, {TORN: PlantedSite(between=1.0)}, noise=noise, seed=seed).sketches
    return float(plan_of(sketches, rule=rule, sites=(TORN,)).is_uniform)


def site_score(noise: float, seed: int, rule: str) -> float:
    calm = {f"encoder.layers.{layer}.ffn2": PlantedSite(between=0.9) for layer in range(6)}
    sketches = plant(TWO[seed % 2], calm | {TORN: PlantedSite(between=0.4)}, noise=noise, seed=seed).sketches
    return float([site.name for site in plan_of(sketches, rule=rule).sites] == [TORN])


def asked_score(labels: Sequence[int], noise: float, seed: int, rule: str) -> float:
    return grouping_score(labels, noise, seed, rule, max(labels) + 1)


Problem = Callable[[float, int, str], float]
DECIDED: dict[str, Problem] = {
    "two": lambda noise, seed, rule: grouping_score(TWO[seed % 2], noise, seed, rule),
    "three+": lambda noise, seed, rule: grouping_score(MORE[seed % 2], noise, seed, rule),
    "none": nothing_score,
    "site": site_score,
}
ASKED: dict[str, Problem] = {
    "two asked": lambda noise, seed, rule: asked_score(TWO[seed % 2], noise, seed, rule),
    "three+ asked": lambda noise, seed, rule: asked_score(MORE[seed % 2], noise, seed, rule),
}


def recovery_curves(problems: Mapping[str, Problem], draws: int) -> np.ndarray:
    """(rules, problems, noises) mean scores."""
    return np.array(
        [
            [[np.mean([score(noise, seed, rule) for seed in range(draws)]) for noise in NOISES] for score in problems.values()]
            for rule in RULES
        ]
    )


def area(curve: np.ndarray) -> float:
    """Mean height of a curve over :data:`NOISES`, by trapezoids."""
    return float((curve[:-1] + curve[1:]).mean() / 2)


def area_ratio(problems: Mapping[str, Problem], draws: int) -> float:
    """Area of our mean curve / the published rule's; prints both rules' curves."""
    curves = recovery_curves(problems, draws)
    print("score at noise".ljust(20) + "".join(f"{noise:>7.2g}" for noise in NOISES) + f"{'area':>8}")
    for rule, scores in zip(RULES, curves, strict=True):
        for name, curve in zip([*problems, "mean"], [*scores, scores.mean(axis=0)], strict=True):
            print(f"{rule + ' ' + name:<20}" + "".join(f"{score:>7.2f}" for score in curve) + f"{area(curve):>8.2f}")
    ours, paper = (area(scores.mean(axis=0)) for scores in curves)
    return ours / paper


def false_split_rate(draws: int = 200) -> float:
    """How often languages that differ by noise alone are split, over numbers of languages, amounts of data and noise."""
    splits = 0
    alike = {f"encoder.layers.{layer}.ffn2": PlantedSite(between=1.0) for layer in range(3)}
    for seed in range(draws):
        generator = np.random.default_rng(seed)
        languages = int(generator.integers(2, 9))
        amounts = generator.integers(1, 9, size=languages).tolist()
        noise = float(2.0 ** generator.uniform(-1, 3))
        sketches = plant([0] * languages, alike, noise=noise, seed=seed, utterances=amounts).sketches
        splits += not plan_of(sketches).is_uniform
    return splits / draws


def residual_conflict_ratio(draws: int = 20) -> float:
    """True (noise-free) conflict left in the shared lane, ours / expected of random neurons."""
    left, by_chance = 0.0, 0.0
    for seed in range(draws):
        planted = plant(TWO[0], {TORN: PlantedSite(within=0.95)}, noise=NOISES[1 + seed % 4], seed=seed)
        # Both halves of the truth are the truth.
        halves = np.repeat(planted.gradients[TORN][:, None], 2, axis=1)
        truth = subspace.score_neurons(subspace.group_gradients(halves, np.ones(halves.shape[:2]), planted.labels)).conflict
        plan = plan_of(planted.sketches, sites=(TORN,), groups=(("aeb", "est", "gle"), ("bem",)), shared=0.5)
        left += truth[list(plan.sites[0].shared)].sum()
        by_chance += truth.mean() * len(plan.sites[0].shared)
    return left / by_chance


def measure() -> dict[str, float]:
    spent, _ = in_own_process(12, 4)
    spent_at_scale, memory = in_own_process(48, 100)
    return {
        "seconds": spent,
        "seconds_100x48": spent_at_scale,
        "peak_memory_gb": memory,
        "recovery_auc_ratio": area_ratio(DECIDED, DRAWS),
        "asked_auc_ratio": area_ratio(ASKED, ASKED_DRAWS),
        "false_split_rate": false_split_rate(),
        "residual_conflict_ratio": residual_conflict_ratio(),
    }
