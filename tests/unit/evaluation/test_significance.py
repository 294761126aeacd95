from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from gdps_ds.config import DecodeConfig
from gdps_ds.evaluation.metrics import mean_statistics, statistics
from gdps_ds.evaluation.significance import (
    bootstrap,
    bootstrap_p,
    generator,
    interval,
    randomisation_p,
    randomise,
)
from tests.unit.evaluation.texts import corrupted, references

REFERENCES = references(80)
WORSE, BETTER = corrupted(REFERENCES, 0.3, seed=1), corrupted(REFERENCES, 0.22, seed=2)
SEED = 12345
"""sacreBLEU's."""


@pytest.fixture(scope="module")
def systems() -> tuple[dict, dict]:
    return statistics(WORSE, REFERENCES, DecodeConfig()), statistics(BETTER, REFERENCES, DecodeConfig())


def paired_test(kind: str, draws: int) -> dict:
    metrics = {"BLEU": BLEU(), "chrF++": CHRF(word_order=2), "TER": TER()}
    named = [("worse", WORSE), ("better", BETTER)]
    _, results = PairedTest(named, metrics, [REFERENCES], test_type=kind, n_samples=draws)()
    return {"BLEU": results["BLEU"], "chrF++": results["chrF2++"], "TER": results["TER"]}


@pytest.mark.parametrize("metric", ["BLEU", "chrF++", "TER"])
def test_bootstrap_is_sacrebleus(systems: tuple[dict, dict], metric: str) -> None:
    """The same draws from the same seed; sacreBLEU leaves out ties."""
    theirs = paired_test("bs", 500)[metric]
    first, second = (bootstrap(each[metric], 500, np.random.default_rng(SEED)) for each in systems)
    observed = systems[0][metric].score - systems[1][metric].score
    assert bootstrap_p(first - second, observed) == pytest.approx(theirs[1].p_value, abs=2 / 501)
    low, high = interval(first)
    assert (high - low) / 2 == pytest.approx(theirs[0].ci, rel=0.05)


@pytest.mark.parametrize("metric", ["BLEU", "chrF++", "TER"])
def test_randomisation_is_sacrebleus(systems: tuple[dict, dict], metric: str) -> None:
    theirs = paired_test("ar", 700)[metric][1].p_value
    differences = randomise(systems[0][metric], systems[1][metric], 700, np.random.default_rng(SEED))
    observed = systems[0][metric].score - systems[1][metric].score
    ties = np.isclose(np.abs(differences), abs(observed)).sum()
    assert 0 <= randomisation_p(differences, observed) - theirs <= (ties + 1) / 701


def test_a_system_does_not_differ_from_itself(systems: tuple[dict, dict]) -> None:
    for metric in systems[0].values():
        drawn = bootstrap(metric, 50, np.random.default_rng(0))
        assert bootstrap_p(drawn - drawn, 0.0) == 1.0
        assert randomisation_p(randomise(metric, metric, 50, np.random.default_rng(0)), 0.0) == 1.0


def test_a_clearly_better_system_is_told_apart() -> None:
    best = statistics(corrupted(REFERENCES, 0.05, seed=3), REFERENCES, DecodeConfig())["BLEU"]
    worst = statistics(corrupted(REFERENCES, 0.5, seed=4), REFERENCES, DecodeConfig())["BLEU"]
    gain = best.score - worst.score
    drawn = bootstrap(best, 200, np.random.default_rng(0)) - bootstrap(worst, 200, np.random.default_rng(0))
    assert bootstrap_p(drawn, gain) == 1 / 201
    assert randomisation_p(randomise(best, worst, 200, np.random.default_rng(0)), gain) == 1 / 201
    low, high = interval(drawn)
    assert 0 < low < gain < high


def test_the_bootstrap_of_a_mean_has_its_standard_error() -> None:
    """Of 400 numbers with variance 4: 2 / 20 = 0.1, and the interval is 1.96 times as wide to both sides."""
    scores = np.random.default_rng(0).normal(5.0, 2.0, 400)
    drawn = bootstrap(mean_statistics(scores), 4000, np.random.default_rng(1))
    error = scores.std() / 20
    assert drawn.std() == pytest.approx(error, rel=0.05)
    assert np.array(interval(drawn)) == pytest.approx(scores.mean() + np.array([-1.96, 1.96]) * error, abs=0.02)


def test_randomisation_is_exact_where_all_swaps_can_be_counted() -> None:
    """Five utterances, the first system better by 1 in each: of 32 swaps only all and none differ by as much, p = 2 / 32."""
    first, second = mean_statistics([2.0] * 5), mean_statistics([1.0] * 5)
    differences = randomise(first, second, 20_000, np.random.default_rng(0))
    assert randomisation_p(differences, 1.0) == pytest.approx(2 / 32, abs=0.005)


def test_p_values_of_true_null_hypotheses_are_uniform() -> None:
    """Systems that differ by chance only: about a tenth of the p-values are below .1 (three standard errors are .045)."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        first, second = (mean_statistics(rng.normal(size=30)) for _ in range(2))
        found.append(randomisation_p(randomise(first, second, 199, rng), first.score - second.score))
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.045)


def test_draws_in_blocks_go_on_where_the_last_block_ended() -> None:
    """More draws than a block: no draw repeats."""
    drawn = bootstrap(mean_statistics(np.random.default_rng(0).normal(size=20)), 2500, np.random.default_rng(0))
    assert len(drawn) == 2500
    assert len(np.unique(drawn)) > 2490


def test_generators_depend_on_every_name() -> None:
    seeds = [(1, "a", "aeb"), (2, "a", "aeb"), (1, "b", "aeb"), (1, "a", "bem")]
    assert len({generator(*seed).integers(2**60) for seed in seeds}) == 4
    assert generator(1, "a", "aeb").integers(2**60) == generator(1, "a", "aeb").integers(2**60)
