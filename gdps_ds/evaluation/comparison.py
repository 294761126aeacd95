"""Systems on one test set: scores per pair of languages, group and mean with intervals, and paired tests between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdps_ds.config import DecodeConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.data.text import has_text
from gdps_ds.evaluation.metrics import (
    MEAN,
    Pair,
    Statistics,
    mean_statistics,
    missing_references,
    scored_pairs,
    signatures,
    statistics,
)
from gdps_ds.evaluation.normalisers import loss_of
from gdps_ds.evaluation.significance import (
    Draws,
    bootstrap,
    bootstrap_p,
    generator,
    interval,
    randomisation_p,
    randomise,
)
from gdps_ds.evaluation.systems import System, decoding_notes, translation_notes

SegmentScores = Mapping[str, NDArray[np.float64]]
"""System -> (N,) one score an utterance, in their order; those of utterances without a reference are not read."""


@dataclass(frozen=True)
class Estimate:
    """A score, and where 95 % of its bootstrap resamples lie."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A difference ``first`` minus ``second``, its 95 % bootstrap interval, and p-values of both paired tests.

    ``row`` is a pair of languages, a group or ``mean``; p-values are not corrected for how many there are.
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
        utterances: row of a pair of languages (see :func:`gdps_ds.evaluation.metrics.pairs_of`) -> how many are scored.
        unscored: likewise -> how many are not, for want of a reference.
        empty: system -> translations of scored utterances that are empty; they are scored as such.
        tests: resamples, trials and seed.
        notes: what a reader has to know beside: what could not be translated, was cut or was decoded otherwise, and what the
            normaliser takes away.
    """

    scores: dict[str, dict[str, dict[str, Estimate]]]
    comparisons: tuple[Comparison, ...]
    signatures: dict[str, str]
    utterances: dict[str, int]
    unscored: dict[str, int]
    empty: dict[str, int]
    tests: dict[str, int]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    systems: Sequence[System],
    settings: DecodeConfig,
    groups: Sequence[Sequence[str]] = (),
    comet: SegmentScores | None = None,
    comet_signature: str = "",
    against: Collection[str] | None = None,
) -> Evaluation:
    """Score aligned systems and test pairs of them.

    Args:
        systems: of :func:`gdps_ds.evaluation.systems.aligned`, all utterances of the test set; those without a reference are
            not scored, but counted.
        groups: groups of source languages, such as a plan's; a group's score is the mean over its pairs of languages.
        comet: segment scores by COMET, where it was asked for.
        comet_signature: goes with them.
        against: systems of which each pair must have one; None tests every pair.

    Raises:
        DataError: no utterance has a reference.
    """
    pairs = scored_pairs_of(systems)
    counted = {
        system.name: {name: _statistics(system, pair, settings, comet) for name, pair in pairs.items()} for system in systems
    }
    rows = rows_of(pairs, groups)
    resampled = {name: _resampled(by_language, settings) for name, by_language in counted.items()}
    return Evaluation(
        scores={name: _estimates(counted[name], resampled[name], rows) for name in counted},
        comparisons=tuple(
            comparison
            for first, second in combinations(counted, 2)
            if against is None or first in against or second in against
            for comparison in _comparisons((first, second), counted, resampled, rows, settings)
        ),
        signatures=signatures({name: pair.target for name, pair in pairs.items()}, settings)
        | ({} if comet is None else {"COMET": comet_signature}),
        utterances={name: len(pair.indices) for name, pair in pairs.items()},
        unscored=missing_references(systems[0].translations),
        empty={
            system.name: sum(
                not has_text(system.translations[index].hypothesis) for pair in pairs.values() for index in pair.indices
            )
            for system in systems
        },
        tests={"resamples": settings.resamples, "trials": settings.trials, "seed": settings.seed},
        notes=notes_of(systems, settings),
    )


def scored_pairs_of(systems: Sequence[System]) -> dict[str, Pair]:
    """The rows of pairs of languages that aligned systems are scored in.

    Raises:
        DataError: no utterance has a reference.
    """
    pairs = scored_pairs(systems[0].translations)
    if not pairs:
        raise DataError("no utterance has a reference: there is nothing to score")
    return pairs


def notes_of(systems: Sequence[System], settings: DecodeConfig) -> tuple[str, ...]:
    """What has to be told of aligned systems beside their scores, a line each; of all their translations, scored or not."""
    first = systems[0].translations
    texts = {name: [str(first[index].reference) for index in pair.indices] for name, pair in scored_pairs(first).items()}
    losses = [line for name, found in texts.items() if (line := loss_of(found, settings.normaliser, name))]
    translated = [f"{system.name}: {line}" for system in systems for line in translation_notes(system.translations)]
    return (*losses, *decoding_notes(systems, settings), *translated)


def rows_of(pairs: Mapping[str, Pair], groups: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Row of a table -> the pairs whose scores it averages: each pair, groups of several source languages, and all."""
    sources = {pair.source for pair in pairs.values()}
    present = [tuple(lang for lang in group if lang in sources) for group in groups]
    several = [group for group in present if 1 < len(group) < len(sources)]
    grouped = {"+".join(group): tuple(name for name, pair in pairs.items() if pair.source in group) for group in several}
    return {name: (name,) for name in pairs} | grouped | {MEAN: tuple(pairs)}


Counted = Mapping[str, Mapping[str, Statistics]]
"""Row of a pair of languages -> metric -> statistics of one system."""
Resampled = Mapping[str, Mapping[str, Draws]]


def _statistics(system: System, pair: Pair, settings: DecodeConfig, comet: SegmentScores | None) -> dict[str, Statistics]:
    rows = [system.translations[index] for index in pair.indices]
    texts = [row.hypothesis for row in rows], [str(row.reference) for row in rows]
    counted = statistics(*texts, settings, target=pair.target)
    return counted if comet is None else counted | {"COMET": mean_statistics(comet[system.name][list(pair.indices)])}


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
                fmean([counted[lang][metric].score for lang in languages]),
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
            difference = fmean([observed[lang] for lang in languages])
            draws = np.mean([drawn[lang] for lang in languages], axis=0)
            trials = np.mean([swapped[lang] for lang in languages], axis=0)
            p_values = bootstrap_p(draws, difference), randomisation_p(trials, difference)
            found.append(Comparison(metric, row, first, second, difference, *interval(draws), *p_values))
    return found
