"""Self and cross similarity of the languages' gradients at one site, as published and corrected for noise.

A fold f of language l has the mean gradient v_lf = mu_l + noise. The noise shortens every cosine between folds, and it
does so more where a fold holds fewer utterances: the published S_self, S_cross and delta measure the amount of data as
well as the languages. Our rho divides it out. Over *different* folds the noise is independent, so that

    self(l) = mean over f != f' of cos(v_lf, v_lf')            cross(l, m) = mean over f != f' of cos(v_lf, v_mf')
    rho(l, m) = cross(l, m) / sqrt(self(l) self(m))            (attenuation: Spearman 1904)

estimate |u_l|^2, <u_l, u_m> and cos(u_l, u_m), where u_l is the expected unit gradient of a fold. Two languages share
no utterance, yet equal folds are left out of cross(l, m) too: folds are drawn by utterance id, so in a multi-parallel
corpus that numbers its sentences alike in all languages the same sentence, and its noise, falls into the same fold.
A bootstrap replicate may draw a fold twice; leaving out equal folds also keeps that pair, of cosine 1, out of self(l).

Everything follows from the cosines between all folds, (L F) x (L F): the bootstrap reweights folds and never returns to
the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

INTERVAL = (0.025, 0.975)
"""Quantiles of every bootstrap interval: 95 %."""


@dataclass(frozen=True)
class FoldCosines:
    """Cosines between the mean gradients of all folds at one site.

    Attributes:
        cosines: (L, F, L, F); 0 where a fold is not present.
        norms: (L, F) norm of a fold's gradient per target token.
        present: (L, F) whether the fold has utterances and a gradient that is not zero.
    """

    cosines: Array
    norms: Array
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class Published:
    """Similarities as in the GDPS paper (2603.25836, sections A and B), folds standing for its snapshots.

    Attributes:
        self_similarity: (L,) S_self, mean cosine between two snapshots of the language.
        cross_similarity: (L, L) S_cross, mean cosine between a snapshot of each; NaN on the diagonal.
        cosine: (L, L) cosine between the languages' mean (normalised) snapshots.
        delta: mean S_self - mean S_cross.
        purity: (L,) S_self / (S_self + S_cross), S_cross averaged over the other languages; NaN where the sum is not
            positive.
    """

    self_similarity: Array
    cross_similarity: Array
    cosine: Array
    delta: float
    purity: Array


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval; infinite where over 2.5 % of replicates are undefined."""

    value: Array
    low: Array
    high: Array

    @property
    def bounded(self) -> NDArray[np.bool_]:
        """Where the figure is defined, at the estimate and in nearly all replicates."""
        return np.isfinite(self.value) & np.isfinite(self.low) & np.isfinite(self.high)


@dataclass(frozen=True)
class SiteSimilarity:
    """Everything that the folds say about one site.

    Attributes:
        published: the paper's figures.
        self_similarity: (L,) self.
        cross_similarity: (L, L) cross, NaN on the diagonal.
        rho: (L, L) noise-corrected similarity.
        measured: (L, L) pairs, the diagonal excluded, whose rho is told from noise: its interval is bounded.
        conflict: () mean of 1 - rho over the measured pairs; NaN where there is none.
        conflict_replicates: (B,).
        energy: mean over the languages of :func:`energies`.
        energy_replicates: (B,).
    """

    published: Published
    self_similarity: Interval
    cross_similarity: Array
    rho: Interval
    measured: NDArray[np.bool_]
    conflict: Interval
    conflict_replicates: Array
    energy: float
    energy_replicates: Array

    @property
    def told_from_noise(self) -> bool:
        """Whether every pair of languages is measured."""
        languages = len(self.measured)
        return int(self.measured.sum()) == languages * (languages - 1)


def measure(folds: FoldCosines, weights: Array) -> SiteSimilarity:
    """All figures of one site; ``weights`` are the (L, F, B) of :func:`bootstrap_weights`."""
    estimate, replicates = similarity(folds), similarity(folds, weights)
    rho, rho_replicates = noise_corrected(estimate), noise_corrected(replicates)
    rho_interval = interval(rho, rho_replicates)
    apart = ~np.eye(len(rho), dtype=bool)
    measured = rho_interval.bounded & apart
    conflict = np.asarray(1 - rho[measured].mean() if measured.any() else np.nan)
    drawn = 1 - _mean_defined(rho_replicates[measured])
    return SiteSimilarity(
        published_similarity(folds),
        interval(np.diagonal(estimate), np.diagonal(replicates).T),
        np.where(apart, estimate, np.nan),
        rho_interval,
        measured,
        interval(conflict, drawn),
        drawn,
        float(energies(folds).mean()),
        energies(folds, weights).mean(axis=0),
    )


def fold_cosines(core: Array, tokens: Array) -> FoldCosines:
    """Cosines between the folds' gradients, both linear layers of the block taken as one vector.

    Args:
        core: (2, L, F, k, k) gradient sums.
        tokens: (L, F) target tokens behind each sum.

    Raises:
        ValueError: a sketch holds NaN or infinity.
    """
    _, languages, folds = core.shape[:3]
    layers = np.asarray(core, dtype=np.float64).reshape(len(core), languages * folds, -1)
    gram = sum(layer @ layer.T for layer in layers)
    squares = np.diagonal(gram).reshape(languages, folds)
    if not np.isfinite(squares).all():
        bad = sorted({int(language) for language, _ in np.argwhere(~np.isfinite(squares))})
        raise ValueError(f"the core sketch of language number(s) {bad} holds NaN or infinity")
    present = (tokens > 0) & (squares > 0)
    lengths = np.where(present, np.sqrt(squares), np.inf)
    cosines = gram / np.outer(lengths, lengths)
    norms = np.where(present, lengths / np.where(tokens > 0, tokens, 1), 0.0)
    return FoldCosines(cosines.reshape(languages, folds, languages, folds), norms, present)


