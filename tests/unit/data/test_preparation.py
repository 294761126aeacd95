from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from gdps_ds.data import audio, preparation
from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.manifest import DataError, Measured, Utterance, read_manifest, write_manifest
from gdps_ds.data.parallel import AHEAD, map_in_order
from gdps_ds.data.preparation import overlaps, prepare, prepared
from gdps_ds.data.preparation_report import PreparationReport
from gdps_ds.files import digest_of

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data"
LIMITS: dict[str, Any] = {"min_seconds": 0.1, "max_seconds": 2.0}


def speech(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> str:
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate)
    return str(path)


@pytest.fixture
def corpus(tmp_path: Path) -> list[Utterance]:
    """Three usable utterances and one of each fault."""
    good = speech(tmp_path / "good.wav", 1.0)
    stereo = speech(tmp_path / "stereo.wav", 1.0, rate=44100, channels=2)
    (tmp_path / "broken.wav").write_bytes(b"RIFFRIFF")
    (tmp_path / "pointer.wav").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    plain = Utterance("good", good, "bem", "eng", "text")
    return [
        plain,
        replace(plain, id="stereo", audio=stereo, source_lang="est"),
        replace(plain, id="segment", offset=0.5, duration=0.25),
        replace(plain, id="runs over", offset=0.5, duration=0.55),
        replace(plain, id="runs far over", offset=0.5, duration=0.65),
        replace(plain, id="missing", audio=str(tmp_path / "nowhere.wav")),
        replace(plain, id="broken", audio=str(tmp_path / "broken.wav")),
        replace(plain, id="pointer", audio=str(tmp_path / "pointer.wav"), source_lang="gle"),
        replace(plain, id="zero", duration=0.0),
        replace(plain, id="beyond", offset=1.5, duration=0.5),
        replace(plain, id="blank", target_text=" \t"),
        replace(plain, id="none", target_text=None),
        replace(plain, id="short", duration=0.05),
        replace(plain, id="long", audio=speech(tmp_path / "long.wav", 2.1)),
        replace(plain, id="talk", audio=speech(tmp_path / "talk.wav", 8.0)),
        replace(plain, id="other", source_lang="que"),
        replace(plain, id="good", target_text="again"),
    ]


LANGUAGES = ("bem", "est", "gle")


def test_every_utterance_is_kept_or_counted_by_language_and_reason(corpus: list[Utterance]) -> None:
    kept, report = prepare(corpus, languages=LANGUAGES, **LIMITS)
    assert [utterance.id for utterance in kept] == ["good", "stereo", "segment", "runs over"]
    assert dict(report.of("bem").skipped) == {
        audio.MISSING: 1,
        audio.UNREADABLE: 1,
        audio.ZERO_LENGTH: 1,
        audio.BEYOND_END: 1,
        preparation.OVERRUN: 1,
        preparation.NO_TEXT: 2,
        preparation.TOO_SHORT: 1,
        preparation.TOO_LONG: 2,
        preparation.DUPLICATE: 1,
    }
    assert dict(report.of("gle").skipped) == {audio.GIT_LFS: 1}
    assert dict(report.of("que").skipped) == {preparation.OTHER_LANGUAGE: 1}
    counted = sum(part.kept + part.skipped.total() for part in report.languages.values())
    assert counted == len(corpus)


def test_true_durations_are_filled_in_and_cut_segments_counted(corpus: list[Utterance]) -> None:
    kept, report = prepare(corpus, languages=LANGUAGES, **LIMITS)
    assert [utterance.duration for utterance in kept] == [1.0, 1.0, 0.25, 0.5]
    assert (report.of("bem").cut, report.of("est").cut) == (1, 0)
    assert report.of("bem").seconds == 1.75
    assert dict(report.of("est").sample_rates) == {44100: 1}
    assert dict(report.of("est").channels) == {2: 1}


def test_nothing_but_the_duration_changes_and_preparing_twice_changes_nothing(corpus: list[Utterance]) -> None:
    kept, _ = prepare(corpus, languages=LANGUAGES, **LIMITS)
    originals = {utterance.id: utterance for utterance in reversed(corpus)}
    assert kept == [replace(originals[utterance.id], duration=utterance.duration) for utterance in kept]
    again, report = prepare(kept, languages=LANGUAGES, **LIMITS)
    assert again == kept
    assert report.of("bem").skipped.total() == 0


