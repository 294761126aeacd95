"""Arms of a comparison over several training seeds: mean scores, intervals, and paired tests against reference arms.

Two things are random: which utterances are in the test set, and the seed of a training run. A score is the mean over seeds
of an arm's corpus score. Intervals are those of a bootstrap that draws both seeds and utterances anew, the same ones for all
arms (the pigeonhole bootstrap: Owen 2007). Each test takes one of the two as given:

- approximate randomisation swaps an utterance's translations by two arms in all seeds at once: could *these models* differ so
  much by chance of the test set?
- a paired t-test over seeds: would *other seeds* have shown a difference on this test set? It needs two seeds, and more to
  find anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_rel

from gdps_ds.config import DecodeConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.evaluation.comparison import notes_of, rows_of, scored_pairs_of
from gdps_ds.evaluation.metrics import MEAN, Pair, Statistics, missing_references, signatures, statistics
from gdps_ds.evaluation.significance import Draws, bootstrap, generator, interval, randomisation_p, randomise
from gdps_ds.evaluation.systems import System, aligned

METRICS = ("BLEU", "chrF++")

Runs = Mapping[str, Mapping[int, System]]
"""Arm -> seed -> its translations."""


@dataclass(frozen=True)
class ArmScore:
    """Mean over seeds, its 95 % interval, standard deviation over seeds (None of one seed), and each seed's score."""

    score: float
    low: float
    high: float
    deviation: float | None
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Difference:
    """Mean over common seeds of ``arm`` minus ``reference``, its 95 % interval, and p-values, not corrected for their number.

    ``p_seeds`` is None of one seed, or where all seeds have the same difference.
    """

    metric: str
    row: str
    arm: str
    reference: str
    difference: float
    low: float
    high: float
    by_seed: dict[int, float]
    p_utterances: float
    p_seeds: float | None


@dataclass(frozen=True)
class ArmsEvaluation:
    """Everything that is known of the arms.

    Attributes:
        scores: arm -> row (pair of languages or ``mean``) -> metric -> score.
        differences: of each arm from each reference arm with common seeds, in all rows and metrics.
        signatures: metric -> what the score depends on.
        utterances: row of a pair of languages -> how many are scored.
        unscored: likewise -> how many are not, for want of a reference.
        tests: resamples, trials and seed.
        notes: as in :class:`gdps_ds.evaluation.comparison.Evaluation`.
    """

    scores: dict[str, dict[str, dict[str, ArmScore]]]
    differences: tuple[Difference, ...]
    signatures: dict[str, str]
    utterances: dict[str, int]
    unscored: dict[str, int]
    tests: dict[str, int]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Measured:
    """One arm, seed, language and metric: what its utterances add to the score, the score, and that of each resample."""

    statistics: Statistics
    score: float
    resampled: Draws


Measured = Mapping[str, Mapping[int, Mapping[str, Mapping[str, _Measured]]]]
"""Arm -> seed -> language -> metric."""


def compare_arms(runs: Runs, references: Sequence[str], settings: DecodeConfig) -> ArmsEvaluation:
    """Score all arms, and test each against the ``references`` among them.

    Raises:
        DataError: there is nothing to compare, no utterance has a reference, or runs have translated different test sets.
    """
    places = [(arm, seed) for arm, by_seed in runs.items() for seed in by_seed]
    if not places:
        raise DataError("no arm has been trained and translated yet")
    named = [replace(runs[arm][seed], name=f"{arm} of seed {seed}") for arm, seed in places]
    systems = aligned(named)
    languages = scored_pairs_of(systems)
    measured: dict[str, dict[int, Any]] = {arm: {} for arm in runs}
    for (arm, seed), system in zip(places, systems, strict=True):
        measured[arm][seed] = {name: _measure(system, pair, name, settings) for name, pair in languages.items()}
    rows = rows_of(languages, ())
    pairs = [(arm, other) for other in references for arm in runs if other in runs and arm != other]
    return ArmsEvaluation(
        scores={arm: _scores(measured[arm], rows, settings) for arm in runs if runs[arm]},
        differences=tuple(each for pair in pairs for each in _differences(pair, measured, rows, settings)),
        signatures=signatures({name: pair.target for name, pair in languages.items()}, settings, METRICS),
        utterances={name: len(pair.indices) for name, pair in languages.items()},
        unscored=missing_references(systems[0].translations),
        tests={"resamples": settings.resamples, "trials": settings.trials, "seed": settings.seed},
        notes=notes_of(systems, settings),
    )


