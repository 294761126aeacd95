"""Which languages form groups at the sites that are split: given, by the published rule, by ours, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdps_ds.analysis import capacity, clustering, evidence
from gdps_ds.analysis.clustering import Labels, Method
from gdps_ds.analysis.similarity import Array, FoldCosines, SiteSimilarity, interval
from gdps_ds.config import PlanConfig

MARGIN = 0.05
"""Groups whose rho may lie this close to 1 pull alike for all practical purposes: ``ours`` does not split them."""


@dataclass(frozen=True)
class ChosenSite:
    """A site to split: its folds and figures, the bootstrap of rho (L, L, B), and its share of the gradient energy."""

    name: str
    folds: FoldCosines
    figures: SiteSimilarity
    rho_replicates: Array
    energy_share: float


@dataclass(frozen=True)
class Grouping:
    """Labels of the languages, or None where the model stays uniform; why; and the figures behind it."""

    labels: Labels | None
    reason: str
    figures: dict[str, Any]


def group_languages(chosen: Sequence[ChosenSite], languages: tuple[str, ...], settings: PlanConfig, seed: int) -> Grouping:
    """One grouping for all chosen sites, from their mean similarity."""
    if not chosen:
        return Grouping(None, "groups: one, as no site is split", {})
    if isinstance(settings.groups, tuple):
        group_of = {language: index for index, group in enumerate(settings.groups) for language in group}
        return Grouping(np.array([group_of[language] for language in languages]), "groups: as plan.groups names", {})
    if len(languages) == 1:
        return Grouping(None, f"groups: one, as there is one language, {languages[0]}", {})
    if settings.rule == "paper":
        return _by_cosine(chosen, settings, settings.clustering or "ward", seed)
    pooled = _pooled_rho(chosen)
    if pooled is not None:
        return _by_rho(*pooled, settings, settings.clustering or "average", seed)
    unclear = f"rho is undefined for {_not_told_from_noise(chosen, languages)}: its gradient cannot be told from noise"
    if settings.groups == "auto":
        return Grouping(None, f"groups: one, {unclear}", {})
    # Of the three methods k-means finds the groups most often on planted problems as noisy as this.
    grouping = _by_cosine(chosen, settings, settings.clustering or "k-means", seed)
    return Grouping(grouping.labels, f"{grouping.reason}, as {unclear}", grouping.figures)


def _by_cosine(chosen: Sequence[ChosenSite], settings: PlanConfig, method: Method, seed: int) -> Grouping:
    """The published grouping: languages by the cosine of their mean gradients, in two groups or the number given.

    The cosine exists however noisy the gradients are; one that is zero is unrelated to all others.
    """
    cosine = np.nan_to_num(np.mean([site.figures.published.cosine for site in chosen], axis=0))
    groups = settings.groups if isinstance(settings.groups, int) else 2
    labels = clustering.partition(cosine, groups, method, seed)
    reason = f"groups: {groups} by {clustering.NAMES[method]} on the cosine of mean gradients"
    figures = evidence.tree_figures("cosine", cosine, method) | evidence.label_figures(cosine, labels, seed)
    return Grouping(labels, reason, figures)


def _by_rho(rho: Array, replicates: Array, settings: PlanConfig, method: Method, seed: int) -> Grouping:
    """Languages by 1 - rho; of itself a split only if it is stable and rho between the groups is below 1."""
    figures = evidence.tree_figures("rho", rho, method)
    if isinstance(settings.groups, int):
        labels = clustering.partition(rho, settings.groups, method, seed)
        reason = f"groups: {settings.groups} by {clustering.NAMES[method]} on rho, as plan.groups asks"
    elif len(rho) == 2:
        labels, reason = np.arange(2), "groups: one a language"
    else:
        considered = clustering.candidates(rho, replicates, method, seed)
        figures["candidates"] = [evidence.candidate_figures(candidate) for candidate in considered]
        found = clustering.best(considered, settings.min_stability)
        if found is None:
            most = max(candidate.stability for candidate in considered)
            reason = f"groups: one, no grouping is stable: at most {most:.0%} of replicates agree"
            return Grouping(None, f"{reason} (plan.min_stability: {settings.min_stability:.0%})", figures)
        labels, reason = found.labels, f"groups: {found.labels.max() + 1} by silhouette {found.silhouette:.2f}, "
        reason += f"{found.stability:.0%} of replicates agree"
    share = interval(
        capacity.common_share(capacity.group_similarity(rho, labels)),
        capacity.common_share(capacity.group_similarity(replicates, labels)),
    )
    between = f"rho between groups {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
    figures |= {"rho_between": evidence.interval_figures(share)} | evidence.label_figures(rho, labels, seed)
    if settings.groups == "auto" and not share.high < 1 - MARGIN:
        return Grouping(None, f"groups: one, {between} does not stay below {1 - MARGIN}", figures)
    return Grouping(labels, f"{reason}; {between}", figures)


def _pooled_rho(chosen: Sequence[ChosenSite]) -> tuple[Array, Array] | None:
    """rho and its replicates, averaged by gradient energy over the sites that tell all languages from noise."""
    clear = [site for site in chosen if site.figures.told_from_noise and site.energy_share > 0]
    if not clear:
        return None
    weights = np.array([site.energy_share for site in clear])
    weights /= weights.sum()
    rho = sum(weight * site.figures.rho.value for weight, site in zip(weights, clear, strict=True))
    replicates = sum(weight * site.rho_replicates for weight, site in zip(weights, clear, strict=True))
    return np.asarray(rho), np.asarray(replicates)


def _not_told_from_noise(chosen: Sequence[ChosenSite], languages: tuple[str, ...]) -> str:
    """The languages whose rho is nowhere bounded, or all that miss a pair."""
    pairs = np.any([site.figures.measured for site in chosen], axis=0).sum(axis=1)
    fewest = pairs.min()
    return ", ".join(language for language, count in zip(languages, pairs, strict=True) if count == fewest)
