from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gdps_ds.config import DecodeConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.evaluation.comparison import Comparison, Evaluation, compare, notes_of, rows_of
from gdps_ds.evaluation.decoding import Translation
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
    """Default settings are nobody's wish: systems are held against each other, and against what was asked for."""
    decoded = SETTINGS.with_pieces_of(30.0)
    narrow, wide = (decoding_of(decoded.model_copy(update={"beams": beams})) for beams in (1, 4))
    asked = DecodeConfig(resamples=20, trials=20, beams=4)
    differ, agree = [replace(GOOD, decoding=narrow), replace(POOR, decoding=wide)], [replace(GOOD, decoding=narrow)]
    agree.append(replace(POOR, decoding=narrow))
    assert notes_of(differ, SETTINGS) == ("systems were decoded with different settings: decode.beams 1 (good), 4 (poor)",)
    assert notes_of(differ, asked) == ("good was decoded with other settings: decode.beams 1 instead of 4",)
    assert notes_of(agree, SETTINGS) == ()
    assert notes_of(agree, asked) == tuple(
        f"{name} was decoded with other settings: decode.beams 1 instead of 4" for name in ("good", "poor")
    )


def test_systems_of_which_nobody_knows_how_they_were_decoded_are_told() -> None:
    asked, known = DecodeConfig(beams=7), decoding_of(SETTINGS.with_pieces_of(30.0))
    assert notes_of([GOOD, POOR], asked) == ("with which settings these were decoded is not known: good, poor",)
    assert notes_of([GOOD, POOR], SETTINGS) == (), "no translation depends on how scores are tested"
    assert notes_of([replace(GOOD, decoding=known), POOR], SETTINGS) == (
        "with which settings these were decoded is not known: poor",
    )


def test_the_length_of_pieces_is_held_against_the_run_only_where_that_has_set_it() -> None:
    old = replace(GOOD, decoding=decoding_of(SETTINGS.with_pieces_of(15.0)))
    told = ("good was decoded with other settings: decode.max_seconds 15.0 instead of 30.0",)
    assert notes_of([old], SETTINGS.with_pieces_of(30.0)) == ()
    assert notes_of([old], DecodeConfig.model_validate({"max_seconds": None}).with_pieces_of(30.0)) == told


SPANISH = [Translation(f"s{place}", "que", "spa", f"el perro {place}", f"el gato y el perro {place}") for place in range(6)]
ENGLISH = [Translation(f"e{place}", "que", "eng", f"the dog {place}", f"the cat and the dog {place}") for place in range(6)]


def test_a_row_keeps_its_name_and_draws_when_references_of_another_arrive() -> None:
    later = compare([System("a", (*SPANISH, *ENGLISH))], SETTINGS)
    now = compare([System("a", (*SPANISH, *(replace(row, reference=None) for row in ENGLISH)))], SETTINGS)
    assert list(now.scores["a"]) == ["que-spa", "mean"]
    assert (now.utterances, now.unscored) == ({"que-spa": 6}, {"que-eng": 6})
    assert now.scores["a"]["que-spa"] == later.scores["a"]["que-spa"], "interval too"


def test_utterances_without_references_are_told_of_and_not_scored() -> None:
    """What of them was not translated or cut as well; a COMET score of them is not read, an empty line not counted."""
    lost = [
        replace(ENGLISH[0], reference=None, hypothesis="", pieces=0),
        replace(ENGLISH[1], reference=" ", cut=True),
    ]
    comet = {"a": np.array([np.nan, 0.5, 0.7, np.nan])}
    found = compare([System("a", (lost[0], *SPANISH[:2], lost[1]))], SETTINGS, comet=comet, comet_signature="tiny")
    assert found.notes == (
        "a: que-eng: 1 of 2 utterances could not be translated (no usable audio); their lines are empty",
        "a: que-eng: 1 of 2 translations were cut at decode.max_new_tokens",
    )
    assert (found.unscored, found.empty) == ({"que-eng": 2}, {"a": 0})
    assert found.scores["a"]["mean"]["COMET"].score == pytest.approx(0.6)


def test_a_test_set_without_any_reference_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="no utterance has a reference"):
        compare([System("a", tuple(replace(row, reference=None) for row in SPANISH))], SETTINGS)
