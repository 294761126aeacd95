"""Planted problems: sketches drawn from a model of gradients whose groups, conflict, noise and spectra are known.

At a site, the unit gradient of language l in group g is

    mu_l = sqrt(between) a + sqrt(within - between) b_g + sqrt(1 - within) c_l

with a, b_g, c_l orthonormal, so that two languages of one group have cosine ``within`` and two of different groups
``between``. In neuron space the common part lives on all neurons, the groups' parts on a known share of them only, each
part with a decaying spectrum and unequal rows. A fold adds isotropic noise of norm ``noise / sqrt(utterances)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdps_ds.analysis.sketch import HALVES, SiteSketch, Sketches

Array = NDArray[np.float64]
NAMES = ("aeb", "bem", "est", "gle", "que", "mar", "bho", "grk", "mdw", "fra", "ita", "spa")


@dataclass(frozen=True)
class PlantedSite:
    """What is true at one site; ``scale`` multiplies the gradients and their noise."""

    between: float = 0.4
    within: float = 1.0
    scale: float = 1.0
    conflict_neurons: float = 0.25


@dataclass(frozen=True)
class Planted:
    """Sketches and the truth behind them: ``gradients[site]`` is (L, h, k), noise-free, per token."""

    sketches: Sketches
    labels: NDArray[np.int64]
    gradients: dict[str, Array]


def plant(
    labels: Sequence[int],
    sites: dict[str, PlantedSite],
    *,
    noise: float,
    seed: int,
    folds: int = 16,
    utterances: int | Sequence[int] = 1,
    hidden: int = 64,
    sketch: int = 16,
    tokens: int = 20,
) -> Planted:
    """Draw sketches; ``noise`` is the norm of an utterance's noise where |mu_l| = 1, ``utterances`` are those of a fold
    (one number, or one a language)."""
    generator = np.random.default_rng(seed)
    groups = np.asarray(labels)
    counts = np.broadcast_to(np.reshape(utterances, (-1, 1)), (len(groups), folds)).copy()
    per_fold = counts[:, :, None].astype(np.float64)
    per_half = per_fold[:, :HALVES, :, None] * folds / HALVES
    drawn, gradients = {}, {}
    for name in sorted(sites):
        site = sites[name]
        core = _mix(_directions(generator, groups, 2 * sketch * sketch), groups, site)[:, None, :]
        core = core + _isotropic(generator, (len(groups), folds, core.shape[-1]), noise) / per_fold**0.5
        core = (site.scale * tokens * per_fold * core).reshape(len(groups), folds, 2, sketch, sketch)
        gradients[name] = _neuron_gradients(generator, groups, site, hidden, sketch)
        halves = _isotropic(generator, (len(groups), HALVES, hidden * sketch), noise)
        halves = gradients[name][:, None] + halves.reshape(len(groups), HALVES, hidden, sketch) / per_half**0.5
        drawn[name] = SiteSketch(hidden, core.transpose(2, 0, 1, 3, 4).copy(), site.scale * tokens * per_half * halves)
    sketches = Sketches(NAMES[: len(groups)], tokens * counts, counts, drawn, seed)
    return Planted(sketches, groups, gradients)


def _isotropic(generator: np.random.Generator, shape: tuple[int, ...], norm: float) -> Array:
    return norm / shape[-1] ** 0.5 * generator.standard_normal(shape)


def _directions(generator: np.random.Generator, groups: NDArray[np.int64], size: int) -> Array:
    """Orthonormal rows: the common one, one a group, one a language."""
    rows = 1 + int(groups.max()) + 1 + len(groups)
    return np.linalg.qr(generator.standard_normal((size, rows)))[0].T


def _mix(directions: Array, groups: NDArray[np.int64], site: PlantedSite) -> Array:
    common, by_group, own = np.split(directions, [1, 2 + int(groups.max())])
    return np.asarray(
        site.between**0.5 * common + (site.within - site.between) ** 0.5 * by_group[groups] + (1 - site.within) ** 0.5 * own
    )


def _neuron_gradients(
    generator: np.random.Generator, groups: NDArray[np.int64], site: PlantedSite, hidden: int, sketch: int
) -> Array:
    """(L, h, k); the groups' own parts live on the first ``conflict_neurons`` share of a random order of neurons."""
    parts = 1 + int(groups.max()) + 1 + len(groups)
    fought_over = generator.permutation(hidden)[: int(site.conflict_neurons * hidden)]
    support = np.ones((parts, hidden))
    support[1 : 2 + int(groups.max())] = 0
    support[1 : 2 + int(groups.max()), fought_over] = 1
    spectrum = 1.0 / np.arange(1, sketch + 1)
    rows = support[:, :, None] * generator.standard_normal((parts, hidden, sketch)) * spectrum
    rows *= generator.lognormal(sigma=1.0, size=(parts, hidden, 1))
    mixed = np.einsum("phk,pkl->phl", rows, np.linalg.qr(generator.standard_normal((parts, sketch, sketch)))[0])
    unit = mixed / np.sqrt((mixed**2).sum(axis=(1, 2), keepdims=True))
    return _mix(unit.reshape(parts, -1), groups, site).reshape(len(groups), hidden, sketch)
