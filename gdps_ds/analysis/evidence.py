"""The figures behind a plan as plain JSON values: what :mod:`~gdps_ds.analysis.planner` stores in the plan."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gdps_ds.analysis import clustering
from gdps_ds.analysis.clustering import Candidate, Labels, Method
from gdps_ds.analysis.similarity import Array, Interval, SiteSimilarity
from gdps_ds.analysis.sites import RankedSite
from gdps_ds.analysis.sketch import Sketches
from gdps_ds.analysis.subspace import IN_COMMON, JointSVD, NeuronScores, canonical_correlations, noise_ridge, whiten
from gdps_ds.config import PlanConfig

DIGITS = 5
"""Significant digits of a stored figure."""

LEADING = 16
"""Canonical correlations that are stored for a pair."""


def figures(values: ArrayLike) -> Any:
    """A float or nested lists of floats, rounded to :data:`DIGITS` significant digits; None where not finite."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    safe = np.where(finite, array, 0.0)
    exponent = np.floor(np.log10(np.where(safe == 0, 1.0, np.abs(safe))))
    # Dividing by a power of ten gives the shortest decimal; multiplying by its inverse would not.
    power = DIGITS - 1 - exponent
    scale = 10.0 ** np.abs(power)
    rounded = np.where(power >= 0, np.round(safe * scale) / scale, np.round(safe / scale) * scale).astype(object)
    rounded[~finite] = None
    return rounded.tolist()


def interval_figures(figure: Interval) -> dict[str, Any]:
    """Value and both ends of its 95 % interval; an end is None where it is unbounded."""
    return {"value": figures(figure.value), "low": figures(figure.low), "high": figures(figure.high)}


def site_figures(site: SiteSimilarity, rank: RankedSite) -> dict[str, Any]:
    """How a site ranks, and the figures of each language there."""
    return {
        "score": figures(rank.score),
        "conflict": interval_figures(site.conflict),
        "weighted_conflict": interval_figures(rank.weighted_conflict),
        "significant": rank.significant,
        "energy_share": figures(rank.energy_share),
        "self": interval_figures(site.self_similarity),
        "delta": figures(site.published.delta),
        "purity": figures(site.published.purity),
    }


def similarity_figures(site: SiteSimilarity) -> dict[str, Any]:
    """The similarity matrices of a site, (L, L) each."""
    return {
        "rho": interval_figures(site.rho),
        "cross": figures(site.cross_similarity),
        "published_cross": figures(site.published.cross_similarity),
        "published_cosine": figures(site.published.cosine),
    }


def candidate_figures(candidate: Candidate) -> dict[str, Any]:
    """A grouping that was considered."""
    return {
        "labels": candidate.labels.tolist(),
        "silhouette": figures(candidate.silhouette),
        "stability": figures(candidate.stability),
    }


def tree_figures(measure: str, similarity: Array, method: Method) -> dict[str, Any]:
    """What languages are grouped by, (L, L), and how; with the tree (L - 1, 4) where the method grows one."""
    known = {"measure": measure, "method": method, "similarity": figures(similarity)}
    if method == "k-means":
        return known
    return known | {"linkage": figures(clustering.tree(clustering.distances(similarity), method))}


def label_figures(similarity: Array, labels: Labels, seed: int) -> dict[str, Any]:
    """The groups, and for comparison as many groups of the same languages by every method."""
    groups = int(labels.max()) + 1
    by_method = {method: clustering.partition(similarity, groups, method, seed).tolist() for method in clustering.NAMES}
    return {"labels": labels.tolist(), "by_method": by_method}


def energy_figures(languages: Sequence[str], joint: JointSVD) -> dict[str, Any]:
    """Joint SVD of the folds' unit gradients: singular values, energies and shares of the languages."""
    return {
        "singular_values": figures(joint.singular_values),
        "energies": dict(zip(languages, figures(joint.energies), strict=True)),
        "shares": dict(zip(languages, figures(joint.shares), strict=True)),
    }


def neuron_figures(scores: NeuronScores, shared: tuple[int, ...]) -> dict[str, Any]:
    """Conflict and energy of each neuron, and how much conflict the shared lane keeps against a random one."""
    total = float(scores.conflict.sum())
    left = float(scores.conflict[list(shared)].sum())
    expected = total * len(shared) / len(scores.conflict)
    return {
        "conflict": figures(scores.conflict),
        "energies": figures(scores.energies),
        "conflict_total": figures(total),
        "conflict_left": figures(left),
        "conflict_left_by_random_lane": figures(expected),
    }


def canonical_figures(names: Sequence[str], sketches: Array) -> dict[str, Any]:
    """Ridge CCA between all pairs.

    Args:
        names: of the languages or groups.
        sketches: (N, 2, h, k) per-token gradients per half.

    Returns:
        The ridges, and per pair ``"a|b"`` the leading canonical correlations and how many reach :data:`IN_COMMON`.
    """
    ridges = [noise_ridge(halves) for halves in sketches]
    bases = [whiten(halves.mean(axis=0), ridge) for halves, ridge in zip(sketches, ridges, strict=True)]
    pairs = {}
    for first, second in combinations(range(len(names)), 2):
        correlations = canonical_correlations(bases[first], bases[second])
        pairs[f"{names[first]}|{names[second]}"] = {
            "correlations": figures(correlations[:LEADING]),
            "in_common": int((correlations >= IN_COMMON).sum()),
        }
    return {"ridges": dict(zip(names, figures(ridges), strict=True)), "pairs": pairs, "threshold": IN_COMMON}


def provenance(sketches: Sketches, settings: PlanConfig) -> dict[str, Any]:
    """Software, seeds, settings and the amount of data: the same sketches and provenance give the same plan."""
    packages = ("gdps_ds", "numpy", "scipy", "scikit-learn")
    return {
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "seed": sketches.seed,
        "settings": settings.model_dump(mode="json", by_alias=True),
        "utterances": dict(zip(sketches.languages, sketches.utterances.sum(axis=1).tolist(), strict=True)),
        "tokens": dict(zip(sketches.languages, sketches.tokens.sum(axis=1).tolist(), strict=True)),
    }
