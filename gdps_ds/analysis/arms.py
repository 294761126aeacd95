"""The arms of a comparison: each continues the same unified model by a plan that differs from ours in one thing.

==============  =========================================================================================================
arm             what it does
==============  =========================================================================================================
gdps            ours: the plan of the run (``plan``)
uniform         no split
wide            no split, but the block has as many parameters as ours: new neurons with random inputs and zero outputs
pcgrad          no split; gradients of the languages at our sites are projected (:mod:`gdps_ds.training.pcgrad`)
random-groups   our groups' sizes with languages drawn at random, other groups than ours; neurons chosen for these groups
random-neurons  ours, with the shared neurons drawn at random
per-language    ours, with a group for each language
all-private     ours, with the narrowest shared lane that ``plan.round_to`` allows
shared-25       ours, with 25 % of the neurons shared; likewise shared-50 and shared-75
other-ffn       ours, in the other feed-forward block of the same layer
other-layer     ours, in the same block of the nearest layer
paper           GDPS as published: its rules for sites, two groups (Ward), capacity by delta, constant width, SVD lanes
paper-no-a      without A (clustering): paper, with the languages halved in the order of ``data.languages``
paper-no-b      without B (capacity by similarity): paper, with all lanes of equal width
paper-no-c      without C (energies by joint SVD and CCA): paper, with equal energy shares in the initialisation
==============  =========================================================================================================

Variants of ours keep its groups, sites and shared widths but for the one thing, and choose neurons by our rule. Random draws
are seeded by the run's seed. ``wide``'s new neurons learn at ``private_lr``, as private lanes do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gdps_ds.analysis.planner import fold_weights, make_plan, measure_sites
from gdps_ds.analysis.similarity import SiteSimilarity
from gdps_ds.analysis.sketch import Sketches, seed_of
from gdps_ds.config import Arm, PlanConfig
from gdps_ds.plan import SharingPlan, SitePlan, Width

GDPS: Arm = "gdps"
UNIFORM: Arm = "uniform"
PCGRAD: Arm = "pcgrad"
REFERENCES = (UNIFORM, GDPS)
"""What every arm is tested against."""
SMALLEST = 1e-9
"""A shared fraction that is rounded up to the narrowest lane."""

Groups = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Origin:
    """What arms are made from: our plan, what was mined, section ``plan`` of the configuration, and the run's seed."""

    ours: SharingPlan
    sketches: Sketches | None
    settings: PlanConfig
    seed: int

    @property
    def mined(self) -> Sketches:
        if self.sketches is None:
            raise ValueError("nothing was mined")
        return self.sketches

    @cached_property
    def measured(self) -> dict[str, SiteSimilarity]:
        return measure_sites(self.mined, fold_weights(self.mined, self.settings.bootstrap))

    @property
    def split(self) -> SharingPlan:
        """Our plan, which must split something.

        Raises:
            ValueError: it does not.
        """
        if self.ours.is_uniform:
            advice = "leave it out, or start another run.dir with plan.groups set to a number or to groups"
            raise ValueError(f"it varies the plan of arm 'gdps', which stays uniform; {advice}")
        return self.ours

    def generator(self, arm: str) -> np.random.Generator:
        return np.random.default_rng(seed_of(arm, self.seed))


def arm_plan(arm: str, origin: Origin) -> SharingPlan:
    """The plan of an arm.

    Raises:
        ValueError: the arm cannot be made from this plan; names the arm and the option to change.
    """
    try:
        plan = PLANS[arm](origin)
    except ValueError as error:
        raise ValueError(f"run.arms: '{arm}' cannot be planned: {error}") from None
    return replace(plan, reason=f"arm {arm}\n{plan.reason}")


def _uniform(origin: Origin) -> SharingPlan:
    return SharingPlan.uniform(origin.ours.languages)


def _variant(
    origin: Origin,
    groups: Groups | None = None,
    shared: float | None = None,
    elsewhere: Callable[[str, Sequence[str]], str] = lambda site, candidates: site,
) -> SharingPlan:
    """Our plan with other groups, another shared fraction at every site, or other sites in the places of ours."""
    ours, sketches = origin.split, origin.mined
    fractions = {elsewhere(site.name, tuple(sketches.sites)): len(site.shared) / site.hidden for site in ours.sites}
    plans = []
    for site, fraction in fractions.items():
        given = {"rule": "ours", "sites": (site,), "groups": groups or ours.groups, "shared": shared or fraction}
        settings = PlanConfig.model_validate(origin.settings.model_dump() | given | {"width": ours.width, "init": ours.init})
        plans.append(make_plan(sketches, settings, origin.measured))
    return replace(
        plans[0],
        sites=tuple(site for plan in plans for site in plan.sites),
        energy_shares=tuple(np.mean([plan.energy_shares for plan in plans], axis=0).round(9).tolist()),
        reason="\n".join(plan.reason for plan in plans),
    )


