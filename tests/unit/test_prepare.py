"""What launchers/prepare.py leaves on disk, and what it tells a user to do with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from gdps_ds.config import CorpusConfig
from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.manifest import DataError, ManifestError, Measured, Utterance, read_manifest, write_manifest
from gdps_ds.data.preparation import SILENT, TOO_LONG, TRUNCATED
from gdps_ds.data.preparation import prepare as prepare_rows
from launchers import prepare
from tests.unit.data.fixtures import tone


def test_the_manifest_of_another_corpus_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        audio = str(tone(tmp_path / name / "a.wav"))
        write_manifest(tmp_path / name / "train.jsonl", [Utterance(name, audio, "bem", "eng", name)])
    out = tmp_path / "out" / "train.jsonl"

    def run(name: str, *options: str) -> int:
        command = ["--corpus", "manifest", "--root", str(tmp_path / name), "--split", "train", "--out", str(out.parent)]
        return prepare.main([*command, *options])

    assert run("one") == 0
    first = out.read_bytes()
    assert run("two") == 2
    assert f"{out} holds corpus 'manifest' of {tmp_path / 'one'}; choose another --out" in capsys.readouterr().err
    assert out.read_bytes() == first
    assert run("one") == 0, "the same corpus is prepared again"
    out.write_bytes(first.replace(b"}", b" }", 1))
    assert run("one") == 2
    assert f"of {tmp_path / 'one'}, and was edited since; choose another --out" in capsys.readouterr().err
    assert run("two", "--replace") == 0
    assert [row.id for row in read_manifest(out)] == ["two"]
    (out.parent / "train.report.json").unlink()
    assert run("two") == 2
    assert "holds utterances that are not known to be of this corpus" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["the root", "a folder", "a file", "nothing"])
def test_the_printed_corpus_can_be_trained_with(tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str) -> None:
    """Wherever links lead: what prepare says is what an experiment takes."""
    real, root = tmp_path / "disk 2" / "real", tmp_path / "corpora" / "mboshi"
    audio = tone(real / "train" / "a.wav")
    (real / "train" / "a.fr").write_text("un")
    root.parent.mkdir()
    if link == "the root":
        root.symlink_to(real)
    elif link == "a folder":
        root.mkdir()
        (root / "train").symlink_to(real / "train")
    elif link == "a file":
        (root / "train").mkdir(parents=True)
        (root / "train" / "a.wav").symlink_to(audio)
        (root / "train" / "a.fr").write_text("un")
    else:
        root = real
    options = ["--corpus", "mboshi-french", "--root", str(root), "--split", "train", "--out", str(tmp_path / "out")]
    assert prepare.main(options) == 0
    printed = capsys.readouterr().out.splitlines()[-1].removeprefix("use it as ")
    entry = CorpusConfig.model_validate(yaml.safe_load(printed))
    [found] = read_corpus(entry.layout, entry.root, "train", entry.audio_roots)
    assert found.target_text == "un" and Path(found.audio).samefile(audio)
    for refused in [[], [str(root)]] if link in ("a folder", "a file") else [[]]:
        with pytest.raises(ManifestError, match="lies outside of"):
            list(read_corpus(entry.layout, entry.root, "train", refused))


def test_a_prepared_corpus_that_holds_its_audio_needs_no_other_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tone(tmp_path / "dev" / "a.wav")
    (tmp_path / "dev" / "a.fr").write_text("un")
    assert prepare.main(["--corpus", "mboshi-french", "--root", str(tmp_path), "--split", "dev", "--out", str(tmp_path)]) == 0
    assert f"use it as {{layout: manifest, root: {tmp_path}}}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("split", "purpose"),
    [
        ("train", "training"),
        ("train-clean-100", "training"),
        ("Training_2", "training"),
        ("tr", "training"),
        ("test-unconstrained", "evaluation"),
        ("dev", "evaluation"),
        ("tst-COMMON", "evaluation"),
        ("all", None),
        ("constrained", None),
        ("train-dev", None),
    ],
)
def test_what_a_split_is_for_is_told_by_whole_words(split: str, purpose: str | None) -> None:
    assert prepare.purpose_of(split) == purpose


def flawed(folder: Path, split: str) -> None:
    """One utterance that is as it should be, a long one, a silent one, and one whose file is cut off."""
    good, long = tone(folder / "good.wav"), tone(folder / "long.wav", 2.0)
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    cut = tone(folder / "cut.wav")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    files = {"good": good, "long": long, "silent": folder / "silent.wav", "cut": cut}
    write_manifest(folder / f"{split}.jsonl", [Utterance(name, str(path), "bem", "eng", name) for name, path in files.items()])


def prepared_at(out: Path, root: Path, split: str, *options: str) -> int:
    command = ["--corpus", "manifest", "--root", str(root), "--split", split, "--out", str(out), "--max-seconds", "1.5"]
    return prepare.main([*command, *options])


@pytest.mark.parametrize(
    ("split", "options", "kept"),
    [
        ("test-unconstrained", [], ["good", "long", "silent", "cut"]),
        ("all", [], ["good", "long", "silent", "cut"]),
        ("all", ["--for", "training"], ["good"]),
        ("train", [], ["good"]),
        ("train", ["--for", "evaluation"], ["good", "long", "silent", "cut"]),
    ],
)
def test_what_a_split_is_for_decides_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, options: list[str], kept: list[str]
) -> None:
    flawed(tmp_path / "raw", split)
    assert prepared_at(tmp_path / "out", tmp_path / "raw", split, *options) == 0
    assert [row.id for row in read_manifest(tmp_path / "out" / f"{split}.jsonl")] == kept
    purpose = "training" if kept == ["good"] else "evaluation"
    assert json.loads((tmp_path / "out" / f"{split}.report.json").read_text())["for"] == purpose
    shown = capsys.readouterr().out
    assert ("does not say what it is for" in shown) == (split == "all" and not options)
    assert ("kept with a note is listed in" in shown) == (purpose == "evaluation")


def test_training_skips_what_a_split_that_was_kept_whole_has_notes_of(tmp_path: Path) -> None:
    """Griko and Mboshi have one complete split, ``all``."""
    flawed(tmp_path / "raw", "all")
    assert prepared_at(tmp_path / "out", tmp_path / "raw", "all") == 0
    listed = [line.split("\t")[::2] for line in (tmp_path / "out" / "all.notes.tsv").read_text().splitlines()]
    assert listed == [["id", "reason"], ["silent", SILENT], ["cut", TRUNCATED]]
    limits = {"languages": None, "min_seconds": 0.1, "max_seconds": 1.5}
    rows = list(read_corpus("manifest", tmp_path / "out", "all"))
    assert all(isinstance(row, Measured) for row in rows)
    kept, report = prepare_rows(rows, **limits)
    assert [row.id for row in kept] == ["good"]
    assert dict(report.of("bem").skipped) == {TOO_LONG: 1, SILENT: 1, TRUNCATED: 1}
    kept, report = prepare_rows(rows, training=False, **limits)
    assert len(kept) == 4 and dict(report.of("bem").notes) == {SILENT: 1, TRUNCATED: 1}
    (tmp_path / "out" / "all.notes.tsv").unlink()
    with pytest.raises(DataError, match=r"all\.notes\.tsv is not as it was written with .*run launchers/prepare\.py again"):
        list(read_corpus("manifest", tmp_path / "out", "all"))


def test_a_failure_leaves_what_belongs_to_the_manifest_that_stands(tmp_path: Path) -> None:
    flawed(tmp_path / "raw", "dev")
    out = tmp_path / "out"
    assert prepared_at(out, tmp_path / "raw", "dev") == 0
    before = [(out / f"dev{suffix}").read_bytes() for suffix in (".jsonl", ".notes.tsv")]
    assert prepared_at(out, tmp_path / "raw", "dev", "--languages", "xxx") == 2
    assert [(out / f"dev{suffix}").read_bytes() for suffix in (".jsonl", ".notes.tsv")] == before
    assert json.loads((out / "dev.report.json").read_text())["languages"]["bem"]["kept"] == 0, "the failure is reported"
    assert all(isinstance(row, Measured) for row in read_corpus("manifest", out, "dev"))
    assert prepared_at(out, tmp_path / "raw", "dev") == 0, "the same corpus is prepared again without --replace"


def test_rows_without_usable_audio_keep_their_line_in_a_test_set(tmp_path: Path) -> None:
    """Line n of a shared task's file is row n of its index; a manifest of it is read as it was written."""
    root = tmp_path / "raw" / "test"
    tone(root / "wav" / "a.wav")
    (root / "stamped.tsv").write_text("wav/a.wav\t0\t0.5\nwav/a.wav\tx\t0.5\n\t0\t1\nwav/a.wav\t0.5\t0.5\n")
    (root / "txt").mkdir()
    (root / "txt" / "test.eng").write_text("One.\nTwo.\nThree.\nFour.\n")
    rows = list(read_corpus("iwslt-gle", tmp_path / "raw", "test"))
    limits = {"languages": ["gle"], "min_seconds": 0.1, "max_seconds": 9.0}
    kept, report = prepare_rows(rows, training=False, **limits)
    assert [(row.target_text, row.audio == "", row.duration) for row in kept] == [
        ("One.", False, 0.5), ("Two.", True, 0.0), ("Three.", True, 0.0), ("Four.", False, 0.5)
    ]  # fmt: skip
    assert dict(report.of("gle").untranslatable) == {"time is not a number of seconds": 1, "no audio named": 1}
    assert [row.target_text for row in prepare_rows(rows, **limits)[0]] == ["One.", "Four."]
    options = ["--corpus", "iwslt-gle", "--root", str(tmp_path / "raw"), "--split", "test", "--out", str(tmp_path / "out")]
    assert prepare.main(options) == 0
    again, report = prepare_rows(read_corpus("manifest", tmp_path / "out", "test", [tmp_path]), training=False, **limits)
    assert again == kept and report.of("gle").untranslatable.total() == 2
    assert [replace(row, audio="") for row in read_manifest(tmp_path / "out" / "test.jsonl")] == [
        replace(row, audio="") for row in kept
    ]
