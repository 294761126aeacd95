"""How a plan changes over halves of the data: would other utterances have led to the same decisions?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import adjusted_rand_score

from gdps_ds.analysis.planner import make_plan
from gdps_ds.analysis.sketch import HALVES, SiteSketch, Sketches
from gdps_ds.config import PlanConfig
from gdps_ds.plan import SharingPlan


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
        sites[name] = SiteSketch(site.core[:, :, chosen], neurons)
    return dataclasses.replace(sketches, tokens=tokens, utterances=sketches.utterances[:, chosen], sites=sites)


def plans_over_halves(sketches: Sketches, settings: PlanConfig, hidden: Mapping[str, int]) -> tuple[SharingPlan, ...]:
    """The plan of each half of the folds; none where a half has too little data to plan by.

    That is, fewer than two folds, or a language without a target token in half of them.
    """
    halves = [half_of(sketches, half) for half in range(HALVES)]
    if any((part.tokens[:, place::HALVES].sum(axis=1) == 0).any() for part in halves for place in range(HALVES)):
        return ()
    return tuple(make_plan(half, settings, hidden) for half in halves)


def groups_agree(first: SharingPlan, second: SharingPlan) -> float:
    """Adjusted Rand index of the two plans' groups: 1 where they are the same, about 0 where they agree by chance."""
    labels = [[plan.group_of(language) for language in first.languages] for plan in (first, second)]
    return float(adjusted_rand_score(*labels))


def conflict_ratio(conflict: ArrayLike, shared: Sequence[int]) -> float:
    """Conflict left in a shared lane, relative to what as many random neurons would leave: 0 is best, 1 is chance.

    Two good lanes need not hold the same neurons, as those without conflict are equals.

    Args:
        conflict: (h,) of the hidden neurons.
        shared: the neurons of the lane.
    """
    values = np.asarray(conflict, dtype=np.float64)
    return float(values[list(shared)].mean() / values.mean())
