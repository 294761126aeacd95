from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gdps_ds.config import DecodeConfig
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.evaluation.decoding import Translation
from gdps_ds.evaluation.systems import (
    System,
    aligned,
    read_lines,
    read_system,
    read_translations,
    translations_of_lines,
    utterances_of_references,
    with_references,
    write_translations,
)

ROWS = [Translation(str(number), "aeb", "eng", f"hyp {number}", f"ref {number}") for number in range(4)]
UTTERANCES = [Utterance(str(number), "a.wav", "aeb", "eng", f"better ref {number}") for number in range(4)]


def test_translations_survive_a_round_trip(tmp_path: Path) -> None:
    rows = [*ROWS, Translation("x", "gle", "eng", "naïve\u2028“é”\tx", None)]
    write_translations(tmp_path / "h.jsonl", rows)
    assert read_translations(tmp_path / "h.jsonl") == rows


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("nonsense", "h.jsonl, line 2: not JSON"),
        ("[]", "line 2: must be an object, found list"),
        (
            json.dumps({"id": "9", "source_lang": "aeb", "target_lang": "eng"}),
            "line 2: hypothesis must be a string, found None",
        ),
        (
            json.dumps({"id": "9", "source_lang": "aeb", "target_lang": "eng", "hypothesis": "h", "reference": 3}),
            "line 2: reference must be a string, found 3",
        ),
        (json.dumps(vars(ROWS[0])), "two translations of utterance 0"),
    ],
)
def test_a_failed_translation_is_never_scored(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "h.jsonl").write_text(f"{json.dumps(vars(ROWS[0]))}\n{line}\n")
    with pytest.raises(DataError, match=fault):
        read_translations(tmp_path / "h.jsonl")


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    """Unicode's separators, which splitlines takes for ends of lines, stand within web text; an empty line is a translation."""
    (tmp_path / "t.txt").write_bytes("a\u2028b\x85c\r\n\nlast".encode())
    assert read_lines(tmp_path / "t.txt") == ["a\u2028b\x85c", "", "last"]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for name, fault in {"none": "no such file", "empty": "the file is empty", "latin": "not UTF-8"}.items():
        with pytest.raises(DataError, match=f"{name}: {fault}"):
            read_lines(tmp_path / name)


def test_lines_go_with_the_utterances_of_the_test_set(tmp_path: Path) -> None:
    (tmp_path / "h.txt").write_text("one\ntwo\n")
    (tmp_path / "r.txt").write_text("eins\nzwei\n")
    utterances = utterances_of_references(tmp_path / "r.txt", "bem")
    rows = translations_of_lines(tmp_path / "h.txt", utterances)
    assert rows[1] == Translation("2", "bem", "und", "two", "zwei")
    with pytest.raises(DataError, match=r"h.txt has 2 lines, but the test set has 4 utterances"):
        translations_of_lines(tmp_path / "h.txt", UTTERANCES)


def test_systems_are_put_into_one_order() -> None:
    first, second = aligned([System("a", tuple(ROWS)), System("b", tuple(reversed(ROWS)))])
    assert first.translations == second.translations == tuple(ROWS)


def test_systems_on_other_utterances_are_refused() -> None:
    other = [*ROWS[2:], replace(ROWS[0], id="new")]
    with pytest.raises(DataError, match="b lacks 2 utterances of a, such as 0; b has 1 utterances that a lacks, such as new"):
        aligned([System("a", tuple(ROWS)), System("b", tuple(other))])
    with pytest.raises(DataError, match="b has 1 utterances that the manifest lacks, such as x"):
        with_references([*ROWS, replace(ROWS[0], id="x")], UTTERANCES, "b")


def test_systems_with_other_references_are_refused() -> None:
    other = [replace(ROWS[0], reference="another"), *ROWS[1:]]
    with pytest.raises(
        DataError, match="a and b have different languages or references for 1 utterances, such as 0; --manifest"
    ):
        aligned([System("a", tuple(ROWS)), System("b", tuple(other))])


def test_two_systems_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="same name"):
        aligned([System("a", tuple(ROWS)), System("a", tuple(ROWS))])


def test_a_manifest_gives_order_languages_and_references() -> None:
    rows = with_references(reversed(ROWS), UTTERANCES, "a")
    assert [(row.hypothesis, row.reference) for row in rows[:2]] == [("hyp 0", "better ref 0"), ("hyp 1", "better ref 1")]


def test_translations_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They say neither how many pieces an utterance had nor whether it was cut, and have no settings beside them."""
    row = {"id": "1", "source_lang": "aeb", "target_lang": "eng", "hypothesis": "h", "reference": None}
    (tmp_path / "h.jsonl").write_text(f"{json.dumps(row)}\n")
    found = read_system("old", tmp_path / "h.jsonl")
    assert found == System("old", (Translation("1", "aeb", "eng", "h", None, pieces=1, cut=False),), None)


def test_settings_beside_translations_are_numbers(tmp_path: Path) -> None:
    write_translations(tmp_path / "h.jsonl", ROWS)
    (tmp_path / "h.decoding.json").write_text('{"beams": "five"}')
    with pytest.raises(DataError, match=r"h\.decoding\.json: beams must be a number, found 'five'"):
        read_system("ours", tmp_path / "h.jsonl")


def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path: Path) -> None:
    """At the start of a file, and in the middle of one that was joined of two."""
    (tmp_path / "h.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n\xef\xbb\xbfthree\n")
    assert read_lines(tmp_path / "h.txt") == ["one", "two", "three"]
    (tmp_path / "h.jsonl").write_text(f"{json.dumps(vars(ROWS[0]))}\n", encoding="utf-8-sig")
    assert read_translations(tmp_path / "h.jsonl") == ROWS[:1]
    (tmp_path / "wide.txt").write_text("one\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"wide.txt: not UTF-8"):
        read_lines(tmp_path / "wide.txt")


def test_how_translations_were_made_is_kept_beside_them(tmp_path: Path) -> None:
    path, settings = tmp_path / "h.jsonl", DecodeConfig(beams=3, max_seconds=12.5)
    rows = [replace(ROWS[0], cut=True), replace(ROWS[1], pieces=0), replace(ROWS[2], pieces=3)]
    write_translations(path, rows, settings)
    found = read_system("ours", path)
    assert found.translations == tuple(rows)
    assert found.decoding == {
        "beams": 3, "max_new_tokens": 128, "length_penalty": 1.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
        "max_seconds": 12.5,
    }  # fmt: skip
    write_translations(path, rows)
    assert read_system("ours", path).decoding is None, "not those of the translations before"


def test_the_target_language_of_references_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("uno\n")
    (row,) = utterances_of_references(tmp_path / "r.txt", "que-spa")
    assert (row.source_lang, row.target_lang) == ("que", "spa")
