"""Arms over seeds: one seed is the ordinary comparison, and more of them are its means."""

from __future__ import annotations

import numpy as np
import pytest

from gdps_ds.config import DecodeConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.evaluation.comparison import compare
from gdps_ds.evaluation.seeds import Difference, compare_arms, over_seeds, seeds_p
from tests.unit.evaluation.texts import system

SETTINGS = DecodeConfig(resamples=100, trials=100)
RUNS = {
    "uniform": {seed: system("", {"aeb": 0.3, "bem": 0.2}, seed=seed) for seed in (1, 2, 3)},
    "gdps": {seed: system("", {"aeb": 0.1, "bem": 0.2}, seed=10 + seed) for seed in (1, 2, 3)},
    "wide": {2: system("", {"aeb": 0.3, "bem": 0.1}, seed=22)},
}
EVALUATION = compare_arms(RUNS, ("uniform", "gdps"), SETTINGS)


def difference(arm: str, reference: str, row: str = "mean", metric: str = "BLEU") -> Difference:
    key = (arm, reference, row, metric)
    (found,) = [each for each in EVALUATION.differences if (each.arm, each.reference, each.row, each.metric) == key]
    return found


def test_one_seed_is_the_ordinary_comparison() -> None:
    """The same draws: score, interval and p-value are those of two systems."""
    plain = compare([RUNS["wide"][2], system("other", {"aeb": 0.3, "bem": 0.2}, seed=2)], SETTINGS)
    (expected,) = [each for each in plain.comparisons if (each.metric, each.row) == ("BLEU", "mean")]
    found = difference("wide", "uniform")
    assert found.difference == pytest.approx(expected.difference)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.p_utterances, found.p_seeds) == (expected.p_randomisation, None)
    score = EVALUATION.scores["wide"]["mean"]["BLEU"]
    assert (score.score, score.low, score.high) == pytest.approx(
        [getattr(plain.scores[""]["mean"]["BLEU"], name) for name in ("score", "low", "high")]
    )
    assert (score.deviation, list(score.by_seed)) == (None, [2])


def test_scores_are_means_over_seeds() -> None:
    for row in ("aeb", "bem", "mean"):
        found = EVALUATION.scores["gdps"][row]["BLEU"]
        assert found.score == pytest.approx(np.mean(list(found.by_seed.values())))
        assert found.deviation == pytest.approx(np.std(list(found.by_seed.values()), ddof=1))
        assert found.low < found.score < found.high


def test_differences_are_of_common_seeds() -> None:
    found, scores = difference("gdps", "uniform"), EVALUATION.scores
    by_seed = {
        seed: scores["gdps"]["mean"]["BLEU"].by_seed[seed] - scores["uniform"]["mean"]["BLEU"].by_seed[seed]
        for seed in (1, 2, 3)
    }
    assert found.by_seed == pytest.approx(by_seed)
    assert found.p_seeds == pytest.approx(seeds_p(list(by_seed.values())))
    assert (found.p_utterances, found.low > 0) == (1 / 101, True)
    assert difference("uniform", "gdps").difference == pytest.approx(-found.difference)
    assert list(difference("wide", "gdps").by_seed) == [2]
    assert difference("gdps", "uniform", "bem").p_utterances > 0.05


def test_an_arm_that_is_the_other_does_not_differ() -> None:
    runs = {"uniform": RUNS["uniform"], "same": RUNS["uniform"]}
    (found,) = [
        each for each in compare_arms(runs, ("uniform",), SETTINGS).differences if (each.metric, each.row) == ("BLEU", "mean")
    ]
    assert (found.difference, found.low, found.high, found.p_utterances, found.p_seeds) == (0.0, 0.0, 0.0, 1.0, None)


def test_seeds_are_drawn_anew() -> None:
    """Two seeds whose scores are 0 and 1: half of the resamples mix them."""
    draws = over_seeds(np.array([np.zeros(4000), np.ones(4000)]), seed=1)
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)


def test_paired_t_test_over_seeds() -> None:
    """Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.46 with 2 degrees of freedom."""
    assert seeds_p([1.0, 2.0, 3.0]) == pytest.approx(0.0742, abs=1e-4)
    assert seeds_p([1.0]) is None


def test_runs_that_cannot_be_compared_are_named() -> None:
    with pytest.raises(DataError, match="no arm has been trained"):
        compare_arms({"gdps": {}}, (), SETTINGS)
    other = {"gdps": {1: RUNS["gdps"][1], 4: system("", {"aeb": 0.3}, seed=4)}}
    with pytest.raises(DataError, match="gdps of seed 4 lacks 60 utterances of gdps of seed 1"):
        compare_arms(other, (), SETTINGS)
