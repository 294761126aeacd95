"""What evaluate.py takes as a test set, and what it believes of it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from gdps_ds.data import preparation
from gdps_ds.data.manifest import Utterance, write_manifest
from gdps_ds.data.table import write_utterances
from gdps_ds.evaluation.replica import measured
from launchers import prepare
from launchers.evaluate import read_test_set
from tests.unit.data.fixtures import tone


def written(folder: Path) -> list[Utterance]:
    """By hand: one second of audio as 1.5 s, and as it is."""
    row = Utterance("a", str(tone(folder / "a.wav")), "bem", "eng", "x", duration=1.5)
    rows = [row, replace(row, id="b", duration=1.0)]
    write_manifest(folder / "test.jsonl", rows)
    return rows


def options(manifest: Path | None) -> argparse.Namespace:
    return argparse.Namespace(manifest=manifest, references=[], language="und")


def test_a_duration_that_people_wrote_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decoding would come to an end where there is less audio, on the one rank that meets it."""
    written(tmp_path)
    found = measured(read_test_set(options(tmp_path / "test.jsonl"), []))
    assert [row.duration for row in found] == [1.0, 1.0]


def test_what_has_been_decoded_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifests of prepare.py, and the test set of a run."""
    rows, run = [replace(row, duration=1.0) for row in written(tmp_path)], tmp_path / "run"
    command = ["--corpus", "manifest", "--root", str(tmp_path), "--split", "test", "--out", str(tmp_path / "out")]
    assert prepare.main(command) == 0
    (run / "data").mkdir(parents=True)
    write_utterances(run / "data" / "test.arrow", rows, "key")
    monkeypatch.delattr(preparation, "read_segment")
    assert measured(read_test_set(options(tmp_path / "out" / "test.jsonl"), [])) == rows
    assert measured(read_test_set(options(None), [run])) == rows
