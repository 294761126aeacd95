"""Sketches -> :class:`~gdps_ds.plan.SharingPlan`: the decisions that rank 0 takes, with the figures behind each.

Two rules decide from the same sketches (``plan.rule``):

==========  ==========================================  =======================================================
decision    ``paper`` (GDPS, 2603.25836)                ``ours``
==========  ==========================================  =======================================================
sites       lowest mean purity                          highest conflict x share of gradient energy, among the
                                                        sites whose conflict is significant
groups      Ward on 1 - cos of mean gradients, k = 2    average linkage on 1 - rho; their number by silhouette
            (``plan.clustering`` takes another method)  and bootstrap stability; or no split
capacity    thresholds on delta                         the groups' common share of gradient energy
==========  ==========================================  =======================================================

Purity = S_self / (S_self + S_cross) is low where languages resemble each other, not where they conflict: the published
choice of sites is kept as published. Sites, groups and the shared fraction that the settings give are taken as given
under either rule. Where ``groups`` is ``auto``, ``ours`` splits only if a site's conflict is significant among all
candidates at once, the grouping is stable, and the groups' rho stays below 1 by ``MARGIN``; else the model stays uniform,
and the plan says why. Where groups or their number are asked for and rho is undefined, it falls back on the published
figures, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdps_ds.analysis import capacity, clustering, evidence, subspace
from gdps_ds.analysis.clustering import Labels
from gdps_ds.analysis.grouping import ChosenSite, group_languages
from gdps_ds.analysis.similarity import (
    Array,
    FoldCosines,
    SiteSimilarity,
    bootstrap_weights,
    fold_cosines,
    interval,
    measure,
    noise_corrected,
    similarity,
)
from gdps_ds.analysis.sites import choose_sites, offered_sites, rank_sites
from gdps_ds.analysis.sketch import HALVES, Sketches, seed_of, sites_of
from gdps_ds.config import PlanConfig
from gdps_ds.plan import SharingPlan, SitePlan


@dataclass(frozen=True)
class Split:
    """The lanes of a chosen site, or None where it stays dense; pi of each group; why; and the figures behind it."""

    lanes: SitePlan | None
    energy_shares: tuple[float, ...]
    reason: str
    figures: dict[str, Any]


def make_plan(sketches: Sketches, settings: PlanConfig, measured: dict[str, SiteSimilarity] | None = None) -> SharingPlan:
    """Decide groups, sites, widths and lanes. Deterministic: everything random is seeded by ``sketches.seed``.

    Args:
        sketches: what was mined.
        settings: section ``plan`` of the configuration; ``from_file`` is not looked at.
        measured: of :func:`measure_sites`, where it is known already.

    Raises:
        ValueError: sketches and settings do not go together; names the option and what was found.
    """
    _check_languages(sketches, settings)
    offered, weights = offered_sites(sketches.sites, settings), fold_weights(sketches, settings.bootstrap)
    measured = measured or measure_sites(sketches, weights)
    ranking = rank_sites(measured, offered, settings)
    # A plan without a split shows the site that came nearest to one.
    first = [max(offered, key=lambda name: np.nan_to_num(ranking[name].score, nan=-np.inf))]
    names, why_sites = choose_sites(ranking, measured, offered, settings)
    _require_neurons(sketches, names, settings)
    chosen = [_choose(sketches, name, measured[name], ranking[name].energy_share, weights) for name in names]
    grouping = group_languages(chosen, sketches.languages, settings, seed=sketches.seed % 2**32)
    splits: list[Split] = []
    if grouping.labels is not None:
        splits = [split_site(site, sketches, grouping.labels, settings) for site in chosen]
    split = [each for each in splits if each.lanes is not None]
    labels = grouping.labels if grouping.labels is not None and split else np.zeros(len(sketches.languages), np.int64)
    return SharingPlan(
        languages=tuple(sketches.languages),
        groups=clustering.members(labels, sketches.languages),
        sites=tuple(each.lanes for each in split if each.lanes is not None),
        width=settings.width,
        init=settings.init,
        # Rounded, so that the digest does not follow the last bits of a machine's arithmetic.
        energy_shares=tuple(np.mean([each.energy_shares for each in split], axis=0).round(9).tolist()) if split else (1.0,),
        reason="\n".join([why_sites, grouping.reason, *(each.reason for each in splits)]),
        evidence={
            "sites": {name: evidence.site_figures(measured[name], ranking[name]) for name in ranking},
            "similarity": {name: evidence.similarity_figures(measured[name]) for name in names or first},
            "grouping": grouping.figures,
            "splits": {site.name: each.figures for site, each in zip(chosen, splits, strict=False)},
        },
        provenance=evidence.provenance(sketches, settings),
    )


def sites_to_split(sketches: Sketches, settings: PlanConfig) -> tuple[str, ...]:
    """The sites that :func:`make_plan` will choose; core sketches are enough to tell.

    So ranks need to add up the much larger neuron sketches of these sites only.
    """
    _check_languages(sketches, settings)
    offered = offered_sites(sketches.sites, settings)
    measured = measure_sites(sketches, fold_weights(sketches, settings.bootstrap))
    return choose_sites(rank_sites(measured, offered, settings), measured, offered, settings)[0]


def _require_neurons(sketches: Sketches, names: Sequence[str], settings: PlanConfig) -> None:
    """``init: neurons`` copies neurons, and so has to know which of them the groups fight over."""
    missing = [name for name in names if sketches.sites[name].neurons is None]
    if settings.init == "neurons" and missing:
        raise ValueError(
            f"plan.sites: '{missing[0]}' has no neuron sketch, which plan.init: neurons needs; mine with mine.neurons: all, "
            "or take another plan.init"
        )


def fold_weights(sketches: Sketches, replicates: int) -> Array:
    """(L, F, B) how often each bootstrap replicate draws each fold."""
    return bootstrap_weights(sketches.tokens, replicates, np.random.default_rng(seed_of("bootstrap", sketches.seed)))


def measure_sites(sketches: Sketches, weights: Array) -> dict[str, SiteSimilarity]:
    """Every figure of every site, in model order; ``weights`` are those of :func:`fold_weights`."""
    return {name: measure(folds_of(sketches, name), weights) for name in sites_of(tuple(sketches.sites))}


def folds_of(sketches: Sketches, site: str) -> FoldCosines:
    """Fold cosines of one site.

    Raises:
        ValueError: the sketch holds NaN or infinity; names the site and the languages.
    """
    core = sketches.sites[site].core
    finite = np.isfinite(core.sum(axis=(0, 2, 3, 4)))
    if not finite.all():
        bad = [language for language, fine in zip(sketches.languages, finite, strict=True) if not fine]
        raise ValueError(f"the core sketch of site '{site}' holds NaN or infinity for {', '.join(bad)}")
    return fold_cosines(core, sketches.tokens)


def _choose(sketches: Sketches, name: str, figures: SiteSimilarity, share: float, weights: Array) -> ChosenSite:
    """Add what only the chosen sites need; recomputed, since keeping it for all would take 8 L^2 B bytes a site."""
    folds = folds_of(sketches, name)
    return ChosenSite(name, folds, figures, noise_corrected(similarity(folds, weights)), share)


def split_site(site: ChosenSite, sketches: Sketches, labels: Labels, settings: PlanConfig) -> Split:
    """Shared width and lanes of one site."""
    hidden, neurons = sketches.sites[site.name].hidden, sketches.sites[site.name].neurons
    groups = int(labels.max()) + 1
    names = ["+".join(group) for group in clustering.members(labels, sketches.languages)]
    joint = subspace.joint_svd(*_present_rows(site.folds))
    shares = tuple(float(joint.shares[labels == group].sum()) for group in range(groups))
    figures: dict[str, Any] = {"energies": evidence.energy_figures(sketches.languages, joint)}
    fraction, reason, figures["capacity"] = _shared_fraction(site, labels, settings)
    if fraction is None:
        return Split(None, shares, f"{site.name}: stays dense, {reason}", figures)
    width = capacity.shared_width(fraction, hidden, groups, settings.round_to, settings.width)
    figures["capacity"] |= {"fraction": evidence.figures(fraction), "shared_width": width}
    if neurons is None:
        # Initialisation from factors or noise: which indices a lane holds means nothing, only how many.
        scores = subspace.NeuronScores(np.zeros(hidden), np.zeros((groups, hidden)))
        lanes = subspace.assign_lanes(site.name, scores, width, settings.width)
    else:
        tokens = _half_tokens(sketches)
        directions = subspace.group_gradients(neurons, tokens, labels)
        scores = subspace.score_neurons(directions)
        lanes = subspace.assign_lanes(site.name, scores, width, settings.width)
        figures["neurons"] = evidence.neuron_figures(scores, lanes.shared)
        figures["cca_groups"] = evidence.canonical_figures(names, directions)
        figures["cca_languages"] = evidence.canonical_figures(sketches.languages, neurons / tokens[:, :, None, None])
    return Split(lanes, shares, f"{site.name}: {width} of {hidden} neurons shared, {reason}", figures)


def _shared_fraction(site: ChosenSite, labels: Labels, settings: PlanConfig) -> tuple[float | None, str, dict[str, Any]]:
    """The fraction of hidden neurons to share (None without evidence), why, and the figures behind it."""
    delta = site.figures.published.delta
    share = interval(
        capacity.common_share(capacity.group_similarity(site.figures.rho.value, labels)),
        capacity.common_share(capacity.group_similarity(site.rho_replicates, labels)),
    )
    figures = {"delta": evidence.figures(delta), "common_share": evidence.interval_figures(share)}
    if isinstance(settings.shared, float):
        return settings.shared, f"{settings.shared:.1%} as plan.shared asks", figures | {"rule": "given"}
    published, unclear = settings.rule == "paper" or settings.shared == "paper", "as rho between the groups is undefined here"
    if not published and not share.bounded and settings.groups == "auto":
        return None, f"{unclear} (plan.shared may give a fraction)", figures
    if published or not share.bounded:
        fraction = capacity.published_fraction(delta)
        why = f"{fraction:.0%} by delta {delta:.3f}" + ("" if published else f", {unclear}")
        return fraction, why, figures | {"rule": "paper"}
    fraction = capacity.continuous_fraction(float(share.value))
    reason = f"{fraction:.1%} by the groups' common share {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
    return fraction, reason, figures | {"rule": "continuous"}


def _present_rows(folds: FoldCosines) -> tuple[Array, np.ndarray]:
    """Cosines between the folds that are present, (N, N), and the language of each, (N,)."""
    present = folds.present.ravel()
    size = len(present)
    rows = folds.cosines.reshape(size, size)[np.ix_(present, present)]
    return rows, np.repeat(np.arange(len(folds.present)), folds.present.sum(axis=1))


def _half_tokens(sketches: Sketches) -> Array:
    """(L, 2) target tokens behind each half of the neuron sketches: fold modulo 2."""
    tokens = np.stack([sketches.tokens[:, half::HALVES].sum(axis=1) for half in range(HALVES)], axis=1)
    if empty := [
        f"{language} ({utterances:.0f} mined)"
        for language, row, utterances in zip(sketches.languages, tokens, sketches.utterances.sum(axis=1), strict=True)
        if not row.all()
    ]:
        raise ValueError(
            f"no utterance of {', '.join(empty)} in one half of the folds, even or odd; raise mine.updates, so that more "
            "of the training set is mined"
        )
    return tokens.astype(np.float64)


def _check_languages(sketches: Sketches, settings: PlanConfig) -> None:
    """Every language was mined, and the settings speak of these languages."""
    languages = sketches.languages
    absent = [language for language, tokens in zip(languages, sketches.tokens, strict=True) if tokens.sum() == 0]
    if absent:
        raise ValueError(f"no target token of {', '.join(absent)} was mined; raise mine.updates or check data.corpora")
    if isinstance(settings.groups, int) and settings.groups > len(languages):
        raise ValueError(f"plan.groups: {settings.groups} groups of {len(languages)} languages")
    if isinstance(settings.groups, tuple):
        named = {language for group in settings.groups for language in group}
        if named != set(languages):
            raise ValueError(f"plan.groups names {', '.join(sorted(named))}, the sketches hold {', '.join(sorted(languages))}")
