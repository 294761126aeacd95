"""From how far the groups diverge to how many hidden neurons they share."""

from __future__ import annotations

import numpy as np

from gdps_ds.analysis.clustering import Labels
from gdps_ds.analysis.similarity import Array
from gdps_ds.plan import Width


def published_fraction(delta: float) -> float:
    """Shared fraction from delta = mean S_self - mean S_cross (GDPS, 2603.25836, section B).

    delta < .05 -> 75 %; delta < .15 -> 50 %; else 25 %.

    Raises:
        ValueError: delta is not a number.
    """
    if np.isnan(delta):
        raise ValueError("delta is undefined: a language has fewer than two folds with a gradient (mine.updates)")
    return 0.75 if delta < 0.05 else 0.5 if delta < 0.15 else 0.25


def group_similarity(similarity: Array, labels: Labels) -> Array:
    """Cosine between the groups' gradients, each the mean of its languages' unit gradients.

    With R(g, h) the mean of ``similarity`` over the languages of g and of h, the diagonal included, this is
    R(g, h) / sqrt(R(g, g) R(h, h)): what divides languages *within* a group does not count against sharing.

    Args:
        similarity: (L, L), or (L, L, B) for replicates, with ones on the diagonal.
        labels: (L,).

    Returns:
        (G, G) or (G, G, B); NaN where R(g, g) is not positive.
    """
    member = (labels[:, None] == np.arange(labels.max() + 1)).astype(np.float64)
    member /= member.sum(axis=0)
    means = np.einsum("lm...,lg,mh->gh...", similarity, member, member)
    squares = np.einsum("gg...->g...", means)
    roots = np.sqrt(np.where(squares > 0, squares, np.nan))
    return means / (roots[:, None] * roots[None, :])


def common_share(groups: Array) -> Array:
    """Mean cosine over pairs of groups, from :func:`group_similarity`: a scalar, or (B,).

    For G unit gradients with mean cosine c, the energy along their mean is (1 + (G - 1) c) / G of the total. Unrelated
    groups have 1 / G. The excess over chance, (share - 1 / G) / (1 - 1 / G), is c: 1 where the groups pull alike, 0
    where they are unrelated, negative where they pull apart.
    """
    return np.asarray(groups[np.triu_indices(len(groups), 1)].mean(axis=0))


def continuous_fraction(share: float) -> float:
    """Shared fraction = the groups' common share of gradient energy beyond chance, within [0, 1].

    Raises:
        ValueError: the share is not a number.
    """
    if np.isnan(share):
        raise ValueError(
            "rho between the groups is undefined: a gradient cannot be told from noise "
            "(raise mine.updates, or give plan.shared as a fraction)"
        )
    return float(np.clip(share, 0.0, 1.0))


def shared_width(fraction: float, hidden: int, groups: int, round_to: int, width: Width) -> int:
    """The possible shared width nearest to ``fraction * hidden``; of two equally near, the wider.

    Possible is a multiple of ``round_to`` that leaves every lane a neuron and, for ``constant``, splits the other
    neurons into ``groups`` equal lanes.

    Raises:
        ValueError: no width is possible; names the options.
    """
    step = groups if width == "constant" else 1
    possible = [r for r in range(round_to, hidden, round_to) if (hidden - r) % step == 0]
    if not possible:
        raise ValueError(
            f"plan.round_to: no multiple of {round_to} below the hidden width {hidden} leaves neurons for "
            f"{groups} private lanes (plan.width: {width}); use a smaller plan.round_to"
        )
    return min(possible, key=lambda r: (abs(r - fraction * hidden), -r))
