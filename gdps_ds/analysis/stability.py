"""How stable a plan is: would other utterances, or another training seed, have led to the same decisions?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.metrics import adjusted_rand_score

from gdps_ds.analysis.similarity import Array, SiteSimilarity
from gdps_ds.analysis.sketch import HALVES, SiteSketch, Sketches
from gdps_ds.plan import SharingPlan


@dataclass(frozen=True)
class Agreement:
    """How alike two plans of the same languages and candidate sites are.

    Attributes:
        groups: adjusted Rand index: 1 for the same groups, about 0 where they agree by chance.
        sites: of the sites that either plan splits, the share that both split; 1 where neither splits any.
        ranking: Spearman's correlation of the candidates' scores; NaN for a single candidate.
        rho: mean absolute difference of rho over all pairs of languages and all candidates, where both are defined.
    """

    groups: float
    sites: float
    ranking: float
    rho: float


def agreement(plans: Sequence[SharingPlan], rhos: Sequence[Mapping[str, Array]]) -> Agreement:
    """How alike plans are, mean over all pairs of them; ``rhos`` are the :func:`rho_by_site` behind each plan."""
    pairs = combinations(range(len(plans)), 2)
    return mean_agreement([_of_pair((plans[one], plans[two]), (rhos[one], rhos[two])) for one, two in pairs])


def mean_agreement(found: Sequence[Agreement]) -> Agreement:
    """The mean of each figure over those that are defined."""
    return Agreement(*(_mean(np.array(figure)) for figure in zip(*map(dataclasses.astuple, found), strict=True)))


def rho_by_site(measured: Mapping[str, SiteSimilarity]) -> dict[str, Array]:
    """rho (L, L) of every site."""
    return {name: site.rho.value for name, site in measured.items()}


def halves_of(sketches: Sketches) -> tuple[Sketches, ...]:
    """Both halves of the folds; none where a half has too little data to plan by.

    That is, fewer than two folds, or a language without a target token in half of them.
    """
    halves = tuple(half_of(sketches, half) for half in range(HALVES))
    if any((part.tokens[:, place::HALVES].sum(axis=1) == 0).any() for part in halves for place in range(HALVES)):
        return ()
    return halves


def half_of(sketches: Sketches, half: int) -> Sketches:
    """The sketches of every second fold (fold modulo 2 = ``half``), as if nothing else had been mined.

    There is one neuron sketch of these folds, which stands in both places of the pair: its noise then stays in the
    conflict of single neurons, and the lanes are somewhat worse than from as much data in two halves.
    """
    chosen = slice(half, None, HALVES)
    tokens = sketches.tokens[:, chosen]
    weights = np.stack([tokens[:, part::HALVES].sum(axis=1) for part in range(HALVES)], axis=1)
    # The same gradient per token in both places.
    weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)
    sites = {}
    for name, site in sketches.sites.items():
        neurons = None if site.neurons is None else weights[:, :, None, None] * site.neurons[:, [half]]
        sites[name] = SiteSketch(site.hidden, site.core[:, :, chosen], neurons)
    return dataclasses.replace(sketches, tokens=tokens, utterances=sketches.utterances[:, chosen], sites=sites)


def conflict_ratio(conflict: ArrayLike, shared: Sequence[int]) -> float:
    """Conflict left in a shared lane, relative to what as many random neurons would leave: 0 is best, 1 is chance.

    Two good lanes need not hold the same neurons, as those without conflict are equals.

    Args:
        conflict: (h,) of the hidden neurons.
        shared: the neurons of the lane.
    """
    values = np.asarray(conflict, dtype=np.float64)
    return float(values[list(shared)].mean() / values.mean())


def _of_pair(plans: tuple[SharingPlan, SharingPlan], rhos: tuple[Mapping[str, Array], Mapping[str, Array]]) -> Agreement:
    languages, candidates = plans[0].languages, list(rhos[0])
    groups = [[plan.group_of(language) for language in languages] for plan in plans]
    split, other = ({site.name for site in plan.sites} for plan in plans)
    scores = [[plan.evidence["sites"][name]["score"] for name in candidates] for plan in plans]
    pairs = np.triu_indices(len(languages), 1)
    return Agreement(
        float(adjusted_rand_score(*groups)),
        len(split & other) / len(split | other) if split | other else 1.0,
        _rank_correlation(*scores),
        _mean(np.array([np.abs(rhos[0][name] - rhos[1][name])[pairs] for name in candidates])),
    )


def _rank_correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Spearman's rho; a site without evidence (None) ranks last. NaN where all of one side's ranks are equal."""
    ranks = [rankdata([-np.inf if score is None else score for score in scores]) for scores in (first, second)]
    spread = [float(np.std(each)) for each in ranks]
    return float(np.corrcoef(*ranks)[0, 1]) if all(spread) else np.nan


def _mean(values: Array) -> float:
    """Mean of the values that are numbers; NaN if there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan
