"""Which hidden neurons the groups fight over: joint SVD, ridge CCA, conflict and energy per neuron, lanes.

Neuron sketches come in two halves of the folds, whose noise is independent: products *between* the halves estimate
products of the noise-free gradients without bias. That is how norms, energies and conflicts are measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from gdps_ds.analysis.clustering import Labels
from gdps_ds.analysis.similarity import Array
from gdps_ds.plan import SitePlan, Width

EXPLAINED = 0.9
"""Share of the joint energy that the kept singular components carry."""

IN_COMMON = 0.5
"""Canonical correlation from which a direction counts as common to two groups."""


@dataclass(frozen=True)
class JointSVD:
    """Leading singular components of gradients stacked as the rows of one matrix.

    Attributes:
        singular_values: (K,) descending; the fewest that carry :data:`EXPLAINED` of the energy.
        energies: (blocks, K) energy of block l on component c, |G_l v_c|^2 / n_l (GDPS, section C).
        shares: (blocks,) pi, each block's share of these energies.
    """

    singular_values: Array
    energies: Array
    shares: Array


@dataclass(frozen=True)
class NeuronScores:
    """Figures of each hidden neuron, free of noise on average; single ones may fall below 0.

    Attributes:
        conflict: (h,) sum over pairs of groups of |g_a - g_b|^2 / 2, where g_a is the neuron's row of the group's unit
            gradient. Over all neurons it sums to the sum over pairs of 1 - cos(group a, group b).
        energies: (G, h) squared norm of the row, in each group; sums to 1 over the neurons.
    """

    conflict: Array
    energies: Array


def joint_svd(gram: Array, block: NDArray[np.integer]) -> JointSVD:
    """SVD of the stacked rows M, from their Gram matrix M M^T.

    Args:
        gram: (N, N) inner products of the rows.
        block: (N,) the block (language or group) 0, 1, ... that each row belongs to.

    Raises:
        ValueError: every row is zero.
    """
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if not values.any():
        raise ValueError("every gradient is zero: the site has no singular components")
    kept = int(np.searchsorted(np.cumsum(values) / values.sum(), EXPLAINED)) + 1
    # M = U S V^T, so that G_l v_c = s_c u_lc, with u_l the rows of U that belong to block l.
    squares = values[:kept] * vectors[:, :kept] ** 2
    energies = np.stack([squares[block == index].mean(axis=0) for index in range(int(block.max()) + 1)])
    return JointSVD(np.sqrt(values[:kept]), energies, energies.sum(axis=1) / energies.sum())


def noise_ridge(halves: Array) -> float:
    """Ridge of a sketch (2, h, k): the noise energy in a column of the halves' mean.

    E|Y_1 - Y_2|^2 is four times the noise energy of (Y_1 + Y_2) / 2, and noise adds that much, divided by the k
    columns, to every eigenvalue of Y^T Y: directions below the noise are shrunk, those above it kept.
    """
    return float(((halves[0] - halves[1]) ** 2).sum() / (4 * halves.shape[2]))


def whiten(sketch: Array, ridge: float) -> Array:
    """Y (Y^T Y + ridge I)^(-1/2) of a sketch (h, k): a ridge-regularised basis of its column space."""
    values, vectors = np.linalg.eigh(sketch.T @ sketch)
    floor = np.finfo(np.float64).eps * len(values) * max(values[-1], np.finfo(np.float64).tiny)
    keep = values + ridge > floor
    return np.asarray(sketch @ (vectors[:, keep] / np.sqrt(values[keep] + ridge)))


def canonical_correlations(first: Array, second: Array) -> Array:
    """Canonical correlations of two :func:`whiten`-ed sketches, descending (Hotelling 1936; ridge: Vinod 1976)."""
    return np.linalg.svd(first.T @ second, compute_uv=False)


def group_gradients(neurons: Array, tokens: Array, labels: Labels) -> Array:
    """Unit gradients of the groups, per half: (G, 2, h, k).

    A group's gradient is the mean of its languages' unit gradients, scaled to unit norm, as in
    :func:`gdps_ds.analysis.capacity.group_similarity`: a language counts by its direction, not by its loss or size.
    Norms are free of noise; a gradient that cannot be told from noise is scaled by its noisy norm instead, which
    shrinks it.

    Args:
        neurons: (L, 2, h, k) sums.
        tokens: (L, 2) target tokens behind each sum, none of them 0.
        labels: (L,).
    """
    _, halves, hidden, width = neurons.shape
    groups = np.zeros((int(labels.max()) + 1, halves, hidden, width))
    for language, group in enumerate(labels):
        groups[group] += _unit(neurons[language] / tokens[language][:, None, None])
    return np.stack([_unit(group) for group in groups])


def score_neurons(groups: Array) -> NeuronScores:
    """Conflict and energy of each neuron from :func:`group_gradients`, (G, 2, h, k).

    Giving a neuron one shared row instead of a row per group costs, to second order with equal curvature everywhere,
    sum over groups of |g_a - mean|^2 / 2; the sum over pairs of |g_a - g_b|^2 / 2 is G times that. Both are products
    between the halves here. Projecting on the leading joint subspace first was measured on planted problems: it takes
    the noise out of single neurons, but biases the sums and gives no better lanes.
    """
    energies = np.einsum("ghk,ghk->gh", groups[:, 0], groups[:, 1])
    centred = groups - groups.mean(axis=0)
    return NeuronScores(len(groups) / 2 * np.einsum("ghk,ghk->h", centred[:, 0], centred[:, 1]), energies)


def assign_lanes(name: str, scores: NeuronScores, shared: int, width: Width) -> SitePlan:
    """Give every neuron its lane.

    The shared lane takes the ``shared`` neurons of least conflict, and so leaves the least conflict in it. With
    ``preserve`` every group gets a copy of all others. With ``constant`` each of them goes to one group, so that no
    neuron of the dense block is thrown away and parameters stay constant: equal lanes that hold as much of each
    group's own energy as possible (an assignment problem, solved exactly).

    Raises:
        ValueError: with ``constant``, the other neurons do not split into equal lanes.
    """
    groups, hidden = scores.energies.shape
    # Neurons without conflict are equals; the energetic ones gain more from the data of all languages.
    order = np.lexsort((-scores.energies.sum(axis=0), scores.conflict))
    others = np.sort(order[shared:])
    private = [others] * groups if width == "preserve" else _split_evenly(others, scores.energies[:, others])
    return SitePlan(name, hidden, _ascending(order[:shared]), tuple(_ascending(lane) for lane in private))


def _split_evenly(neurons: NDArray[np.integer], energies: Array) -> list[NDArray[np.integer]]:
    """Partition ``neurons`` into one equal lane a group, with the highest sum of ``energies`` (G, neurons)."""
    groups, count = energies.shape
    if count % groups:
        raise ValueError(f"plan.width: constant cannot split {count} neurons into {groups} equal lanes")
    seats = np.repeat(np.arange(groups), count // groups)
    rows, columns = linear_sum_assignment(energies[seats], maximize=True)
    return [neurons[columns[seats[rows] == group]] for group in range(groups)]


def _ascending(neurons: NDArray[np.integer] | Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(int(neuron) for neuron in neurons))


def _unit(halves: Array) -> Array:
    """Both halves (2, h, k) divided by the noise-free norm of the gradient that they share."""
    square = float((halves[0] * halves[1]).sum())
    if square <= 0:
        square = float((halves.mean(axis=0) ** 2).sum())
    return halves / np.sqrt(square) if square > 0 else halves
