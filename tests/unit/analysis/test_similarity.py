from __future__ import annotations

import numpy as np
import pytest

from gdps_ds.analysis.similarity import (
    FoldCosines,
    bootstrap_weights,
    energies,
    fold_cosines,
    interval,
    measure,
    noise_corrected,
    published_similarity,
    similarity,
)
from tests.unit.analysis.planted import Array, PlantedSite, plant


def from_vectors(vectors: list[list[list[float]]], tokens: list[list[int]] | None = None) -> FoldCosines:
    """Folds from (L, F, 2) vectors: the first number is the input layer's sketch (1 x 1), the second the output's."""
    array = np.array(vectors, dtype=np.float64)
    counts = np.ones(array.shape[:2]) if tokens is None else np.array(tokens)
    return fold_cosines(array.transpose(2, 0, 1)[..., None, None], counts)


# Language 1 has folds (1, 0) and (.6, .8); language 2 has (0, 1) and (.8, .6). Cosines by hand:
#   within 1: .6    within 2: .6    across: (1,0).(0,1) = 0, (1,0).(.8,.6) = .8, (.6,.8).(0,1) = .8, (.6,.8).(.8,.6) = .96
HAND = from_vectors([[[1, 0], [0.6, 0.8]], [[0, 1], [0.8, 0.6]]])


def test_published_figures_worked_by_hand() -> None:
    published = published_similarity(HAND)
    # S_self = .6 for both. S_cross = (0 + .8 + .8 + .96) / 4 = .64. delta = .6 - .64 = -.04.
    # purity = .6 / (.6 + .64). Mean snapshots (.8, .4) and (.4, .8): cosine .64 / .8 = .8.
    np.testing.assert_allclose(published.self_similarity, [0.6, 0.6])
    np.testing.assert_allclose(published.cross_similarity, [[np.nan, 0.64], [0.64, np.nan]])
    np.testing.assert_allclose(published.delta, -0.04)
    np.testing.assert_allclose(published.purity, [0.6 / 1.24] * 2)
    np.testing.assert_allclose(published.cosine, [[1, 0.8], [0.8, 1]])


def test_ours_worked_by_hand() -> None:
    # Over different folds: cross = ((1,0).(.8,.6) + (.6,.8).(0,1)) / 2 = .8; rho = .8 / sqrt(.6 * .6) = 4 / 3.
    np.testing.assert_allclose(similarity(HAND), [[0.6, 0.8], [0.8, 0.6]])
    np.testing.assert_allclose(noise_corrected(similarity(HAND)), [[1, 4 / 3], [4 / 3, 1]])


def test_energy_is_per_token_and_over_different_folds() -> None:
    # Gradients per token (3, 0) and (1, 1) of the first language: inner product 3. The second's fold 1 is empty.
    folds = from_vectors([[[6, 0], [4, 4]], [[1, 2], [0, 0]]], [[2, 4], [3, 0]])
    np.testing.assert_allclose(energies(folds), [3, 0])


def test_sums_and_means_have_the_same_cosines() -> None:
    generator = np.random.default_rng(0)
    core, tokens = generator.standard_normal((2, 3, 4, 2, 2)), generator.integers(1, 50, (3, 4))
    scaled = fold_cosines(core * tokens[:, :, None, None], tokens)
    np.testing.assert_allclose(scaled.cosines, fold_cosines(core, np.ones((3, 4))).cosines)
    np.testing.assert_allclose(scaled.norms, np.sqrt((core**2).sum(axis=(0, 3, 4))))


def test_empty_folds_are_left_out() -> None:
    vectors = [[[1, 0], [0, 0], [0.6, 0.8]], [[0, 1], [0.8, 0.6], [0.8, 0.6]]]
    folds = from_vectors(vectors, [[1, 0, 1], [1, 1, 1]])
    assert folds.present.tolist() == [[True, False, True], [True, True, True]]
    # Pairs of different folds: fold 0 of language 1 with folds 1 and 2 of 2 (.8, .8), fold 2 with 0 and 1 (.8, .96).
    np.testing.assert_allclose(similarity(folds), [[0.6, 3.36 / 4], [3.36 / 4, (0.6 + 0.6 + 1) / 3]])
    np.testing.assert_allclose(published_similarity(folds).self_similarity[0], 0.6)


def test_a_language_without_two_folds_or_without_signal_has_no_rho() -> None:
    one_fold = from_vectors([[[1, 0], [0, 0]], [[1, 0], [1, 0]]], [[1, 0], [1, 1]])
    opposed = from_vectors([[[1, 0], [-1, 0]], [[1, 0], [1, 0]]])
    for folds in (one_fold, opposed):
        rho = noise_corrected(similarity(folds))
        np.testing.assert_array_equal(np.isnan(rho), [[True, True], [True, False]])


