"""BLEU, chrF++ and TER by sacreBLEU (Post 2018), with signatures, after one of the field's text normalisations."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def score(hypotheses: Sequence[str], references: Sequence[str], normaliser: str) -> dict[str, float]:
    """Corpus scores of one language, one reference each.

    Raises:
        ValueError: no hypotheses, or not as many as references.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    normalise = NORMALISERS[normaliser]
    system, reference = [normalise(text) for text in hypotheses], [normalise(text) for text in references]
    return {name: metric().corpus_score(system, [reference]).score for name, metric in METRICS.items()}


def signatures(normaliser: str) -> dict[str, str]:
    """sacreBLEU's signature of each metric with one reference, and the normalisation before it."""
    return {name: f"{_signature(metric())}|norm:{normaliser}" for name, metric in METRICS.items()}


def score_languages(
    hypotheses: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[str]], normaliser: str
) -> dict[str, dict[str, float]]:
    """Scores by source language, and their mean over languages as ``mean``."""
    scores = {language: score(hypotheses[language], references[language], normaliser) for language in hypotheses}
    mean = {name: sum(each[name] for each in scores.values()) / len(scores) for name in METRICS}
    return scores | {"mean": mean}


def _signature(metric: Any) -> str:
    metric.corpus_score(["a"], [["a"]])  # the signature is complete once a metric has seen its references
    return metric.get_signature().format(short=False)