def test_the_number_of_processes_does_not_matter(corpus: list[Utterance]) -> None:
    one, two = (prepare(corpus, languages=LANGUAGES, workers=workers, **LIMITS) for workers in (0, 2))
    assert one[0] == two[0]
    assert one[1].to_dict() == two[1].to_dict()


def test_all_languages_and_missing_references_can_be_let_in(corpus: list[Utterance]) -> None:
    kept, report = prepare(corpus, languages=None, require_text=False, **LIMITS)
    assert {"blank", "none", "other"} <= {utterance.id for utterance in kept}
    assert report.of("bem").unreferenced == 2
    assert "2  kept, but without a translation" in report.summary({})


def test_a_usable_repetition_of_an_unusable_utterance_is_kept(corpus: list[Utterance]) -> None:
    good = corpus[0]
    kept, _ = prepare([replace(good, target_text=""), good], languages=None, **LIMITS)
    assert kept == [replace(good, duration=1.0)]


def test_what_is_too_long_can_be_cut_instead(corpus: list[Utterance]) -> None:
    kept, report = prepare(corpus, languages=["bem"], too_long="cut", min_seconds=0.1, max_seconds=2.00001)
    assert {utterance.id: utterance.duration for utterance in kept if utterance.id in ("long", "talk")} == {
        "long": 2.0,
        "talk": 2.0,
    }
    assert (report.of("bem").shortened, report.of("bem").cut) == (2, 1)
    assert preparation.TOO_LONG not in report.of("bem").skipped
    assert "2  kept, but shortened" in report.summary({})
    assert prepare(kept, languages=["bem"], **LIMITS)[0] == kept


def test_a_talk_of_hours_is_not_decoded_to_see_that_it_is_too_long(
    corpus: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float | None] = []
    original = preparation.read_segment

    def recording(path: str, offset: float, duration: float) -> audio.Segment:
        seconds.append(duration)
        return original(path, offset, duration)

    monkeypatch.setattr(preparation, "read_segment", recording)
    prepare([replace(corpus[14], duration=None)], languages=None, **LIMITS)
    assert seconds == [3.0]


def test_rows_come_and_go_one_at_a_time(corpus: list[Utterance]) -> None:
    read: list[str] = []

    def counted() -> Iterator[Utterance]:
        for utterance in corpus:
            read.append(utterance.id)
            yield utterance

    report = PreparationReport()
    rows = prepared(counted(), report, languages=LANGUAGES, **LIMITS)
    assert [next(rows).id, next(rows).id] == ["good", "stereo"] == read
    assert report.of("est").kept == 1


def test_processes_take_only_a_little_ahead() -> None:
    taken = 0

    def counted() -> Iterator[int]:
        nonlocal taken
        for taken in range(1, 1001):
            yield -taken

    results = map_in_order(abs, counted(), workers=1, progress=False, label="test", part=2)
    assert (next(results), next(results)) == (1, 2)
    assert taken <= 2 * (AHEAD + 1)
    assert [2, *results] == list(range(2, 1001))