def _random_groups(origin: Origin) -> SharingPlan:
    ours, generator = origin.split, origin.generator("random-groups")
    sizes = [len(group) for group in ours.groups]
    if max(sizes) == 1:
        raise ValueError("there is only one way to put each language in a group of its own")
    groups = ours.groups
    while {frozenset(group) for group in groups} == {frozenset(group) for group in ours.groups}:
        drawn = np.split(generator.permutation(len(ours.languages)), np.cumsum(sizes)[:-1])
        groups = tuple(tuple(ours.languages[place] for place in sorted(part)) for part in drawn)
    return _variant(origin, groups=groups)


def _random_neurons(origin: Origin) -> SharingPlan:
    ours, generator = origin.split, origin.generator("random-neurons")
    return replace(ours, sites=tuple(_shuffled(site, ours.width, generator) for site in ours.sites))


def _shuffled(site: SitePlan, width: Width, generator: np.random.Generator) -> SitePlan:
    """Lanes as wide as a site's, their neurons drawn at random."""
    order = generator.permutation(site.hidden)
    shared, others = order[: len(site.shared)], order[len(site.shared) :]
    groups = len(site.private)
    private = [others] * groups if width == "preserve" else np.split(others, groups)
    return replace(site, shared=_ascending(shared), private=tuple(map(_ascending, private)))


def _wide(origin: Origin) -> SharingPlan:
    """Every neuron owns 2 d + 1 parameters wherever it is, so as many parameters are as many neurons."""
    sites = []
    for site in origin.split.sites:
        added = len(site.shared) + sum(map(len, site.private)) - site.hidden
        if added == 0:
            raise ValueError(f"plan.width: {origin.ours.width} adds no parameters that a dense block could be given too")
        neurons = tuple(range(site.hidden + added))
        sites.append(replace(site, shared=neurons[: site.hidden], private=(neurons[site.hidden :],)))
    languages = origin.ours.languages
    return SharingPlan(languages, (languages,), tuple(sites), "added", reason="as many parameters as arm gdps, none private")


def _other_block(site: str, candidates: Sequence[str]) -> str:
    """The candidate beside ``site``: only the last part of its name differs, such as ``ffn1`` and ``ffn2``."""
    block = site.rpartition(".")[0]
    found = [name for name in candidates if name != site and name.rpartition(".")[0] == block]
    if not found:
        raise ValueError(f"mine.sites has no other block beside '{site}'")
    return found[0]


def _other_layer(site: str, candidates: Sequence[str]) -> str:
    """The candidate of the nearest layer, the one before rather than the one after: only a number in its name differs."""
    parts = site.split(".")
    distances: dict[str, tuple[int, int]] = {}
    for name in candidates:
        pairs = [pair for pair in zip(name.split("."), parts, strict=False) if pair[0] != pair[1]]
        if len(pairs) == 1 and name.count(".") == site.count(".") and all(map(str.isdigit, pairs[0])):
            step = int(pairs[0][0]) - int(pairs[0][1])
            distances[name] = (abs(step), step)
    if not distances:
        raise ValueError(f"mine.sites has no layer but that of '{site}'")
    return min(distances, key=lambda name: distances[name])


def _paper(origin: Origin, **given: object) -> SharingPlan:
    """The published rules and initialisation, from the same sketches; sites that ``plan.sites`` names are the candidates."""
    published = {"rule": "paper", "groups": 2, "clustering": None, "shared": "paper", "width": "constant", "init": "svd"}
    settings = PlanConfig.model_validate(origin.settings.model_dump() | published | given)
    return make_plan(origin.mined, settings, origin.measured)


def _without_clustering(origin: Origin) -> SharingPlan:
    languages = origin.mined.languages
    half = (len(languages) + 1) // 2
    return _paper(origin, groups=(languages[:half], languages[half:]))


def _ascending(neurons: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(int(neuron) for neuron in neurons))


PLANS: Mapping[str, Callable[[Origin], SharingPlan]] = {
    GDPS: lambda origin: origin.ours,
    UNIFORM: _uniform,
    "wide": _wide,
    PCGRAD: lambda origin: replace(_uniform(origin), reason=f"gradients are projected at {_names(origin.split)}"),
    "random-groups": _random_groups,
    "random-neurons": _random_neurons,
    "per-language": lambda origin: _variant(origin, groups=[(language,) for language in origin.split.languages]),
    "all-private": lambda origin: _variant(origin, shared=SMALLEST),
    "shared-25": lambda origin: _variant(origin, shared=0.25),
    "shared-50": lambda origin: _variant(origin, shared=0.5),
    "shared-75": lambda origin: _variant(origin, shared=0.75),
    "other-ffn": lambda origin: _variant(origin, elsewhere=_other_block),
    "other-layer": lambda origin: _variant(origin, elsewhere=_other_layer),
    "paper": _paper,
    "paper-no-a": _without_clustering,
    "paper-no-b": lambda origin: _paper(origin, shared=1 / 3),
    "paper-no-c": lambda origin: replace(_paper(origin), energy_shares=()),
}


def _names(plan: SharingPlan) -> str:
    return ", ".join(site.name for site in plan.sites)
