from __future__ import annotations

import numpy as np
import pytest

from gdps_ds.analysis import clustering
from tests.unit.analysis.planted import Array


def blocks(labels: list[int], between: float, within: float = 1.0) -> Array:
    """Similarity of languages with known groups."""
    groups = np.array(labels)
    similarity = np.where(groups[:, None] == groups, within, between)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def replicates(similarity: Array, noise: float, count: int = 100) -> Array:
    generator = np.random.default_rng(0)
    drawn = similarity[:, :, None] + noise * generator.standard_normal((*similarity.shape, count))
    return (drawn + drawn.transpose(1, 0, 2)) / 2


def test_distance_is_never_negative() -> None:
    similarity = np.array([[1.0, 1.1], [1.1, 1.0]])
    np.testing.assert_array_equal(clustering.distances(similarity), np.zeros((2, 2)))


def test_ward_worked_by_hand() -> None:
    # 1 - cos: d(1,2) = .1, d(1,3) = .5, d(2,3) = .6. Languages 1 and 2 merge at .1; then, by Ward's update
    # (Lance & Williams), d = sqrt((2 * .5^2 + 2 * .6^2 - .1^2) / 3) = sqrt(1.21 / 3).
    similarity = np.array([[1, 0.9, 0.5], [0.9, 1, 0.4], [0.5, 0.4, 1]])
    tree = clustering.tree(clustering.distances(similarity), "ward")
    np.testing.assert_allclose(tree[:, 2], [0.1, (1.21 / 3) ** 0.5])
    assert clustering.partition(similarity, 2, "ward", seed=0).tolist() == [0, 0, 1]


def test_average_linkage_worked_by_hand() -> None:
    similarity = np.array([[1, 0.9, 0.5], [0.9, 1, 0.4], [0.5, 0.4, 1]])
    np.testing.assert_allclose(clustering.tree(clustering.distances(similarity), "average")[:, 2], [0.1, 0.55])


def test_k_means_worked_by_hand() -> None:
    # Unit vectors at 0, 30, 90 degrees. {0, 30} | {90}: both are half a chord from their mean, 2 * sin(15)^2 = .134 in sum
    # of squares; {0} | {30, 90}: 2 * sin(30)^2 = .5; {0, 90} | {30}: 1.
    angles = np.radians([0, 30, 90])
    similarity = np.cos(angles[:, None] - angles)
    assert clustering.partition(similarity, 2, "k-means", seed=0).tolist() == [0, 0, 1]


def test_silhouette_worked_by_hand() -> None:
    # Groups {1, 2} and {3}, distances as above: s(1) = (.5 - .1) / .5 = .8, s(2) = (.6 - .1) / .6 = 5/6, s(3) = 0.
    distance = np.array([[0, 0.1, 0.5], [0.1, 0, 0.6], [0.5, 0.6, 0]])
    labels = np.array([0, 0, 1])
    assert clustering.silhouette(distance, labels, 0.0) == pytest.approx((0.8 + 5 / 6) / 3)
    # With a resolution of .5 languages 1 and 2 are as far apart as 1 and 3: s(1) = 0, s(2) = .1 / .6.
    assert clustering.silhouette(distance, labels, 0.5) == pytest.approx(1 / 18)


@pytest.mark.parametrize("method", ["average", "ward", "k-means"])
@pytest.mark.parametrize("labels", [[0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 2, 0, 2], [0] * 20 + [1] * 3 + [2] * 7])
def test_groups_are_found(labels: list[int], method: clustering.Method) -> None:
    similarity = blocks(labels, between=0.4, within=0.95)
    found = clustering.best(clustering.candidates(similarity, replicates(similarity, 0.03, 20), method, seed=0), 0.8)
    assert found is not None and found.labels.tolist() == labels
    assert found.stability == 1.0
    assert clustering.partition(similarity, max(labels) + 1, method, seed=0).tolist() == labels


def test_languages_that_differ_alike_have_no_stable_grouping() -> None:
    similarity = replicates(blocks(list(range(6)), between=0.4), 0.05, 1)[:, :, 0]
    np.fill_diagonal(similarity, 1.0)
    considered = clustering.candidates(similarity, replicates(similarity, 0.05), "average", seed=0)
    assert clustering.best(considered, 0.8) is None


def test_undefined_replicates_do_not_agree() -> None:
    similarity = blocks([0, 0, 1], 0.4)
    drawn = replicates(similarity, 0.01, 10)
    drawn[0, 1, :3] = np.nan
    assert clustering.candidates(similarity, drawn, "average", seed=0)[0].stability == pytest.approx(0.7)


def test_labels_and_members_are_in_order() -> None:
    labels = clustering.canonical(np.array([7, 2, 7, 0]))
    assert labels.tolist() == [0, 1, 0, 2]
    assert clustering.members(labels, ("aeb", "bem", "est", "gle")) == (("aeb", "est"), ("bem",), ("gle",))
