"""scores/<arm>.json of a run: this version's, and files as earlier versions wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gdps_ds.data.manifest import DataError
from gdps_ds.evaluation.arm_scores import ArmScores, read_arm_scores, write_arm_scores

SCORES = {"aeb": {"BLEU": 10.0}, "mean": {"BLEU": 10.0}}


def test_they_survive_a_round_trip(tmp_path: Path) -> None:
    scores = ArmScores(SCORES, {"BLEU": "tok:13a"}, 12, ("aeb: one note",))
    write_arm_scores(tmp_path / "gdps.json", scores)
    assert read_arm_scores(tmp_path / "gdps.json") == scores


def test_files_without_notes_are_read(tmp_path: Path) -> None:
    (tmp_path / "gdps.json").write_text(json.dumps({"scores": SCORES, "signatures": {"BLEU": "x"}, "parameters": 12}))
    assert read_arm_scores(tmp_path / "gdps.json") == ArmScores(SCORES, {"BLEU": "x"}, 12, ())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (json.dumps(SCORES), r"scores: field required"),
        (json.dumps({"scores": SCORES, "signatures": {}}), r"parameters: field required"),
        (json.dumps({"scores": {"aeb": 10.0}, "signatures": {}, "parameters": 1}), r"scores.aeb: input should be"),
        ('{"scores": ', r"invalid json"),
        ("[]", r"input should be"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "gdps.json").write_text(text)
    with pytest.raises(DataError, match=rf"gdps.json: not scores as this version writes them .*{fault}.*remove the file"):
        read_arm_scores(tmp_path / "gdps.json")
