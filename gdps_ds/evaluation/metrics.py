"""BLEU, chrF++ and TER by sacreBLEU (Post 2018), with signatures, after one of the field's text normalisations.

Every score here is a function of sums over utterances, so utterances are counted once (:class:`Statistics`) and any selection
of them, such as a bootstrap resample, is scored by adding up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF, TER

from gdps_ds.config import DecodeConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.data.text import has_text
from gdps_ds.evaluation.normalisers import normalised

if TYPE_CHECKING:
    from gdps_ds.evaluation.decoding import Translation

METRICS = ("BLEU", "chrF++", "TER")
LOWER_IS_BETTER = frozenset({"TER"})
MEAN = "mean"
"""The row of the mean over pairs of languages."""


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


@dataclass(frozen=True)
class Pair:
    """The utterances of a test set that have one source and one target language: what one score is of."""

    source: str
    target: str
    indices: tuple[int, ...]


def pairs_of(translations: Sequence[Translation]) -> dict[str, Pair]:
    """Row of a table -> its pair of languages, sorted. A row is named by its source language alone (``que``), unless the test
    set has several targets of it (``que-eng``, ``que-spa``): texts in two languages have no score in common.

    ``translations`` are all of the test set: a row is called the same whichever of its utterances have references."""
    places: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(translations):
        places.setdefault((row.source_lang, row.target_lang), []).append(index)
    sources = [source for source, _ in places]
    return {
        source if sources.count(source) == 1 else f"{source}-{target}": Pair(source, target, tuple(places[source, target]))
        for source, target in sorted(places)
    }


def scored_pairs(translations: Sequence[Translation]) -> dict[str, Pair]:
    """:func:`pairs_of` the whole test set, with the utterances that have a reference; pairs without any are left out."""
    found = {
        name: replace(pair, indices=tuple(index for index in pair.indices if has_text(translations[index].reference)))
        for name, pair in pairs_of(translations).items()
    }
    return {name: pair for name, pair in found.items() if pair.indices}


def missing_references(translations: Sequence[Translation]) -> dict[str, int]:
    """Row of a pair of languages -> how many of its utterances have no reference, where any has none."""
    scored = scored_pairs(translations)
    missing = {
        name: len(pair.indices) - (len(scored[name].indices) if name in scored else 0)
        for name, pair in pairs_of(translations).items()
    }
    return {name: count for name, count in missing.items() if count}


TOKENIZERS = {
    **dict.fromkeys(["zho", "cmn", "yue", "wuu", "nan", "hak", "gan", "lzh"], "zh"),
    "jpn": "ja-mecab",
    "kor": "ko-mecab",
    **dict.fromkeys(["tha", "lao", "khm", "mya", "bod", "dzo"], "char"),
}
"""BLEU's tokenizer by target language, as far as it is not sacreBLEU's default: sacreBLEU's own choice where it has made one,
characters for other languages that are written without spaces between words."""


def is_spaceless(target: str) -> bool:
    """Whether a language is written without spaces between words."""
    return TOKENIZERS.get(target.partition("_")[0], "ko-mecab") != "ko-mecab"


def tokenizer_of(target: str, settings: DecodeConfig) -> str:
    """The name of BLEU's tokenizer for translations into ``target``: ``decode.tokenizer``, or by the language."""
    if settings.tokenizer != "auto":
        return settings.tokenizer
    return TOKENIZERS.get(target.partition("_")[0], BLEU.TOKENIZER_DEFAULT)


def check_tokenizers(targets: Sequence[str], settings: DecodeConfig) -> None:
    """Look for what scoring needs, before anything is trained or translated.

    Raises:
        DataError: a tokenizer cannot be used; names what is not installed.
    """
    for target in targets:
        _bleu(target, settings)


def _bleu(target: str, settings: DecodeConfig) -> BLEU:
    name = tokenizer_of(target, settings)
    try:
        return BLEU(tokenize=name)
    except Exception as error:  # of many types: an import, a dictionary or a download fails
        package = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}.get(name)
        advice = f"pip install '{package}'" if package else "it has to be downloaded once"
        reason = " ".join(str(error).split())
        raise DataError(
            f"BLEU of translations into {target} needs sacreBLEU's tokenizer {name}, which is not there ({advice}); or set "
            f"decode.tokenizer, such as to char ({type(error).__name__}: {reason})"
        ) from None


def _metric(name: str, target: str, settings: DecodeConfig) -> Any:
    if name == "BLEU":
        return _bleu(target, settings)
    if name == "TER":
        # Words of texts without spaces are whole sentences: TER's own way for Chinese and Japanese splits characters.
        asian = tokenizer_of(target, settings) in ("zh", "ja-mecab")
        return TER(normalized=asian, asian_support=asian)
    return CHRF(word_order=2)