def published_similarity(folds: FoldCosines) -> Published:
    """S_self, S_cross, delta, purity and the cosine of mean gradients; NaN where a language has too few folds."""
    sums = np.einsum("lfmg->lm", folds.cosines)
    counts = folds.present.sum(axis=1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The cosine of a fold with itself is 1 and is no pair of snapshots.
        self_similarity = np.where(counts > 1, (np.diagonal(sums) - counts) / (counts * (counts - 1)), np.nan)
        cross = sums / np.outer(counts, counts)
        cosine = sums / np.sqrt(np.outer(np.diagonal(sums), np.diagonal(sums)))
        np.fill_diagonal(cross, np.nan)
        mean_cross = _mean_of_others(cross)
        total = self_similarity + mean_cross
        purity = np.where(total > 0, self_similarity / total, np.nan)
    return Published(self_similarity, cross, cosine, float(self_similarity.mean() - mean_cross.mean()), purity)


def similarity(folds: FoldCosines, weights: Array | None = None) -> Array:
    """self(l) on the diagonal and cross(l, m) off it, over different folds.

    Args:
        folds: the cosines.
        weights: (L, F, B) how often each replicate draws a fold; None takes every fold once.

    Returns:
        (L, L), or (L, L, B) with ``weights``; NaN where there is no pair of different folds.
    """
    languages, count = folds.present.shape
    drawn = np.ones((languages, count, 1)) if weights is None else weights
    drawn = drawn * folds.present[:, :, None]
    different = folds.cosines * (1.0 - np.eye(count))[:, None, :]
    totals = drawn.sum(axis=1)
    result = np.empty((languages, languages, drawn.shape[2]))
    for first in range(languages):
        others = drawn[first:]
        rows = different[first, :, first:].reshape(count, -1)
        sums = ((rows.T @ drawn[first]).reshape(others.shape) * others).sum(axis=1)
        pairs = totals[first] * totals[first:] - (drawn[first] * others).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            result[first, first:] = result[first:, first] = np.where(pairs > 0, sums / pairs, np.nan)
    return result[:, :, 0] if weights is None else result


def noise_corrected(similarities: Array) -> Array:
    """rho from :func:`similarity`, (L, L) or (L, L, B).

    rho(l, l) is 1. Where self(l) <= 0 the language's gradient cannot be told from noise, and every rho of it is NaN.
    Sampling may carry rho outside [-1, 1]; clipping would bias it.
    """
    selves = np.einsum("ll...->l...", similarities)
    roots = np.sqrt(np.where(selves > 0, selves, np.nan))
    rho = similarities / (roots[:, None] * roots[None, :])
    diagonal = np.arange(len(selves))
    rho[diagonal, diagonal] = np.where(selves > 0, 1.0, np.nan)
    return rho


def energies(folds: FoldCosines, weights: Array | None = None) -> Array:
    """Squared norm of each language's gradient per token, free of noise: mean over f != f' of <v_lf, v_lf'>.

    Returns:
        (L,), or (L, B) with ``weights``; at least 0, and 0 where there is no pair of different folds.
    """
    count = folds.present.shape[1]
    drawn = folds.present[:, :, None] * (np.ones((1, 1, 1)) if weights is None else weights)
    own = np.einsum("lflg->lfg", folds.cosines) * folds.norms[:, :, None] * folds.norms[:, None, :]
    sums = ((own * (1.0 - np.eye(count))).transpose(0, 2, 1) @ drawn * drawn).sum(axis=1)
    pairs = drawn.sum(axis=1) ** 2 - (drawn**2).sum(axis=1)
    result = np.maximum(np.where(pairs > 0, sums / np.where(pairs > 0, pairs, 1), 0.0), 0.0)
    return result[:, 0] if weights is None else result


def bootstrap_weights(tokens: Array, replicates: int, generator: np.random.Generator) -> Array:
    """How often each replicate draws each fold: (L, F, B), with replacement, per language, among folds with tokens.

    Drawn once and used at every site: a fold is the same utterances everywhere, so that figures of different sites
    may be compared within a replicate.
    """
    weights = np.zeros((*tokens.shape, replicates))
    for language, filled in enumerate(tokens > 0):
        count = int(filled.sum())
        if count:
            weights[language, filled] = generator.multinomial(count, np.full(count, 1 / count), size=replicates).T
    return weights


def interval(value: Array, replicates: Array) -> Interval:
    """Percentile interval over the last axis of ``replicates``; undefined replicates count against both ends."""
    low, high = INTERVAL
    undefined = np.isnan(replicates)
    if not undefined.any():
        ends = np.quantile(replicates, INTERVAL, axis=-1)
        return Interval(value, ends[0], ends[1])
    lows = np.quantile(np.where(undefined, -np.inf, replicates), low, axis=-1, method="lower")
    highs = np.quantile(np.where(undefined, np.inf, replicates), high, axis=-1, method="higher")
    return Interval(value, np.asarray(lows), np.asarray(highs))


def _mean_defined(values: Array) -> Array:
    """(B,) mean of (N, B) over what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis=0)
    return np.where(counts > 0, np.where(defined, values, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def _mean_of_others(cross: Array) -> Array:
    """(L,) mean over the other languages of a (L, L) matrix whose diagonal is NaN; NaN for a single language."""
    if len(cross) < 2:
        return np.full(len(cross), np.nan)
    return np.where(np.eye(len(cross), dtype=bool), 0.0, cross).sum(axis=1) / (len(cross) - 1)
