"""Test sets of which some or all translations are not published."""

from __future__ import annotations

import pytest

from gdps_ds.evaluation.metrics import score, score_languages, unscored

HYPOTHESES = {"aeb": ["the cat sat on the rug", "zzz"], "bho": ["anything at all"], "est": ["a dog ran off"]}
REFERENCES = {"aeb": ["the cat sat on the mat", None], "bho": [None], "est": [" "]}


def test_only_utterances_with_references_are_scored() -> None:
    found = score_languages(HYPOTHESES, REFERENCES, "none")
    assert set(found) == {"aeb", "mean"}
    assert found["aeb"] == found["mean"] == score(HYPOTHESES["aeb"][:1], ["the cat sat on the mat"], "none")


def test_what_is_not_scored_is_named_and_counted() -> None:
    assert unscored(REFERENCES) == "translated, but not scored for want of references: aeb (1 of 2), bho (1 of 1), est (1 of 1)"
    assert unscored({"aeb": ["a"], "est": ["b"]}) == ""


def test_without_any_reference_there_are_no_scores() -> None:
    assert score_languages({"bho": ["x", "y"]}, {"bho": [None, ""]}, "none") == {}


def test_hypotheses_and_references_must_be_of_the_same_utterances() -> None:
    with pytest.raises(ValueError, match="shorter"):
        score_languages({"bho": ["x", "y"]}, {"bho": ["x"]}, "none")
