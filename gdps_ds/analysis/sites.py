"""Which feed-forward blocks to split: the candidates, their conflict, and the choice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from gdps_ds.analysis.similarity import Array, Interval, SiteSimilarity, interval
from gdps_ds.analysis.sketch import sites_of
from gdps_ds.config import PlanConfig

CONFIDENCE = 0.95
"""Of the simultaneous test for conflict over the candidates: at most 5 % of runs find one where languages agree."""


@dataclass(frozen=True)
class RankedSite:
    """A site under the rule: the higher the ``score`` the earlier it is split; NaN where there is no evidence.

    ``weighted_conflict`` is the conflict times the site's share of the gradient energy; ``significant`` says whether
    the conflict itself is above 0, tested for all candidates at once.
    """

    score: float
    significant: bool
    energy_share: float
    weighted_conflict: Interval


def offered_sites(sites: Iterable[str], settings: PlanConfig) -> tuple[str, ...]:
    """The sites that may be split, in model order: all that are sketched, or those that ``plan.sites`` names.

    Raises:
        ValueError: the settings ask for what is not sketched.
    """
    names = sites_of(tuple(sites))
    if isinstance(settings.sites, int):
        if settings.sites > len(names):
            raise ValueError(f"plan.sites: {settings.sites} sites to split, but mine.sites has {len(names)}")
        return names
    for pattern in settings.sites:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"plan.sites: '{pattern}' matches none of the sketched sites: {', '.join(names)}")
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in settings.sites))


def rank_sites(measured: Mapping[str, SiteSimilarity], offered: Sequence[str], settings: PlanConfig) -> dict[str, RankedSite]:
    """Score every measured site: ``paper`` by low mean purity, ``ours`` by conflict x share of gradient energy."""
    total = sum(site.energy for site in measured.values())
    total_replicates = np.sum([site.energy_replicates for site in measured.values()], axis=0)
    critical = _critical_value([measured[name] for name in offered])
    ranking = {}
    for name, site in measured.items():
        share = site.energy / total if total > 0 else np.nan
        shares = np.divide(
            site.energy_replicates, total_replicates, out=np.zeros_like(total_replicates), where=total_replicates > 0
        )
        weighted = interval(share * site.conflict.value, shares * site.conflict_replicates)
        score = float(weighted.value) if site.conflict.bounded else np.nan
        if settings.rule == "paper":
            score = -float(site.published.purity.mean())
        significant = bool(site.conflict.bounded and site.conflict.value > critical * _spread(site))
        ranking[name] = RankedSite(score, significant, float(share), weighted)
    return ranking


def choose_sites(
    ranking: Mapping[str, RankedSite],
    measured: Mapping[str, SiteSimilarity],
    offered: Sequence[str],
    settings: PlanConfig,
) -> tuple[tuple[str, ...], str]:
    """The sites to split, in model order, and why; none where ``ours`` finds no significant conflict by itself."""
    by_itself = settings.rule == "ours" and settings.groups == "auto"
    known = sorted((name for name in offered if not np.isnan(ranking[name].score)), key=lambda name: -ranking[name].score)
    if by_itself and not any(ranking[name].significant for name in offered):
        if not known:
            return (), "sites: no gradient can be told from noise at any candidate; raise mine.updates"
        top = max(known, key=lambda name: float(measured[name].conflict.value))
        return (), f"sites: no conflict can be told from 0; the highest is {_conflict(measured[top])} at {top}"
    if not isinstance(settings.sites, int):
        return tuple(offered), f"sites: {', '.join(offered)} as plan.sites names"
    if not known:
        return (), "sites: none can be ranked, gradients cannot be told from noise; raise mine.updates or name plan.sites"
    chosen = [name for name in known if ranking[name].significant or not by_itself][: settings.sites]
    if settings.rule == "paper":
        figures = [f"{name} (mean purity {-ranking[name].score:.3f})" for name in chosen]
        return sites_of(chosen), f"sites: lowest purity of {len(offered)} candidates: {', '.join(figures)}"
    figures = [
        f"{name} (conflict {_conflict(measured[name])} on {ranking[name].energy_share:.1%} of the gradient energy)"
        for name in chosen
    ]
    return sites_of(chosen), f"sites: highest weighted conflict of {len(offered)} candidates: {', '.join(figures)}"


def _critical_value(sites: Sequence[SiteSimilarity]) -> float:
    """How many standard errors a conflict must exceed so that no site of many does by chance.

    The quantile of the largest standardised deviation over all sites within a bootstrap replicate (max-t; Romano &
    Wolf 2005): sites share utterances, and this takes their dependence into account.
    """
    largest = [
        (site.conflict_replicates - site.conflict.value) / _spread(site)
        for site in sites
        if site.conflict.bounded and _spread(site) > 0
    ]
    if not largest:
        return 0.0
    return float(np.quantile(_fill_undefined(np.array(largest)).max(axis=0), CONFIDENCE))


def _fill_undefined(deviations: Array) -> Array:
    """A replicate in which a conflict is undefined counts as the largest deviation that was seen."""
    return np.where(np.isnan(deviations), np.nanmax(deviations), deviations)


def _spread(site: SiteSimilarity) -> float:
    """Bootstrap standard error of the conflict."""
    return float(np.nanstd(site.conflict_replicates))


def _conflict(site: SiteSimilarity) -> str:
    return f"{site.conflict.value:.3f} [{site.conflict.low:.3f}, {site.conflict.high:.3f}]"