def test_bootstrap_equals_a_plain_loop_and_skips_a_fold_drawn_twice() -> None:
    generator = np.random.default_rng(1)
    tokens = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    folds = fold_cosines(generator.standard_normal((2, 2, 4, 2, 2)) * tokens[:, :, None, None], tokens)
    weights = bootstrap_weights(tokens, 6, generator)
    np.testing.assert_array_equal(weights.sum(axis=1), np.broadcast_to([[3], [4]], (2, 6)))
    assert not weights[0, 3].any()
    result = similarity(folds, weights)
    for replicate in range(6):
        for first, second in ((0, 0), (0, 1), (1, 1)):
            drawn = [np.repeat(np.arange(4), weights[language, :, replicate].astype(int)) for language in (first, second)]
            pairs = [folds.cosines[first, f, second, g] for f in drawn[0] for g in drawn[1] if f != g]
            np.testing.assert_allclose(result[first, second, replicate], np.mean(pairs) if pairs else np.nan)


def test_measure_agrees_with_all_replicates_at_once() -> None:
    planted = plant([0, 1, 1], {"site": PlantedSite()}, noise=1.0, seed=3)
    sketches = planted.sketches
    folds = fold_cosines(sketches.sites["site"].core, sketches.tokens)
    weights = bootstrap_weights(sketches.tokens, 50, np.random.default_rng(0))
    figures = measure(folds, weights)
    replicates = noise_corrected(similarity(folds, weights))
    upper = np.triu_indices(3, 1)
    np.testing.assert_allclose(figures.rho.low, np.quantile(replicates, 0.025, axis=-1))
    np.testing.assert_allclose(figures.conflict_replicates, 1 - replicates[upper].mean(axis=0))
    np.testing.assert_allclose(figures.conflict.value, 1 - figures.rho.value[upper].mean())
    np.testing.assert_allclose(figures.energy_replicates, energies(folds, weights).mean(axis=0))
    assert figures.told_from_noise


def test_pure_noise_is_no_evidence() -> None:
    generator = np.random.default_rng(0)
    tokens = np.ones((2, 16), dtype=int)
    folds = fold_cosines(generator.standard_normal((2, 2, 16, 8, 8)), tokens)
    figures = measure(folds, bootstrap_weights(tokens, 200, generator))
    assert not figures.told_from_noise
    assert np.isnan(figures.conflict.value)


def test_interval_counts_undefined_replicates_against_both_ends() -> None:
    replicates = np.linspace(0, 1, 101)
    few, many = replicates.copy(), replicates.copy()
    few[50], many[:10] = np.nan, np.nan
    assert interval(np.array(0.5), few).bounded
    assert not interval(np.array(0.5), many).bounded
    assert interval(np.array(0.5), replicates).low == pytest.approx(0.025)


def draws(utterances: int, count: int) -> tuple[Array, Array, Array, Array]:
    """Over ``count`` draws with rho = .5: rho, the ends of its interval, and the published delta."""
    rows = []
    for seed in range(count):
        sketches = plant([0, 1], {"s": PlantedSite(between=0.5)}, noise=4.0, seed=seed, utterances=utterances).sketches
        folds = fold_cosines(sketches.sites["s"].core, sketches.tokens)
        figures = measure(folds, bootstrap_weights(sketches.tokens, 200, np.random.default_rng(seed)))
        rho = figures.rho
        rows.append((rho.value[0, 1], rho.low[0, 1], rho.high[0, 1], figures.published.delta))
    return tuple(np.array(rows).T)  # type: ignore[return-value]


def test_rho_is_unbiased_where_delta_follows_the_amount_of_data() -> None:
    few_rho, few_low, few_high, few_delta = draws(utterances=4, count=60)
    many_rho, many_low, many_high, many_delta = draws(utterances=64, count=60)
    for rho, low, high in ((few_rho, few_low, few_high), (many_rho, many_low, many_high)):
        standard_error = rho.std() / len(rho) ** 0.5
        assert abs(rho.mean() - 0.5) < 3 * standard_error + 1e-3
        assert np.mean((low <= 0.5) & (high >= 0.5)) >= 0.85
    # Snapshots of 4 utterances hold noise of norm 2: S_self = 1 / (1 + 4), delta = .2 * (1 - rho) = .1, "50 % shared".
    # Of 64: noise .5, S_self = 1 / 1.25, delta = .4, "25 % shared". The languages are the same.
    assert few_delta.mean() == pytest.approx(0.1, abs=0.01)
    assert many_delta.mean() == pytest.approx(0.4, abs=0.02)


def test_rho_does_not_see_how_unequal_the_amounts_of_data_are() -> None:
    planted = plant([0, 0], {"s": PlantedSite()}, noise=4.0, seed=0, utterances=[4, 256])
    folds = fold_cosines(planted.sketches.sites["s"].core, planted.sketches.tokens)
    assert noise_corrected(similarity(folds))[0, 1] == pytest.approx(1.0, abs=0.05)
    assert published_similarity(folds).cross_similarity[0, 1] < 0.5
