"""Systems on one test set: scores per language, group and mean with intervals, and paired tests between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdps_ds.config import DecodeConfig
from gdps_ds.evaluation.metrics import Statistics, mean_statistics, signatures, statistics
from gdps_ds.evaluation.significance import (
    Draws,
    bootstrap,
    bootstrap_p,
    generator,
    interval,
    randomisation_p,
    randomise,
)
from gdps_ds.evaluation.systems import System

MEAN = "mean"
SegmentScores = Mapping[str, NDArray[np.float64]]
"""System -> (N,) one score an utterance, in the order of its translations."""


@dataclass(frozen=True)
class Estimate:
    """A score, and where 95 % of its bootstrap resamples lie."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A difference ``first`` minus ``second``, its 95 % bootstrap interval, and p-values of both paired tests.

    ``row`` is a language, a group of languages or ``mean``; p-values are not corrected for how many there are.
    """

    metric: str
    row: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    p_bootstrap: float
    p_randomisation: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known of a few systems on one test set.

    Attributes:
        scores: system -> row -> metric -> estimate.
        comparisons: of pairs of systems, in all rows and metrics.
        signatures: metric -> what the score depends on.
        utterances: language -> how many are scored.
        unscored: language -> how many are not, for want of a reference.
        empty: system -> translations that are empty; they are scored as such.
        tests: resamples, trials and seed.
    """

    scores: dict[str, dict[str, dict[str, Estimate]]]
    comparisons: tuple[Comparison, ...]
    signatures: dict[str, str]
    utterances: dict[str, int]
    unscored: dict[str, int]
    empty: dict[str, int]
    tests: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    systems: Sequence[System],
    settings: DecodeConfig,
    groups: Sequence[Sequence[str]] = (),
    unscored: Mapping[str, int] | None = None,
    comet: SegmentScores | None = None,
    comet_signature: str = "",
    against: Collection[str] | None = None,
) -> Evaluation:
    """Score aligned systems and test pairs of them.

    Args:
        systems: of :func:`gdps_ds.evaluation.systems.referenced`, which also gives ``unscored``.
        groups: language groups, such as a plan's; a group's score is the mean over its languages.
        comet: segment scores by COMET, where it was asked for.
        comet_signature: goes with them.
        against: systems of which each pair must have one; None tests every pair.
    """
    utterances = systems[0].translations
    languages = sorted({row.source_lang for row in utterances})
    indices = {lang: [index for index, row in enumerate(utterances) if row.source_lang == lang] for lang in languages}
    counted = {
        system.name: {lang: _statistics(system, indices[lang], settings.normaliser, comet) for lang in languages}
        for system in systems
    }
    rows = rows_of(languages, groups)
    resampled = {name: _resampled(by_language, settings) for name, by_language in counted.items()}
    return Evaluation(
        scores={name: _estimates(counted[name], resampled[name], rows) for name in counted},
        comparisons=tuple(
            comparison
            for first, second in combinations(counted, 2)
            if against is None or first in against or second in against
            for comparison in _comparisons((first, second), counted, resampled, rows, settings)
        ),
        signatures=signatures(settings.normaliser) | ({} if comet is None else {"COMET": comet_signature}),
        utterances={lang: len(indices[lang]) for lang in languages},
        unscored=dict(unscored or {}),
        empty={system.name: sum(not row.hypothesis.strip() for row in system.translations) for system in systems},
        tests={"resamples": settings.resamples, "trials": settings.trials, "seed": settings.seed},
    )


def rows_of(languages: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Row of a table -> the languages whose scores it averages: each language, groups of several, and all."""
    present = [tuple(lang for lang in group if lang in languages) for group in groups]
    several = [group for group in present if 1 < len(group) < len(languages)]
    return {lang: (lang,) for lang in languages} | {"+".join(group): group for group in several} | {MEAN: tuple(languages)}


Counted = Mapping[str, Mapping[str, Statistics]]
"""Language -> metric -> statistics of one system."""
Resampled = Mapping[str, Mapping[str, Draws]]


def _statistics(system: System, indices: Sequence[int], normaliser: str, comet: SegmentScores | None) -> dict[str, Statistics]:
    rows = [system.translations[index] for index in indices]
    counted = statistics([row.hypothesis for row in rows], [str(row.reference) for row in rows], normaliser)
    return counted if comet is None else counted | {"COMET": mean_statistics(comet[system.name][indices])}


def _resampled(counted: Counted, settings: DecodeConfig) -> dict[str, dict[str, Draws]]:
    """Scores of resampled test sets; every system and metric gets the same resamples."""
    return {
        lang: {
            metric: bootstrap(each, settings.resamples, generator(settings.seed, "bootstrap", lang))
            for metric, each in by_metric.items()
        }
        for lang, by_metric in counted.items()
    }


def _estimates(counted: Counted, resampled: Resampled, rows: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Estimate]]:
    metrics = next(iter(counted.values()))
    return {
        row: {
            metric: Estimate(
                _mean([counted[lang][metric].score for lang in languages]),
                *interval(np.mean([resampled[lang][metric] for lang in languages], axis=0)),
            )
            for metric in metrics
        }
        for row, languages in rows.items()
    }


def _comparisons(
    pair: tuple[str, str],
    counted: Mapping[str, Counted],
    resampled: Mapping[str, Resampled],
    rows: Mapping[str, Sequence[str]],
    settings: DecodeConfig,
) -> list[Comparison]:
    first, second = pair
    found = []
    for metric in next(iter(counted[first].values())):
        observed = {lang: counted[first][lang][metric].score - counted[second][lang][metric].score for lang in counted[first]}
        drawn = {lang: resampled[first][lang][metric] - resampled[second][lang][metric] for lang in counted[first]}
        swapped = {
            lang: randomise(
                counted[first][lang][metric],
                counted[second][lang][metric],
                settings.trials,
                generator(settings.seed, "randomisation", lang),
            )
            for lang in counted[first]
        }
        for row, languages in rows.items():
            difference = _mean([observed[lang] for lang in languages])
            draws = np.mean([drawn[lang] for lang in languages], axis=0)
            trials = np.mean([swapped[lang] for lang in languages], axis=0)
            p_values = bootstrap_p(draws, difference), randomisation_p(trials, difference)
            found.append(Comparison(metric, row, first, second, difference, *interval(draws), *p_values))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
