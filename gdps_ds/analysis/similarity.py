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

from collections.abc import Iterator
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
    """All figures of one site; ``weights`` are the (L, F, B) of :func:`bootstrap_weights`.

    Works through the pairs language by language: all replicates of all pairs at once would take 8 L^2 B bytes.
    """
    estimate = similarity(folds)
    rho = noise_corrected(estimate)
    selves = _over_different_folds(folds, weights)
    roots = np.sqrt(_positive(selves))
    low, high = np.ones_like(rho), np.ones_like(rho)
    measured = np.zeros(rho.shape, dtype=bool)
    sums, counts = np.zeros((2, weights.shape[2]))
    for first, rows in _similarity_rows(folds, weights):
        drawn = rows[1:] / (roots[first] * roots[first + 1 :])
        found = interval(rho[first, first + 1 :], drawn)
        low[first, first + 1 :] = low[first + 1 :, first] = found.low
        high[first, first + 1 :] = high[first + 1 :, first] = found.high
        measured[first, first + 1 :] = measured[first + 1 :, first] = found.bounded
        sums += np.nansum(drawn[found.bounded], axis=0)
        counts += np.isfinite(drawn[found.bounded]).sum(axis=0)
    conflicts = 1 - _ratio(sums, counts)
    conflict = np.asarray(1 - rho[measured].mean() if measured.any() else np.nan)
    return SiteSimilarity(
        published_similarity(folds),
        interval(np.diagonal(estimate), selves),
        np.where(np.eye(len(rho), dtype=bool), np.nan, estimate),
        Interval(rho, low, high),
        measured,
        interval(conflict, conflicts),
        conflicts,
        float(energies(folds).mean()),
        energies(folds, weights).mean(axis=0),
    )


def fold_cosines(core: Array, tokens: Array) -> FoldCosines:
    """Cosines between the folds' gradients, both linear layers of the block taken as one vector.

    Args:
        core: (2, L, F, k, k) gradient sums.
        tokens: (L, F) target tokens behind each sum.
    """
    _, languages, folds = core.shape[:3]
    layers = np.asarray(core, dtype=np.float64).reshape(len(core), languages * folds, -1)
    gram = sum(layer @ layer.T for layer in layers)
    squares = np.diagonal(gram).reshape(languages, folds)
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
    drawn = np.ones((*folds.present.shape, 1)) if weights is None else weights
    result = np.empty((len(drawn), len(drawn), drawn.shape[2]))
    for first, rows in _similarity_rows(folds, drawn):
        result[first, first:] = result[first:, first] = rows
    return result[:, :, 0] if weights is None else result


def noise_corrected(similarities: Array) -> Array:
    """rho from :func:`similarity`, (L, L) or (L, L, B).

    rho(l, l) is 1. Where self(l) <= 0 the language's gradient cannot be told from noise, and every rho of it is NaN.
    Sampling may carry rho outside [-1, 1]; clipping would bias it.
    """
    selves = _positive(np.einsum("ll...->l...", similarities))
    roots = np.sqrt(selves)
    rho = np.asarray(similarities / (roots[:, None] * roots[None, :]))
    diagonal = np.arange(len(selves))
    rho[diagonal, diagonal] = selves / selves
    return rho


def energies(folds: FoldCosines, weights: Array | None = None) -> Array:
    """Squared norm of each language's gradient per token, free of noise: mean over f != f' of <v_lf, v_lf'>.

    Returns:
        (L,), or (L, B) with ``weights``; at least 0, and 0 where there is no pair of different folds.
    """
    drawn = np.ones((*folds.present.shape, 1)) if weights is None else weights
    result = np.nan_to_num(np.maximum(_over_different_folds(folds, drawn, folds.norms), 0.0))
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


def _similarity_rows(folds: FoldCosines, weights: Array) -> Iterator[tuple[int, Array]]:
    """For each language l, (L - l, B): its similarity to itself and to every later language, in each replicate."""
    count = folds.present.shape[1]
    drawn = weights * folds.present[:, :, None]
    different = folds.cosines * (1.0 - np.eye(count))[:, None, :]
    totals = drawn.sum(axis=1)
    for first, own in enumerate(drawn):
        others = drawn[first:]
        rows = different[first, :, first:].reshape(count, -1)
        sums = np.einsum("mfb,mfb->mb", (rows.T @ own).reshape(others.shape), others)
        pairs = totals[first] * totals[first:] - np.einsum("fb,mfb->mb", own, others)
        yield first, _ratio(sums, pairs)


def _over_different_folds(folds: FoldCosines, weights: Array, scale: Array | None = None) -> Array:
    """(L, B) mean over f != f' of cos(v_lf, v_lf'), each fold multiplied by its ``scale`` (L, F)."""
    drawn = weights * folds.present[:, :, None]
    own = np.einsum("lflg->lfg", folds.cosines) * (1.0 - np.eye(folds.present.shape[1]))
    if scale is not None:
        own = own * scale[:, :, None] * scale[:, None, :]
    return _ratio(np.einsum("lfb,lfb->lb", own @ drawn, drawn), drawn.sum(axis=1) ** 2 - (drawn**2).sum(axis=1))


def _ratio(sums: Array, counts: Array) -> Array:
    """Means; NaN where nothing was counted."""
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _positive(values: Array) -> Array:
    return np.where(values > 0, values, np.nan)


def _mean_of_others(cross: Array) -> Array:
    """(L,) mean over the other languages of a (L, L) matrix whose diagonal is NaN; NaN for a single language."""
    if len(cross) < 2:
        return np.full(len(cross), np.nan)
    return np.where(np.eye(len(cross), dtype=bool), 0.0, cross).sum(axis=1) / (len(cross) - 1)