def _is_spelt(name: str, target: str, settings: DecodeConfig) -> bool:
    """Whether a metric of words gets characters as words, for it knows no other way of such a language."""
    return name == "TER" and tokenizer_of(target, settings) == "char"


def statistics(
    hypotheses: Sequence[str],
    references: Sequence[str],
    settings: DecodeConfig,
    metrics: Sequence[str] = METRICS,
    target: str = "und",
) -> dict[str, Statistics]:
    """Statistics of ``metrics``, by default all of :data:`METRICS`, with one reference each.

    sacreBLEU's paired tests rest on the same two methods of its metrics; they are not public, hence the tests that compare
    the scores here with ``corpus_score``.

    Args:
        settings: ``normaliser`` and ``tokenizer`` are used.
        target: language of the texts.

    Raises:
        ValueError: no hypotheses, or not as many as references.
        DataError: the tokenizer of ``target`` is not installed.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    system, reference = ([normalised(text, settings.normaliser) for text in texts] for texts in (hypotheses, references))
    found = {}
    for name in metrics:
        metric = _metric(name, target, settings)
        texts = (system, reference)
        if _is_spelt(name, target, settings):
            texts = ([" ".join(text) for text in system], [" ".join(text) for text in reference])
        found[name] = _statistics(metric, *texts)
    return found


def mean_statistics(scores: Sequence[float] | NDArray[np.float64]) -> Statistics:
    """Statistics of a metric that is the mean of its utterances' scores, such as COMET."""
    rows = np.stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))], axis=1)
    return Statistics(rows, lambda sums: sums[0] / sums[1])


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    settings: DecodeConfig,
    metrics: Sequence[str] = METRICS,
    target: str = "und",
) -> dict[str, float]:
    """Corpus scores of one pair of languages; raises as :func:`statistics` does."""
    return {name: each.score for name, each in statistics(hypotheses, references, settings, metrics, target).items()}


def signatures(targets: Mapping[str, str], settings: DecodeConfig, metrics: Sequence[str] = METRICS) -> dict[str, str]:
    """sacreBLEU's signature of each metric with one reference, and the normalisation before it.

    ``targets``: row of the table -> target language. Where rows are scored in different ways, the signature of each way follows
    the rows that it holds for.
    """
    found = {}
    for name in metrics:
        rows: dict[str, list[str]] = {}
        for row, target in targets.items():
            rows.setdefault(_signature(name, target, settings), []).append(row)
        each = list(rows) if len(rows) == 1 else [f"{', '.join(names)}: {text}" for text, names in rows.items()]
        found[name] = "; ".join(each)
    return found


def score_pairs(
    translations: Sequence[Translation], settings: DecodeConfig, metrics: Sequence[str] = METRICS
) -> dict[str, dict[str, float]]:
    """Scores of each pair of languages (:func:`pairs_of`) over the utterances that have references; ``mean`` is over pairs.

    Pairs without any reference are left out; where none has one, so is the mean. :func:`unscored` names them.
    """
    scores = {}
    for name, pair in scored_pairs(translations).items():
        rows = [translations[index] for index in pair.indices]
        texts = [row.hypothesis for row in rows], [str(row.reference) for row in rows]
        scores[name] = score(*texts, settings, metrics, pair.target)
    if not scores:
        return {}
    return scores | {MEAN: {name: fmean(each[name] for each in scores.values()) for name in metrics}}


def unscored(translations: Sequence[Translation]) -> str:
    """A line that names the pairs of languages with utterances that have no reference, and how many; empty without any."""
    pairs = pairs_of(translations)
    missing = [f"{name} ({count} of {len(pairs[name].indices)})" for name, count in missing_references(translations).items()]
    return f"translated, but not scored for want of references: {', '.join(missing)}" if missing else ""


def _statistics(metric: Any, system: Sequence[str], reference: Sequence[str]) -> Statistics:
    rows = np.array(metric._extract_corpus_statistics(system, [reference]), dtype=np.float64)
    return Statistics(rows, lambda sums: metric._compute_score_from_stats(sums).score)


def _signature(name: str, target: str, settings: DecodeConfig) -> str:
    metric = _metric(name, target, settings)
    metric.corpus_score(["a"], [["a"]])  # the signature is complete once a metric has seen its references
    spelt = "|words:characters" if _is_spelt(name, target, settings) else ""
    return f"{metric.get_signature().format(short=False)}{spelt}|unicode:NFC|normaliser:{settings.normaliser}"
