from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gdps_ds.config import DecodeConfig
from gdps_ds.evaluation.comparison import Comparison, Evaluation, compare, rows_of
from gdps_ds.evaluation.metrics import Pair, score
from gdps_ds.evaluation.systems import System, decoding_of
from tests.unit.evaluation.texts import system

SETTINGS = DecodeConfig(resamples=150, trials=150)
GOOD = system("good", {"aeb": 0.05, "bem": 0.1, "est": 0.1})
POOR = system("poor", {"aeb": 0.3, "bem": 0.1, "est": 0.4}, seed=2)
GROUPS = (("aeb",), ("bem", "est"))


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return compare([GOOD, POOR], SETTINGS, GROUPS)


def of(evaluation: Evaluation, metric: str, row: str) -> Comparison:
    (found,) = [each for each in evaluation.comparisons if (each.metric, each.row) == (metric, row)]
    return found


def test_rows_are_languages_groups_of_several_and_the_mean() -> None:
    pairs = {name: Pair(name, "eng", ()) for name in ("aeb", "bem", "est")}
    assert rows_of(pairs, (("aeb",), ("bem", "est", "gle"))) == {
        "aeb": ("aeb",),
        "bem": ("bem",),
        "est": ("est",),
        "bem+est": ("bem", "est"),
        "mean": ("aeb", "bem", "est"),
    }
    assert list(rows_of({name: pairs[name] for name in ("aeb", "bem")}, (("aeb", "bem"),))) == ["aeb", "bem", "mean"]


def test_scores_are_corpus_scores_and_their_means(evaluation: Evaluation) -> None:
    scores = evaluation.scores["poor"]
    rows = [row for row in POOR.translations if row.source_lang == "est"]
    expected = score([row.hypothesis for row in rows], [str(row.reference) for row in rows], SETTINGS)
    assert {metric: each.score for metric, each in scores["est"].items()} == expected
    for metric in expected:
        by_language = {lang: scores[lang][metric].score for lang in ("aeb", "bem", "est")}
        assert scores["mean"][metric].score == pytest.approx(sum(by_language.values()) / 3)
        assert scores["bem+est"][metric].score == pytest.approx((by_language["bem"] + by_language["est"]) / 2)
        assert scores["mean"][metric].low < scores["mean"][metric].score < scores["mean"][metric].high


def test_differences_of_rows(evaluation: Evaluation) -> None:
    for metric in ("BLEU", "chrF++"):
        for row in ("aeb", "est", "bem+est", "mean"):
            found = of(evaluation, metric, row)
            assert (found.p_bootstrap, found.p_randomisation) == (1 / 151, 1 / 151)
            assert 0 < found.low < found.difference < found.high
        assert min(of(evaluation, metric, "bem").p_randomisation, of(evaluation, metric, "bem").p_bootstrap) > 0.05
    assert of(evaluation, "TER", "mean").high < 0


def test_a_mean_is_known_better_than_its_languages(evaluation: Evaluation) -> None:
    """Independent draws: the variance of the mean of three is a ninth of the sum of theirs."""
    widths = {row: of(evaluation, "BLEU", row).high - of(evaluation, "BLEU", row).low for row in ("aeb", "bem", "est", "mean")}
    expected = np.sqrt(widths["aeb"] ** 2 + widths["bem"] ** 2 + widths["est"] ** 2) / 3
    assert widths["mean"] == pytest.approx(expected, rel=0.25)


def test_a_system_beside_itself() -> None:
    again = system("again", {"aeb": 0.05, "bem": 0.1, "est": 0.1})
    for found in compare([GOOD, again], SETTINGS).comparisons:
        assert (found.difference, found.p_bootstrap, found.p_randomisation) == (0.0, 1.0, 1.0)


def test_other_languages_and_systems_change_nothing(evaluation: Evaluation) -> None:
    alone = compare([system("good", {"aeb": 0.05})], SETTINGS)
    assert alone.scores["good"]["aeb"] == evaluation.scores["good"]["aeb"]
    assert alone.comparisons == ()


