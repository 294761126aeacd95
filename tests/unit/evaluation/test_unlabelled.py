"""Test sets of which some or all translations are not published."""

from __future__ import annotations

import pytest

from gdps_ds.config import DecodeConfig
from gdps_ds.evaluation.decoding import Translation
from gdps_ds.evaluation.metrics import score, score_pairs, unscored

SETTINGS = DecodeConfig()
ROWS = [
    Translation("1", "aeb", "eng", "the cat sat on the rug", "the cat sat on the mat"),
    Translation("2", "aeb", "eng", "zzz", None),
    Translation("3", "bho", "hin", "anything at all", None),
    Translation("4", "est", "eng", "a dog ran off", " "),
]


def test_only_utterances_with_references_are_scored() -> None:
    found = score_pairs(ROWS, SETTINGS)
    assert set(found) == {"aeb", "mean"}
    assert found["aeb"] == found["mean"] == score([ROWS[0].hypothesis], ["the cat sat on the mat"], SETTINGS)


def test_what_is_not_scored_is_named_and_counted() -> None:
    assert unscored(ROWS) == "translated, but not scored for want of references: aeb (1 of 2), bho (1 of 1), est (1 of 1)"
    assert unscored(ROWS[:1]) == ""


def test_without_any_reference_there_are_no_scores() -> None:
    assert score_pairs(ROWS[1:], SETTINGS) == {}


@pytest.mark.parametrize(
    "blank", ["\u200b", "\ufeff", "\u200d\u200c", "\u00ad", "\u2060\u200e ", "\u3164", "\u2800", "\ufe0f", "\x00\t"]
)
def test_what_cannot_be_seen_is_no_reference(blank: str) -> None:
    """Zero-width space, byte-order mark, joiners, soft hyphen, word joiner and direction, fillers, variation selector."""
    rows = [ROWS[0], Translation("5", "aeb", "eng", "a dog", blank)]
    assert unscored(rows) == "translated, but not scored for want of references: aeb (1 of 2)"
    assert score_pairs(rows, SETTINGS) == score_pairs(rows[:1], SETTINGS)


def test_a_pair_has_one_name_whether_or_not_it_is_scored() -> None:
    rows = [
        Translation("1", "que", "spa", "un perro", "un gato"),
        Translation("2", "que", "eng", "a dog", None),
    ]
    assert list(score_pairs(rows, SETTINGS)) == ["que-spa", "mean"]
    assert unscored(rows) == "translated, but not scored for want of references: que-eng (1 of 1)"