def test_what_a_manifest_measured_is_not_decoded_again(corpus: list[Utterance], tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio at all")
    plain = Measured("a", str(tmp_path / "text.wav"), "bem", "eng", "x", duration=1.0)
    rows = [
        plain,
        replace(plain, id="long", duration=3.0),
        replace(plain, id="short", duration=0.02),
        replace(plain, id="missing", audio=str(tmp_path / "nowhere.wav")),
        replace(plain, id="blank", target_text=None),
    ]
    kept, report = prepare(rows, languages=["bem"], **LIMITS)
    assert kept == [Utterance("a", plain.audio, "bem", "eng", "x", duration=1.0)]
    skipped = [preparation.TOO_LONG, preparation.TOO_SHORT, audio.MISSING, preparation.NO_TEXT]
    assert dict(report.of("bem").skipped) == dict.fromkeys(skipped, 1)
    assert (report.of("bem").seconds, dict(report.of("bem").sample_rates)) == (1.0, {})
    cut, report = prepare(rows[1:2], languages=["bem"], too_long="cut", **LIMITS)
    assert (cut[0].duration, report.of("bem").shortened) == (2.0, 1)


def test_the_report_as_json_and_as_a_table(corpus: list[Utterance]) -> None:
    _, report = prepare(corpus, languages=LANGUAGES, **LIMITS)
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == ["bem", "est", "gle", "que"]
    assert plain["bem"]["examples"][preparation.TOO_LONG] == ["long", "talk"]
    assert plain["est"] == {
        "kept": 1,
        "hours": 0.0003,
        "cut": 0,
        "shortened": 0,
        "unreferenced": 0,
        "notes": {},
        "lengths": {"1": 1},
        "skipped": {},
        "untranslatable": {},
        "examples": {},
        "sample_rates": {"44100": 1},
        "channels": {"2": 1},
    }
    summary = report.summary({}).splitlines()
    assert summary[1].split()[:5] == ["bem", "3", "0.00", "11", "1"]
    assert summary[2].split(maxsplit=1)[0] == "2"
    assert any(line.endswith("too long: long, talk") for line in summary)
    assert "44100 Hz, 2 channel(s)" in report.summary({})


def test_a_language_without_utterances_stops_the_run_with_the_counts(corpus: list[Utterance]) -> None:
    _, report = prepare(corpus, languages=(*LANGUAGES, "aeb"), **LIMITS)
    report.require(["bem", "est"])
    with pytest.raises(DataError) as caught:
        report.require(["bem", "gle", "aeb"])
    assert str(caught.value).splitlines() == [
        "data.languages: no usable utterance is left of 2 language(s)",
        "  gle: 1 read, 1 Git-LFS pointer",
        "  aeb: none in the corpora, which have bem, est, gle, que",
    ]
    with pytest.raises(DataError, match="no utterances at all"):
        PreparationReport().require(["bem"])


def test_limits_that_leave_nothing_are_refused() -> None:
    with pytest.raises(DataError, match=r"min_seconds \(3\) must be at least 0 and below max_seconds \(2\)"):
        prepare([], languages=None, min_seconds=3, max_seconds=2)


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    """The ``main`` of launchers/prepare.py, which is a script and no module of the package."""
    spec = importlib.util.spec_from_file_location("prepare_launcher", ROOT / "launchers" / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entry: Callable[[list[str]], int] = module.main
    return entry


def test_the_launcher_writes_manifest_and_report(
    main: Callable[[list[str]], int], tmp_path: Path, corpus: list[Utterance], capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path / "raw" / "train.jsonl", corpus[:-1])
    options = ["--corpus", "manifest", "--root", str(tmp_path / "raw"), "--split", "train"]
    options += ["--out", str(tmp_path / "out"), "--languages", "bem", "est", "--max-seconds", "2"]
    assert main(options) == 0
    kept, report = prepare(corpus[:-1], languages=("bem", "est"), **LIMITS)
    assert read_manifest(tmp_path / "out" / "train.jsonl") == kept
    assert json.loads((tmp_path / "out" / "train.report.json").read_text(encoding="utf-8")) == {
        "languages": report.to_dict(),
        "overlap": {},
        "manifest": digest_of(tmp_path / "out" / "train.jsonl"),
        "notes": digest_of(tmp_path / "out" / "train.notes.tsv"),
        "corpus": {"layout": "manifest", "root": str(tmp_path / "raw")},
        "for": "training",
    }
    shown = capsys.readouterr().out
    assert report.summary({}) in shown
    assert (
        f"every utterance that is skipped or has no usable audio is listed in {tmp_path / 'out' / 'train.skipped.tsv'}" in shown
    )


def test_every_skipped_utterance_is_listed(main: Callable[[list[str]], int], tmp_path: Path, corpus: list[Utterance]) -> None:
    """Also where there are more of a reason than the report has examples, and where nothing is left."""
    blank = [replace(corpus[9], id=f"blank {number}", target_text="\t") for number in range(9)]
    write_manifest(tmp_path / "raw" / "train.jsonl", [*corpus[:-1], *blank])
    options = ["--corpus", "manifest", "--root", str(tmp_path / "raw"), "--split", "train", "--out", str(tmp_path / "out")]
    for languages, code in ((["bem", "est"], 0), (["gle"], 2)):
        assert main([*options, "--languages", *languages, "--max-seconds", "2"]) == code
        header, *lines = (tmp_path / "out" / "train.skipped.tsv").read_text(encoding="utf-8").splitlines()
        assert header == "id\tlanguage\treason\tfile"
        kept, report = prepare([*corpus[:-1], *blank], languages=languages, **LIMITS)
        assert {line.split("\t")[0] for line in lines} == {row.id for row in [*corpus[:-1], *blank]} - {row.id for row in kept}
        counted = Counter((language, reason) for _, language, reason, _ in (line.split("\t") for line in lines))
        assert counted == Counter(
            {(name, reason): count for name, part in report.languages.items() for reason, count in part.skipped.items()}
        )


def test_the_launcher_keeps_what_is_to_be_translated(
    main: Callable[[list[str]], int], tmp_path: Path, corpus: list[Utterance], capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    for split, left in (("train", ["good"]), ("dev", ["good", "silent"])):
        write_manifest(
            tmp_path / "raw" / f"{split}.jsonl",
            [corpus[0], replace(corpus[0], id="silent", audio=str(tmp_path / "silent.wav"))],
        )
        options = ["--corpus", "manifest", "--root", str(tmp_path / "raw"), "--split", split, "--out", str(tmp_path / "out")]
        assert main(options) == 0
        assert [row.id for row in read_manifest(tmp_path / "out" / f"{split}.jsonl")] == left
    assert f"1  kept, but {preparation.SILENT}" in capsys.readouterr().out


def test_splits_that_share_utterances_are_told_of(
    main: Callable[[list[str]], int], tmp_path: Path, corpus: list[Utterance], capsys: pytest.CaptureFixture[str]
) -> None:
    same_place, same_text, other = (
        replace(corpus[0], id="1", target_text="else"),
        replace(corpus[2], id="2", source_text=None),
        replace(corpus[2], id="3", target_text="new"),
    )
    assert overlaps([same_place, same_text, other], {"dev": [corpus[0]], "test": []}) == {"dev": 2}
    assert overlaps([replace(other, target_text=None)], {"dev": [replace(corpus[0], target_text=None)]}) == {}
    for split, utterances in (("train", corpus[:3]), ("dev", [same_place, same_text, other])):
        write_manifest(tmp_path / "raw" / f"{split}.jsonl", utterances)
        options = ["--corpus", "manifest", "--root", str(tmp_path / "raw"), "--split", split, "--out", str(tmp_path / "out")]
        assert main(options) == 0
    assert json.loads((tmp_path / "out" / "dev.report.json").read_text(encoding="utf-8"))["overlap"] == {"train": 3}
    assert "3 of them are in train too" in capsys.readouterr().out


def test_a_manifest_is_taken_at_its_word_only_as_the_launcher_wrote_it(
    main: Callable[[list[str]], int], tmp_path: Path, corpus: list[Utterance]
) -> None:
    write_manifest(tmp_path / "raw" / "train.jsonl", corpus[:3])
    out = tmp_path / "out"
    options = ["--corpus", "manifest", "--root", str(tmp_path / "raw"), "--split", "train", "--out", str(out)]
    assert main(options) == 0
    assert all(isinstance(row, Measured) for row in read_corpus("manifest", out, "train"))
    with (out / "train.jsonl").open("a") as file:
        file.write((tmp_path / "raw" / "train.jsonl").read_text().splitlines()[0].replace('"good"', '"new"') + "\n")
    rows = list(read_corpus("manifest", out, "train"))
    assert len(rows) == 4 and not any(isinstance(row, Measured) for row in rows)


def test_a_test_set_without_references_is_prepared_when_asked(
    main: Callable[[list[str]], int], tmp_path: Path, corpus: list[Utterance], capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path / "raw" / "test.jsonl", [replace(row, target_text=None) for row in corpus[:3]])
    options = ["--corpus", "manifest", "--root", str(tmp_path / "raw"), "--split", "test", "--out", str(tmp_path / "out")]
    assert main(options) == 2
    said = capsys.readouterr().err
    assert "bem: 2 read, 2 empty text" in said
    assert said.endswith("\n  a test set without translations is prepared with --no-references\n")
    assert main([*options, "--no-references"]) == 0
    assert "2  kept, but without a translation" in capsys.readouterr().out
    assert [row.target_text for row in read_manifest(tmp_path / "out" / "test.jsonl")] == [None] * 3


def test_the_launcher_ends_with_2_and_a_message_on_faults(
    main: Callable[[list[str]], int], tmp_path: Path, corpus: list[Utterance], capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path / "raw" / "train.jsonl", corpus[:-1])
    options = ["--corpus", "manifest", "--root", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    assert main([*options, "--split", "dev"]) == 2
    assert "no split 'dev'; splits there: train" in capsys.readouterr().err
    assert main([*options, "--split", "train", "--languages", "gle"]) == 2
    assert "gle: 1 read, 1 Git-LFS pointer" in capsys.readouterr().err
    assert (tmp_path / "out" / "train.report.json").is_file()
    assert not (tmp_path / "out" / "train.jsonl").exists()
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    assert "--corpus manifest needs --split and --out" in capsys.readouterr().err


@pytest.mark.parametrize(("corpus", "conflict"), [("demo", False), ("demo-conflict", True)])
def test_the_launcher_builds_the_demo_corpora(
    main: Callable[[list[str]], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, conflict: bool
) -> None:
    calls: list[tuple[Path, dict[str, object]]] = []
    monkeypatch.setattr("gdps_ds.data.demo.build_demo_corpus", lambda root, **options: calls.append((root, options)))
    assert main(["--corpus", corpus, "--root", str(tmp_path)]) == 0
    assert calls == [(tmp_path, {"conflict": conflict, "workers": 1, "progress": sys.stderr.isatty()})]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no corpus samples in {SHARED}")
def test_the_launcher_prepares_a_real_corpus_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launchers" / "prepare.py"), "--corpus", "griko-italian"]
    command += ["--root", str(SHARED / "griko-italian"), "--split", "dev", "--out", str(tmp_path), "--workers", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "44100 Hz, 2 channel(s)" in result.stdout
    utterances = read_manifest(tmp_path / "dev.jsonl")
    assert len(utterances) == 33
    assert all(utterance.duration and utterance.duration > 0.5 for utterance in utterances)


def test_sets_that_are_translated_keep_every_utterance_in_order(corpus: list[Utterance]) -> None:
    """Limits of length are training's; what has no usable audio stays in its place, with a duration of less than a frame."""
    kept, report = prepare(corpus, languages=LANGUAGES, require_text=False, training=False, **LIMITS)
    wanted = [utterance for utterance in corpus[:-1] if utterance.source_lang != "que"]
    assert [utterance.id for utterance in kept] == [utterance.id for utterance in wanted]
    durations = {utterance.id: utterance.duration for utterance in kept}
    assert {durations[name] for name in ("missing", "broken", "pointer", "zero", "beyond")} == {0.0}
    assert (durations["long"], durations["talk"], durations["short"]) == (2.1, 8.0, 0.05)
    assert dict(report.of("bem").untranslatable) == {
        audio.MISSING: 1, audio.UNREADABLE: 1, audio.ZERO_LENGTH: 1, audio.BEYOND_END: 1
    }  # fmt: skip
    assert dict(report.of("gle").untranslatable) == {audio.GIT_LFS: 1}
    assert dict(report.of("bem").skipped) == {preparation.DUPLICATE: 1}
    assert "1  missing file, so their translations will be empty: missing" in report.summary({})
    with pytest.raises(DataError, match=r"gle: 1 read, 1 Git-LFS pointer"):
        report.require(["gle"])
    again, report = prepare(
        [Measured(**asdict(row)) for row in kept], languages=None, training=False, require_text=False, **LIMITS
    )
    assert again == kept
    assert report.of("bem").untranslatable.total() == 4


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff", "\u200d \u00ad", "\u3164"])
def test_a_target_that_cannot_be_seen_is_no_text(corpus: list[Utterance], blank: str) -> None:
    rows = [corpus[0], replace(corpus[0], id="blank", target_text=blank)]
    kept, report = prepare(rows, languages=["bem"], **LIMITS)
    assert (len(kept), dict(report.of("bem").skipped)) == (1, {preparation.NO_TEXT: 1})
    _, report = prepare(rows, languages=["bem"], training=False, require_text=False, **LIMITS)
    assert report.of("bem").unreferenced == 1


def test_prepare_keeps_splits_whole_that_are_not_for_training(main: Callable[[list[str]], int], tmp_path: Path) -> None:
    short, long = (speech(tmp_path / f"{seconds}.wav", seconds) for seconds in (1, 3))
    durations = {}
    for split in ("train", "test"):
        files = {"short": short, "long": long, "none": str(tmp_path / "none.wav")}
        rows = [Utterance(name, path, "bem", "eng", "x") for name, path in files.items()]
        write_manifest(tmp_path / "raw" / f"{split}.jsonl", rows)
        options = ["--corpus", "manifest", "--root", str(tmp_path / "raw"), "--split", split, "--out", str(tmp_path / "out")]
        assert main([*options, "--max-seconds", "2"]) == 0
        durations[split] = {row.id: row.duration for row in read_manifest(tmp_path / "out" / f"{split}.jsonl")}
    assert durations == {"train": {"short": 1.0}, "test": {"short": 1.0, "long": 3.0, "none": 0.0}}