def _measure(system: System, pair: Pair, name: str, settings: DecodeConfig) -> dict[str, _Measured]:
    """Every arm and seed gets the same resamples of a pair's utterances."""
    rows = [system.translations[index] for index in pair.indices]
    texts = [row.hypothesis for row in rows], [str(row.reference) for row in rows]
    counted = statistics(*texts, settings, METRICS, pair.target)
    return {
        metric: _Measured(each, each.score, bootstrap(each, settings.resamples, generator(settings.seed, "bootstrap", name)))
        for metric, each in counted.items()
    }


def _scores(
    seeds: Mapping[int, Mapping[str, Mapping[str, _Measured]]], rows: Mapping[str, Sequence[str]], settings: DecodeConfig
) -> dict[str, dict[str, ArmScore]]:
    found: dict[str, dict[str, ArmScore]] = {}
    for row, languages in rows.items():
        found[row] = {}
        for metric in METRICS:
            cells = {seed: [by_language[lang][metric] for lang in languages] for seed, by_language in seeds.items()}
            values = {seed: fmean([cell.score for cell in each]) for seed, each in cells.items()}
            draws = np.array([np.mean([cell.resampled for cell in each], axis=0) for each in cells.values()])
            deviation = float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None
            ends = interval(over_seeds(draws, settings.seed))
            found[row][metric] = ArmScore(fmean(list(values.values())), *ends, deviation, values)
    return found


def _differences(
    pair: tuple[str, str], measured: Measured, rows: Mapping[str, Sequence[str]], settings: DecodeConfig
) -> Iterator[Difference]:
    arm, reference = pair
    seeds = [seed for seed in measured[arm] if seed in measured[reference]]
    if not seeds:
        return
    for metric in METRICS:
        cells = {
            lang: [(measured[arm][seed][lang][metric], measured[reference][seed][lang][metric]) for seed in seeds]
            for lang in rows[MEAN]
        }
        swapped = {lang: _swapped(each, lang, settings) for lang, each in cells.items()}
        for row, languages in rows.items():
            leads = [[ours.score - theirs.score for ours, theirs in cells[lang]] for lang in languages]
            draws = [[ours.resampled - theirs.resampled for ours, theirs in cells[lang]] for lang in languages]
            values = np.mean(leads, axis=0).tolist()
            difference = fmean(values)
            yield Difference(
                metric,
                row,
                arm,
                reference,
                difference,
                *interval(over_seeds(np.mean(draws, axis=0), settings.seed)),
                dict(zip(seeds, values, strict=True)),
                randomisation_p(np.mean([swapped[lang] for lang in languages], axis=0), difference),
                seeds_p(values),
            )


def _swapped(pairs: Sequence[tuple[_Measured, _Measured]], language: str, settings: DecodeConfig) -> Draws:
    """(T,) mean differences over seeds; a trial swaps the same utterances in every seed."""
    trials = [
        randomise(ours.statistics, theirs.statistics, settings.trials, generator(settings.seed, "randomisation", language))
        for ours, theirs in pairs
    ]
    return np.asarray(np.mean(trials, axis=0))


def over_seeds(draws: NDArray[np.float64], seed: int) -> Draws:
    """(R,) means over seeds that are drawn with replacement in every resample, from (S, R) draws of the seeds themselves."""
    seeds, resamples = draws.shape
    chosen = generator(seed, "seeds", "").integers(seeds, size=(seeds, resamples))
    return np.asarray(np.take_along_axis(draws, chosen, axis=0).mean(axis=0))


def seeds_p(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t-test over seeds; None where it is not defined."""
    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    return float(ttest_rel(differences, np.zeros(len(differences))).pvalue)
