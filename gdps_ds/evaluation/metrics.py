"""BLEU, chrF++ and TER by sacreBLEU (Post 2018), with signatures, after one of the field's text normalisations.

Every score here is a function of sums over utterances, so utterances are counted once (:class:`Statistics`) and any selection
of them, such as a bootstrap resample, is scored by adding up.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF, TER

Normaliser = Callable[[str], str]


def _strip(characters: str, text: str) -> str:
    return " ".join(text.lower().translate(dict.fromkeys(map(ord, characters))).split())


def _strip_punctuation(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if not unicodedata.category(c).startswith("P")).split())


def _strip_non_words(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


NORMALISERS: dict[str, Normaliser] = {
    "none": lambda text: text,
    # IWSLT dialect task (Tunisian scripts): apostrophes and hyphens stay.
    "shared-task": lambda text: _strip('()#+=?!;.,":', text),
    # GMU's IWSLT 2025 scripts: every Unicode punctuation character goes.
    "gmu": _strip_punctuation,
    # The GDPS authors': everything but word characters and white space goes.
    "gdps": _strip_non_words,
}

METRICS: dict[str, Callable[[], Any]] = {"BLEU": BLEU, "chrF++": lambda: CHRF(word_order=2), "TER": TER}
LOWER_IS_BETTER = frozenset({"TER"})


@dataclass(frozen=True)
class Statistics:
    """A corpus score in the making.

    Attributes:
        rows: (N, K) float64, what each utterance adds.
        of_sum: (K,) sums -> score.
    """

    rows: NDArray[np.float64]
    of_sum: Callable[[Sequence[float]], float]

    @property
    def score(self) -> float:
        return self.of_sum(self.rows.sum(0).tolist())


def statistics(
    hypotheses: Sequence[str], references: Sequence[str], normaliser: str, metrics: Sequence[str] = tuple(METRICS)
) -> dict[str, Statistics]:
    """Statistics of ``metrics``, by default all of :data:`METRICS`, with one reference each.

    sacreBLEU's paired tests rest on the same two methods of its metrics; they are not public, hence the tests that compare
    the scores here with ``corpus_score``.

    Raises:
        ValueError: no hypotheses, or not as many as references.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    normalise = NORMALISERS[normaliser]
    system, reference = [normalise(text) for text in hypotheses], [normalise(text) for text in references]
    return {name: _statistics(METRICS[name](), system, reference) for name in metrics}


def mean_statistics(scores: Sequence[float] | NDArray[np.float64]) -> Statistics:
    """Statistics of a metric that is the mean of its utterances' scores, such as COMET."""
    rows = np.stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))], axis=1)
    return Statistics(rows, lambda sums: sums[0] / sums[1])


def score(
    hypotheses: Sequence[str], references: Sequence[str], normaliser: str, metrics: Sequence[str] = tuple(METRICS)
) -> dict[str, float]:
    """Corpus scores of one language; raises as :func:`statistics` does."""
    return {name: each.score for name, each in statistics(hypotheses, references, normaliser, metrics).items()}


def signatures(normaliser: str) -> dict[str, str]:
    """sacreBLEU's signature of each metric with one reference, and the normalisation before it."""
    return {name: f"{_signature(metric())}|normaliser:{normaliser}" for name, metric in METRICS.items()}


def score_languages(
    hypotheses: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str | None]],
    normaliser: str,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, dict[str, float]]:
    """Scores by source language over the utterances that have references, and their mean over languages as ``mean``.

    Languages without any reference are left out; where no language has one, so is the mean. :func:`unscored` names them.
    """
    scores = {}
    for language, translations in hypotheses.items():
        pairs = [pair for pair in zip(translations, references[language], strict=True) if is_reference(pair[1])]
        if pairs:
            scores[language] = score([ours for ours, _ in pairs], [str(theirs) for _, theirs in pairs], normaliser, metrics)
    mean = {name: sum(each[name] for each in scores.values()) / len(scores) for name in metrics} if scores else None
    return scores | ({"mean": mean} if mean else {})


def unscored(references: Mapping[str, Sequence[str | None]]) -> str:
    """A line that names the languages with utterances that have no reference, and how many; empty where all have one."""
    missing = {language: sum(not is_reference(text) for text in texts) for language, texts in references.items()}
    listed = [f"{language} ({count} of {len(references[language])})" for language, count in missing.items() if count]
    return f"translated, but not scored for want of references: {', '.join(listed)}" if listed else ""


def is_reference(text: str | None) -> bool:
    return bool(text and text.strip())


def _statistics(metric: Any, system: Sequence[str], reference: Sequence[str]) -> Statistics:
    rows = np.array(metric._extract_corpus_statistics(system, [reference]), dtype=np.float64)
    return Statistics(rows, lambda sums: metric._compute_score_from_stats(sums).score)


def _signature(metric: Any) -> str:
    metric.corpus_score(["a"], [["a"]])  # the signature is complete once a metric has seen its references
    return metric.get_signature().format(short=False)