def test_every_pair_is_compared_and_the_seed_repeats_it() -> None:
    third = system("third", {"aeb": 0.2, "bem": 0.2, "est": 0.2})
    found = compare([GOOD, POOR, third], SETTINGS)
    assert {(each.first, each.second) for each in found.comparisons} == {("good", "poor"), ("good", "third"), ("poor", "third")}
    assert compare([GOOD, POOR, third], SETTINGS) == found
    some = compare([GOOD, POOR, third], SETTINGS, against=["third", "nobody"])
    assert some.comparisons == tuple(each for each in found.comparisons if each.second == "third")
    assert compare([GOOD, POOR, third], SETTINGS.model_copy(update={"seed": 1})) != found


def test_comet_is_one_metric_more() -> None:
    count = len(GOOD.translations)
    comet = {"good": np.linspace(0.6, 0.9, count), "poor": np.linspace(0.5, 0.8, count)}
    found = compare([GOOD, POOR], SETTINGS, comet=comet, comet_signature="model:tiny")
    assert found.signatures["COMET"] == "model:tiny"
    assert found.scores["good"]["aeb"]["COMET"].score == pytest.approx(comet["good"][:60].mean())
    assert of(found, "COMET", "mean").difference == pytest.approx(0.1)
    assert of(found, "COMET", "mean").p_randomisation == 1 / 151


def test_empty_translations_are_counted() -> None:
    spoken = system("mute", {"aeb": 0.0}, count=3)
    mute = System("mute", (replace(spoken.translations[0], hypothesis=" "), *spoken.translations[1:]))
    assert compare([mute], SETTINGS).empty == {"mute": 1}


def test_several_targets_of_a_language_are_rows_of_their_own_and_groups_go_by_the_source() -> None:
    spanish = tuple(replace(row, id=f"s{row.id}", target_lang="spa") for row in POOR.translations if row.source_lang == "est")
    both = System("both", (*POOR.translations, *spanish))
    found = compare([both], SETTINGS, (("aeb", "est"), ("bem",)))
    assert list(found.scores["both"]) == ["aeb", "bem", "est-eng", "est-spa", "aeb+est", "mean"]
    assert found.utterances["est-spa"] == len(spanish)
    points = {row: each["TER"].score for row, each in found.scores["both"].items()}
    assert points["est-spa"] == points["est-eng"] == compare([POOR], SETTINGS).scores["poor"]["est"]["TER"].score
    assert points["aeb+est"] == pytest.approx((points["aeb"] + 2 * points["est-eng"]) / 3)
    assert points["mean"] == pytest.approx((points["aeb"] + points["bem"] + 2 * points["est-eng"]) / 4)


def test_what_was_cut_or_could_not_be_translated_is_told_by_language() -> None:
    first, second, *rest = system("ours", {"aeb": 0.1, "bem": 0.1}, count=5).translations
    rows = (replace(first, pieces=0, hypothesis=""), replace(second, cut=True, pieces=2), *rest)
    assert compare([System("ours", rows)], SETTINGS).notes == (
        "ours: aeb: 1 of 5 utterances could not be translated (no usable audio); their lines are empty",
        "ours: aeb: 1 of 5 translations were cut at decode.max_new_tokens",
        "ours: aeb: 1 of 5 utterances are longer than decode.max_seconds and were translated in pieces",
    )


def test_systems_that_were_decoded_otherwise_are_told_apart() -> None:
    narrow, wide = (decoding_of(SETTINGS.model_copy(update={"beams": beams})) for beams in (2, SETTINGS.beams))
    systems = [replace(GOOD, decoding=narrow), replace(POOR, decoding=wide)]
    assert compare(systems, SETTINGS).notes == (
        f"good was decoded with other settings: decode.beams 2 instead of {SETTINGS.beams}",
    )
    assert compare([replace(GOOD, decoding=wide), replace(POOR, decoding=wide)], SETTINGS).notes == ()
    assert compare([replace(GOOD, decoding=wide), POOR], SETTINGS).notes == (
        "with which settings these were decoded is not known: poor",
    )
