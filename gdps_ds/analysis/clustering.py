"""Language groups from a similarity matrix, or the answer that there are none.

A grouping is a label vector (L,) numbered by first appearance, so that equal partitions are equal arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from gdps_ds.analysis.similarity import Array

Labels = NDArray[np.int64]
Linkage = Literal["average", "ward"]
Method = Literal["average", "ward", "k-means"]

NAMES: dict[Method, str] = {"average": "average linkage", "ward": "Ward linkage", "k-means": "k-means"}
"""How a person calls the methods."""

MAX_GROUPS = 10
"""Most groups that are tried: each group costs a private lane."""

AGREEMENT = 0.9
"""Adjusted Rand index from which a replicate agrees with a grouping. For up to about 10 languages no other partition
reaches it; among 100, a language or two may move."""


@dataclass(frozen=True)
class Candidate:
    """A grouping that was considered: its labels, mean silhouette and bootstrap stability."""

    labels: Labels
    silhouette: float
    stability: float


def distances(similarity: Array) -> Array:
    """1 - similarity, at least 0 (a noise-corrected rho may exceed 1), with a zero diagonal."""
    result = np.maximum(1.0 - (similarity + similarity.T) / 2, 0.0)
    np.fill_diagonal(result, 0.0)
    return result


def tree(distance: Array, method: Linkage) -> Array:
    """Agglomerative linkage, (L - 1, 4) as in SciPy.

    ``ward`` on 1 - cos is the published choice. ``average`` is ours: Ward's update is derived for Euclidean distances,
    which 1 - rho is not.
    """
    return linkage(squareform(distance, checks=False), method=method)


def partition(similarity: Array, groups: int, method: Method, seed: int) -> Labels:
    """The languages in exactly ``groups`` groups; ``seed`` starts k-means."""
    return partitions(similarity, [groups], method, seed)[0]


def partitions(similarity: Array, numbers: Sequence[int], method: Method, seed: int) -> list[Labels]:
    """:func:`partition` for several numbers of groups, all cut from one tree where the method grows one."""
    if method == "k-means":
        return [k_means(similarity, groups, seed) for groups in numbers]
    return [canonical(labels) for labels in cut_tree(tree(distances(similarity), method), numbers).T]


def k_means(similarity: Array, groups: int, seed: int) -> Labels:
    """k-means on points whose inner products are ``similarity`` (classical scaling).

    For cosines of mean gradients, as published, these are the unit mean gradients themselves, up to a rotation.
    """
    values, vectors = np.linalg.eigh((similarity + similarity.T) / 2)
    points = vectors * np.sqrt(np.maximum(values, 0.0))
    return canonical(KMeans(groups, n_init=10, random_state=seed).fit_predict(points))


def silhouette(distance: Array, labels: Labels, resolution: float) -> float:
    """Mean silhouette (Rousseeuw 1987); distances below ``resolution`` count as ``resolution``.

    Without the floor, groups of languages that differ by noise alone would be split on: a silhouette compares
    distances by their ratio, however small they are.
    """
    floored = np.maximum(distance, resolution)
    np.fill_diagonal(floored, 0.0)
    return float(silhouette_score(floored, labels, metric="precomputed"))


def candidates(similarity: Array, replicates: Array, method: Method, seed: int) -> list[Candidate]:
    """Groupings into 2 .. :data:`MAX_GROUPS` groups, each tried against the bootstrap.

    Args:
        similarity: (L, L) without NaN; L >= 3 (a silhouette needs a group of two).
        replicates: (L, L, B); a replicate with NaN agrees with no grouping.
        method: of clustering; ``seed`` starts k-means.

    Returns:
        One candidate per number of groups. Stability is the share of replicates that agree (:data:`AGREEMENT`).
    """
    distance = distances(similarity)
    upper = np.triu_indices(len(similarity), 1)
    resolution = float(np.median(np.nanstd(replicates[upper], axis=-1)))
    defined = [sample for sample in np.moveaxis(replicates, -1, 0) if np.isfinite(sample).all()]
    numbers = range(2, min(len(similarity) - 1, MAX_GROUPS) + 1)
    resampled = [partitions(sample, numbers, method, seed) for sample in defined]
    found = []
    for column, labels in enumerate(partitions(similarity, numbers, method, seed)):
        # Replicates repeat few partitions, and each is compared once.
        drawn = Counter(tuple(sample[column]) for sample in resampled)
        agree = sum(count for other, count in drawn.items() if adjusted_rand_score(labels, other) >= AGREEMENT)
        found.append(Candidate(labels, silhouette(distance, labels, resolution), agree / replicates.shape[-1]))
    return found


def best(considered: list[Candidate], min_stability: float) -> Candidate | None:
    """The stable candidate with the highest silhouette; among equals the one with fewest groups; None if none is."""
    stable = [candidate for candidate in considered if candidate.stability >= min_stability and candidate.silhouette > 0]
    return max(stable, key=lambda candidate: candidate.silhouette, default=None)


def canonical(labels: NDArray[np.integer]) -> Labels:
    """Labels renumbered 0, 1, ... in order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def members(labels: Labels, languages: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The groups' languages, in the order of ``languages``."""
    return tuple(
        tuple(language for language, label in zip(languages, labels, strict=True) if label == group)
        for group in range(int(labels.max()) + 1)
    )
