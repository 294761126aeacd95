from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdps_ds.analysis.capacity import (
    common_share,
    continuous_fraction,
    group_similarity,
    published_fraction,
    shared_width,
)


@pytest.mark.parametrize(
    ("delta", "fraction"),
    # GDPS, section B: below .05 three quarters, below .15 half, else a quarter. The paper's own delta is .075.
    [(-0.1, 0.75), (0.049, 0.75), (0.05, 0.5), (0.075, 0.5), (0.149, 0.5), (0.15, 0.25), (0.8, 0.25)],
)
def test_published_thresholds(delta: float, fraction: float) -> None:
    assert published_fraction(delta) == fraction


@pytest.mark.parametrize(
    ("fraction", "groups", "shared", "private"),
    # GDPS, section 3: h = 4096 as 3072 + 2 x 512, 2048 + 2 x 1024, 1024 + 2 x 1536.
    [(0.75, 2, 3072, 512), (0.5, 2, 2048, 1024), (0.25, 2, 1024, 1536)],
)
def test_published_widths(fraction: float, groups: int, shared: int, private: int) -> None:
    width = shared_width(fraction, 4096, groups, 64, "constant")
    assert (width, (4096 - width) // groups) == (shared, private)


def test_group_similarity_worked_by_hand() -> None:
    # Group {1, 2} with rho .8 inside: R = (1 + .8 + .8 + 1) / 4 = .9. Group {3}: R = 1. Between: (.5 + .4) / 2 = .45.
    # Cosine .45 / sqrt(.9).
    rho = np.array([[1, 0.8, 0.5], [0.8, 1, 0.4], [0.5, 0.4, 1]])
    groups = group_similarity(rho, np.array([0, 0, 1]))
    np.testing.assert_allclose(groups, [[1, 0.45 / 0.9**0.5], [0.45 / 0.9**0.5, 1]])
    np.testing.assert_allclose(common_share(groups), 0.45 / 0.9**0.5)
    both = group_similarity(np.stack([rho, np.ones((3, 3))], axis=-1), np.array([0, 0, 1]))
    np.testing.assert_allclose(common_share(both), [0.45 / 0.9**0.5, 1])


def test_group_similarity_is_the_cosine_of_mean_unit_gradients() -> None:
    vectors = np.random.default_rng(0).standard_normal((6, 10))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.array([0, 1, 1, 0, 2, 1])
    means = np.stack([vectors[labels == group].mean(axis=0) for group in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(group_similarity(vectors @ vectors.T, labels), means @ means.T)


def test_common_share_is_the_energy_along_the_mean_beyond_chance() -> None:
    vectors = np.random.default_rng(1).standard_normal((3, 5)) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    along_mean = 3 * (vectors.mean(axis=0) ** 2).sum() / 3
    share = common_share(group_similarity(vectors @ vectors.T, np.arange(3)))
    np.testing.assert_allclose(share, (along_mean - 1 / 3) / (1 - 1 / 3))


def test_continuous_rule_ends() -> None:
    assert [continuous_fraction(share) for share in (1.2, 1.0, 0.3, 0.0, -0.4)] == [1.0, 1.0, 0.3, 0.0, 0.0]


def test_undefined_figures_are_errors() -> None:
    with pytest.raises(ValueError, match=r"delta is undefined.*mine\.updates"):
        published_fraction(float("nan"))
    with pytest.raises(ValueError, match=r"rho between the groups is undefined.*plan\.shared"):
        continuous_fraction(float("nan"))


def test_widths_at_the_ends_leave_every_lane_a_neuron() -> None:
    assert shared_width(1.0, 4096, 2, 64, "preserve") == 4096 - 64
    assert shared_width(0.0, 4096, 2, 64, "preserve") == 64
    assert shared_width(1.0, 4096, 3, 64, "constant") == 4096 - 3 * 64
    assert shared_width(0.5, 48, 2, 16, "preserve") == 32  # 16 and 32 are equally near: the wider


@given(
    fraction=st.floats(0, 1),
    hidden=st.integers(8, 512),
    groups=st.integers(2, 6),
    round_to=st.sampled_from([1, 4, 8, 64]),
    constant=st.booleans(),
)
def test_widths_are_possible_and_monotone(fraction: float, hidden: int, groups: int, round_to: int, constant: bool) -> None:
    width = "constant" if constant else "preserve"
    step = groups if constant else 1
    possible = [r for r in range(round_to, hidden, round_to) if (hidden - r) % step == 0]
    if not possible:
        with pytest.raises(ValueError, match=r"plan\.round_to: no multiple of"):
            shared_width(fraction, hidden, groups, round_to, width)  # type: ignore[arg-type]
        return
    chosen = shared_width(fraction, hidden, groups, round_to, width)  # type: ignore[arg-type]
    assert chosen in possible
    assert chosen <= shared_width(1.0, hidden, groups, round_to, width)  # type: ignore[arg-type]
    assert all(abs(chosen - fraction * hidden) <= abs(other - fraction * hidden) for other in possible)
