from __future__ import annotations

import numpy as np
import pytest

from gdps_ds.analysis import subspace
from gdps_ds.analysis.sketch import HALVES
from tests.unit.analysis.planted import Array, Planted, PlantedSite, plant


def half_tokens(planted: Planted) -> Array:
    return np.stack([planted.sketches.tokens[:, half::HALVES].sum(axis=1) for half in range(HALVES)], axis=1)


def group_gradients(planted: Planted) -> Array:
    neurons = planted.sketches.sites["site"].neurons
    assert neurons is not None
    return subspace.group_gradients(neurons, half_tokens(planted), planted.labels)


def true_conflict(planted: Planted) -> Array:
    """(h,) disagreement of the groups' unit gradients, without noise."""
    gradients = planted.gradients["site"]
    groups = np.stack([gradients[planted.labels == group].mean(axis=0) for group in range(planted.labels.max() + 1)])
    groups /= np.sqrt((groups**2).sum(axis=(1, 2), keepdims=True))
    return sum(
        ((groups[first] - groups[second]) ** 2).sum(axis=1) / 2 for first in range(len(groups)) for second in range(first)
    )


def test_joint_svd_worked_by_hand() -> None:
    # G_1 = [(2, 0), (2, 0)] and G_2 = [(0, 1)]: singular values sqrt(8) and 1, v_1 = (1, 0), v_2 = (0, 1).
    # Energies |G_1 v_1|^2 / 2 = 4 and |G_2 v_2|^2 / 1 = 1; the first component has 8 / 9 < .9 of all, so two are kept.
    # pi = 4 / 5 and 1 / 5.
    rows = np.array([[2, 0], [2, 0], [0, 1]])
    joint = subspace.joint_svd(rows @ rows.T, np.array([0, 0, 1]))
    np.testing.assert_allclose(joint.singular_values, [8**0.5, 1])
    np.testing.assert_allclose(joint.energies, [[4, 0], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(joint.shares, [0.8, 0.2])


def test_joint_svd_equals_numpy_on_the_stack() -> None:
    generator = np.random.default_rng(0)
    blocks = [generator.standard_normal((rows, 30)) * scale for rows, scale in ((5, 1.0), (3, 2.0), (4, 0.5))]
    stacked = np.concatenate(blocks)
    joint = subspace.joint_svd(stacked @ stacked.T, np.repeat(np.arange(3), [5, 3, 4]))
    _, singular, right = np.linalg.svd(stacked, full_matrices=False)
    kept = len(joint.singular_values)
    np.testing.assert_allclose(joint.singular_values, singular[:kept])
    assert (singular[:kept] ** 2).sum() >= subspace.EXPLAINED * (singular**2).sum() > (singular[: kept - 1] ** 2).sum()
    expected = [((block @ right[:kept].T) ** 2).sum(axis=0) / len(block) for block in blocks]
    np.testing.assert_allclose(joint.energies, expected)
    with pytest.raises(ValueError, match="every gradient is zero"):
        subspace.joint_svd(np.zeros((2, 2)), np.array([0, 1]))


def test_canonical_correlations_worked_by_hand() -> None:
    # Two lines at 60 degrees: cosine 1/2. A ridge of 1 on vectors of squared norm 4 shrinks it by 4 / (4 + 1).
    first, second = np.array([[2.0], [0.0]]), np.array([[1.0], [3**0.5]])
    plain = subspace.canonical_correlations(subspace.whiten(first, 0.0), subspace.whiten(second, 0.0))
    np.testing.assert_allclose(plain, [0.5])
    ridged = subspace.canonical_correlations(subspace.whiten(first, 1.0), subspace.whiten(second, 1.0))
    np.testing.assert_allclose(ridged, [0.5 * 4 / 5])


def test_canonical_correlations_see_spaces_and_not_their_bases() -> None:
    generator = np.random.default_rng(1)
    sketch = generator.standard_normal((40, 4))
    mixed = sketch @ generator.standard_normal((4, 4))
    half_shared = np.concatenate([mixed[:, :2], generator.standard_normal((40, 2))], axis=1)
    half_shared[:, 2:] -= sketch @ np.linalg.lstsq(sketch, half_shared[:, 2:], rcond=None)[0]
    basis = subspace.whiten(sketch, 0.0)
    np.testing.assert_allclose(subspace.canonical_correlations(basis, subspace.whiten(mixed, 0.0)), 1.0)
    correlations = subspace.canonical_correlations(basis, subspace.whiten(half_shared, 0.0))
    np.testing.assert_allclose(correlations, [1, 1, 0, 0], atol=1e-7)


def test_whitening_survives_missing_rank() -> None:
    sketch = np.outer(np.arange(1.0, 6.0), [1.0, 2.0, 0.0])
    assert subspace.whiten(sketch, 0.0).shape == (5, 1)
    np.testing.assert_allclose(np.linalg.norm(subspace.whiten(sketch, 0.0)), 1.0)
    assert not subspace.whiten(np.zeros((5, 3)), 0.0).any()


def test_ridge_is_the_noise_in_the_mean_of_the_halves() -> None:
    # Noise of variance 1 in each half has variance 1/2 in their mean: 1/2 * h in every column.
    halves = 3.0 + np.random.default_rng(0).standard_normal((2, 2000, 8))
    assert subspace.noise_ridge(halves) == pytest.approx(1000, rel=0.05)
    assert subspace.noise_ridge(np.ones((2, 5, 3))) == 0.0


def test_group_gradients_are_unit_and_count_languages_by_direction() -> None:
    planted = plant([0, 1, 0], {"site": PlantedSite(within=0.8)}, noise=0.0, seed=0)
    groups = group_gradients(planted)
    np.testing.assert_allclose((groups[:, 0] * groups[:, 1]).sum(axis=(1, 2)), 1.0)
    neurons, tokens = planted.sketches.sites["site"].neurons, half_tokens(planted)
    assert neurons is not None
    louder = subspace.group_gradients(neurons * np.array([1, 5, 9])[:, None, None, None], tokens, planted.labels)
    np.testing.assert_allclose(louder, groups)


def test_conflict_and_energy_worked_by_hand() -> None:
    # Neuron 0: rows (1, 0) against (0, 1), |difference|^2 / 2 = 1. Neuron 1: alike, 0. Neuron 2: only in group 2, 4 / 2.
    groups = np.array([[[1, 0], [2, 2], [0, 0]], [[0, 1], [2, 2], [0, 2]]], dtype=np.float64)
    scores = subspace.score_neurons(np.stack([groups, groups], axis=1))
    np.testing.assert_allclose(scores.conflict, [1, 0, 2])
    np.testing.assert_allclose(scores.energies, [[1, 8, 0], [1, 8, 4]])


def test_conflict_sums_to_one_minus_cosine_over_pairs() -> None:
    planted = plant([0, 0, 1, 2], {"site": PlantedSite(between=0.3)}, noise=0.0, seed=1)
    scores = subspace.score_neurons(group_gradients(planted))
    np.testing.assert_allclose(scores.conflict, true_conflict(planted), atol=1e-12)
    groups = np.stack([planted.gradients["site"][language].ravel() for language in (0, 2, 3)])
    cosines = groups @ groups.T / np.outer(np.linalg.norm(groups, axis=1), np.linalg.norm(groups, axis=1))
    np.testing.assert_allclose(scores.conflict.sum(), (1 - cosines[np.triu_indices(3, 1)]).sum())


def test_conflict_is_unbiased_by_noise() -> None:
    estimates, truths, noisy = [], [], []
    for seed in range(40):
        planted = plant([0, 0, 1, 1], {"site": PlantedSite()}, noise=4.0, seed=seed)
        groups = group_gradients(planted)
        estimates.append(subspace.score_neurons(groups).conflict.sum())
        truths.append(true_conflict(planted).sum())
        noisy.append(subspace.score_neurons(np.repeat(groups.mean(axis=1, keepdims=True), 2, axis=1)).conflict.sum())
    assert np.mean(estimates) == pytest.approx(np.mean(truths), rel=0.05)
    assert np.mean(noisy) > 1.5 * np.mean(truths)


@pytest.mark.parametrize("noise", [0.5, 4.0, 8.0])
@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 0, 0], [0, 1, 2]])
def test_shared_lane_keeps_at_most_half_the_conflict_of_a_random_one(labels: list[int], noise: float) -> None:
    """Noise 8 an utterance is norm 2 in a language's mean of 16, twice the gradient itself."""
    left, random = 0.0, 0.0
    generator = np.random.default_rng(0)
    for seed in range(10):
        planted = plant(labels, {"site": PlantedSite(within=0.95)}, noise=noise, seed=seed)
        truth = true_conflict(planted)
        scores = subspace.score_neurons(group_gradients(planted))
        shared = list(subspace.assign_lanes("site", scores, len(truth) // 2, "preserve").shared)
        left += truth[shared].sum()
        random += np.mean([truth[generator.permutation(len(truth))[: len(shared)]].sum() for _ in range(50)])
    assert left <= 0.5 * random


SCORES = subspace.NeuronScores(
    conflict=np.array([0.5, 0.0, 0.9, 0.0, 0.4, 0.8]),
    energies=np.array([[1.0, 1, 5, 3, 2, 6], [2.0, 1, 1, 3, 1, 5]]),
)


def test_lanes_with_copies() -> None:
    lanes = subspace.assign_lanes("site", SCORES, 1, "preserve")
    # Neurons 1 and 3 are free of conflict; 3 carries more gradient.
    assert (lanes.hidden, lanes.shared) == (6, (3,))
    assert lanes.private == ((0, 1, 2, 4, 5),) * 2


def test_lanes_of_constant_width_are_a_partition_of_highest_energy() -> None:
    lanes = subspace.assign_lanes("site", SCORES, 2, "constant")
    # Of neurons 0, 2, 4, 5 two go to each group. Energies of the pairs for group 1 and the others for group 2:
    # {2, 4}: 5 + 2 + 2 + 5 = 14; {2, 5}: 5 + 6 + 2 + 1 = 14; {4, 5}: 2 + 6 + 2 + 1 = 11; {0, 2}: 1 + 5 + 1 + 5 = 12.
    assert lanes.shared == (1, 3)
    assert set(lanes.private[0]) in ({2, 4}, {2, 5})
    assert sorted(lanes.shared + lanes.private[0] + lanes.private[1]) == list(range(6))
    with pytest.raises(ValueError, match=r"plan\.width: constant cannot split 3 neurons into 2"):
        subspace.assign_lanes("site", SCORES, 3, "constant")
