"""Bad options and files that the launchers other than train.py meet: exit code 2 and one message, without a traceback."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn

from gdps_ds.config import DecodeConfig
from gdps_ds.config_file import load_config
from gdps_ds.data.manifest import DataError
from gdps_ds.model.export import TrainedModel
from gdps_ds.plan import SharingPlan
from launchers import analyse, compare, evaluate, export, prepare, report, train
from tests.launch import holding
from tests.tiny import LANGUAGES, wider_plan
from tests.unit.reporting.test_tracking import config

Main = Callable[[Sequence[str]], int]
TRANSLATION = {
    "id": "1",
    "source_lang": "aeb",
    "target_lang": "eng",
    "hypothesis": "the cat sat on a mat",
    "reference": "the cat sat on the mat",
}
"""A line of a file as runs of earlier versions wrote it."""


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a launcher says when it ends with 2, as its own last words or as argparse's."""

    def run(main: Main, *arguments: object) -> str:
        capsys.readouterr()
        try:
            code: object = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        assert code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that has not come far."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(config(folder).model_dump_json(by_alias=True))))
    return folder


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    (tmp_path / "zero.json").write_text("{}")
    tree = config(tmp_path / "compared").model_dump(mode="json", by_alias=True) | {"deepspeed": str(tmp_path / "zero.json")}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "experiment.yaml"


@pytest.mark.parametrize("main", [analyse.main, evaluate.main, export.main, report.main], ids=lambda main: main.__module__)
def test_a_run_whose_configuration_is_broken(main: Main, run_dir: Path, said: Callable[..., str]) -> None:
    (run_dir / "config.yaml").write_text("plan: [")
    (run_dir / "hypotheses").mkdir()
    (run_dir / "hypotheses" / "gdps.jsonl").touch()
    assert "run/config.yaml: 1 fault(s)\n  - not valid YAML" in said(main, run_dir)


def test_a_configuration_of_another_version_is_not_exported(run_dir: Path, said: Callable[..., str]) -> None:
    with (run_dir / "config.yaml").open("a") as file:
        file.write("optimiser: adam\n")
    assert "run/config.yaml: 1 fault(s)\n  - optimiser: unknown key; known keys: deepspeed, run" in said(export.main, run_dir)


@pytest.mark.parametrize("launcher", [train, evaluate], ids=lambda launcher: launcher.__name__)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_no_rank_ends_before_rank_0_has_told_of_a_fault(
    launcher: Any, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher ends all of them when it sees the first end."""
    said: list[str] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(time, "sleep", lambda seconds: said.append(f"waited {seconds:.0f} s, {capsys.readouterr().err!r}"))
    monkeypatch.setattr(sys, "argv", ["train", "--config", "nowhere.yaml"])
    assert (launcher.main() if launcher is train else launcher.main(["nowhere"])) == 2
    assert said == ([] if rank == "0" else ["waited 30 s, ''"])
    assert "nowhere" in capsys.readouterr().err


def test_export_without_what_it_needs(run_dir: Path, tmp_path: Path, said: Callable[..., str]) -> None:
    assert f"{tmp_path / 'nowhere'} is no run directory: it has no config.yaml" in said(export.main, tmp_path / "nowhere")
    assert "has no checkpoints of 'gdps' (--arm); there are none" in said(export.main, run_dir)
    newest = run_dir / "checkpoints" / "unified" / "update-000002"
    newest.mkdir(parents=True)
    (newest.parent / "latest").write_text(newest.name)
    assert "has no checkpoints of 'gpds' (--arm); there are unified" in said(export.main, run_dir, "--arm", "gpds")
    assert "--average 0: must be at least 1" in said(export.main, run_dir, "--arm", "unified", "--average", "0")
    arguments = (export.main, run_dir, "--arm", "unified")
    assert f"{newest.parent} has no checkpoint 'latest'; there are none" in said(*arguments)
    for content, fault in {
        "{": "is no checkpoint: checkpoint.json: Expecting",
        "[]": "checkpoint format None",
    }.items():
        (newest / "checkpoint.json").write_text(content)
        assert fault in said(*arguments)
    progress = {"update": 2, "position": {"epoch": 0, "chunk": 0, "batch": 4}, "best": None}
    (newest / "checkpoint.json").write_text(json.dumps({"format": 2, "progress": progress, "files": {}}))
    (newest / "plan.json").write_text("{")
    assert "plan.json: 1 fault(s)\n  - not valid JSON" in said(*arguments)
    SharingPlan.uniform(["aeb"]).save(newest / "plan.json")
    assert f"Can't load tokenizer for '{run_dir / 'tokenizer'}'" in said(*arguments)


def test_neurons_that_were_added_need_whole(tmp_path: Path) -> None:
    wider = TrainedModel(nn.Identity(), tokenizer=None, plan=wider_plan(), languages=LANGUAGES, router=None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no plain checkpoint has room for \(plan\.width: added\); give --whole"):
        list(export.export(wider, tmp_path, DecodeConfig(), whole=False))


def test_evaluate_names_what_is_no_run_and_the_arms_there_are(run_dir: Path, tmp_path: Path, said: Callable[..., str]) -> None:
    nowhere = tmp_path / "rnus"
    assert f"--out is needed where no SYSTEM is a run directory (with a config.yaml): {nowhere}" in said(evaluate.main, nowhere)
    assert "the run has not translated its test set yet; name an arm that is trained (--arm)" in said(evaluate.main, run_dir)
    (run_dir / "checkpoints" / "unified").mkdir(parents=True)
    assert "has no checkpoints of 'gpds' (--arm); there are unified" in said(evaluate.main, run_dir, "--arm", "gpds")


def test_compare_takes_whole_words_and_a_folder_that_can_be_written(
    experiment: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    arguments = (compare.main, "--config", experiment)
    assert "argument --seeds: invalid seeds value: '1,b'" in said(*arguments, "--seeds", "1,b")
    assert "argument --launcher-args: invalid words value" in said(*arguments, "--launcher-args", "--num_gpus '2")
    assert "run.arms.0: input should be 'gdps', 'uniform', 'wide'" in said(*arguments, "run.arms=[gpds]")
    (tmp_path / "file").touch()
    assert "run.dir cannot be written to: [Errno 17] File exists" in said(*arguments, f"run.dir={tmp_path / 'file'}")
    (tmp_path / "other" / "data").mkdir(parents=True)
    (tmp_path / "other" / "data").rmdir()
    (tmp_path / "other" / "data").touch()
    assert f"[Errno 17] File exists: '{tmp_path / 'other' / 'data'}'" in said(*arguments, f"run.dir={tmp_path / 'other'}")


@pytest.mark.parametrize(
    ("held", "lock", "message"),
    [
        ("", ".compare.lock", "another job compares arms in run.dir: process {} on "),
        ("seed-2", "run.lock", "another job trains in run.dir: process {} on "),
    ],
)
def test_a_comparison_waits_for_no_other_job(
    experiment: Path, tmp_path: Path, said: Callable[..., str], held: str, lock: str, message: str
) -> None:
    """Nothing of what the other job has made is touched, though the configuration is another one."""
    left = tmp_path / "compared" / "data" / ".train.features.partial"
    left.mkdir(parents=True)
    with holding(tmp_path / "compared" / held, lock) as job:
        assert message.format(job) in said(compare.main, "--config", experiment, "--seeds", "1,2", "model.vocab_size=70")
    assert left.is_dir()
    assert not (tmp_path / "compared" / "seed-1" / "config.yaml").exists()


def test_two_evaluations_do_not_write_into_one_folder(tmp_path: Path, said: Callable[..., str]) -> None:
    texts = tmp_path / "ours.txt"
    texts.write_text("one\n")
    with holding(tmp_path / "out", ".evaluate.lock") as job:
        arguments = (texts, "--references", texts, "--out", tmp_path / "out")
        assert f"another job writes scores into --out: process {job} on " in said(evaluate.main, *arguments)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".evaluate.lock"]


@pytest.mark.parametrize("code", [75, 1])
def test_a_comparison_that_is_stopped_ends_as_its_run_did(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    monkeypatch.setattr(compare, "_train", lambda *arguments: code)
    assert compare.main(["--config", str(experiment), "--seeds", "7"]) == code
    seed = tmp_path / "compared" / "seed-7"
    assert capsys.readouterr().err == f"compare: {seed} is not finished; the same command goes on with it\n"


def test_a_copy_of_a_seed_is_not_compared(experiment: Path, tmp_path: Path) -> None:
    for name in ("seed-1", "seed-1.bak"):
        (tmp_path / "compared" / name / "scores").mkdir(parents=True)
    (tmp_path / "compared" / "seed-1.bak" / "scores" / "gdps.json").write_text("{}")
    with pytest.raises(DataError, match="no arm has been trained and translated yet"):
        compare.report(load_config(experiment), tmp_path / "compared")


def test_a_comparison_with_scores_of_another_version_is_refused(
    experiment: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    """All arms are finished, one by a version that kept its scores by language alone."""
    seed = tmp_path / "compared" / "seed-1"
    for arm in load_config(experiment).run.arms:
        for folder, text in {"scores": {"aeb": {"BLEU": 9.0}, "mean": {"BLEU": 9.0}}, "hypotheses": TRANSLATION}.items():
            (seed / folder).mkdir(parents=True, exist_ok=True)
            (seed / folder / f"{arm}.{'json' if folder == 'scores' else 'jsonl'}").write_text(json.dumps(text))
    (seed / "metrics.jsonl").write_text(json.dumps({"phase": "start", "update": 0, "time": 0.0}))
    found = said(compare.main, "--config", experiment, "--seeds", "1")
    assert re.search(r"seed-1/scores/\w+.json: not scores as this version writes them \(scores: field required\)", found)
    assert "remove the file, and the run translates and scores this arm anew" in found and "Traceback" not in found


def test_evaluation_of_a_run_of_before_says_that_its_settings_are_not_known(tmp_path: Path) -> None:
    """Its translations know nothing of pieces, and no settings lie beside them."""
    run, few = tmp_path / "run", ["decode.resamples=20", "decode.trials=20"]
    (run / "hypotheses").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {max_seconds: 15}\ndecode: {normaliser: none}\n")
    for arm in ("gdps", "uniform"):
        (run / "hypotheses" / f"{arm}.jsonl").write_text(json.dumps(TRANSLATION))
    assert evaluate.main([str(run), "decode.beams=7", *few]) == 0
    notes = json.loads((run / "evaluation" / "scores.json").read_text())["notes"]
    assert notes == ["with which settings these were decoded is not known: gdps, uniform"]
    assert evaluate.main([str(run), *few]) == 0
    assert json.loads((run / "evaluation" / "scores.json").read_text())["notes"] == []


def test_evaluation_tells_of_what_is_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two targets one has references; COMET is asked for those alone."""
    spanish = [TRANSLATION | {"id": f"s{place}", "target_lang": "spa"} for place in range(3)]
    english = TRANSLATION | {"id": "e", "hypothesis": "", "reference": None, "pieces": 0}
    (tmp_path / "ours.jsonl").write_text("\n".join(json.dumps(row) for row in (english, *spanish)))
    asked: list[list[str]] = []

    def scored(model: Any, sources: Any, hypotheses: list[str], references: list[str], **options: Any) -> Any:
        asked.append(references)
        return np.array([0.5, 0.6, 0.7])

    monkeypatch.setattr("gdps_ds.evaluation.comet.load_comet", lambda name: object())
    monkeypatch.setattr("gdps_ds.evaluation.comet.comet_scores", scored)
    options = ["--comet", "decode.comet_source=empty", "decode.resamples=20", "decode.trials=20"]
    assert evaluate.main([str(tmp_path / "ours.jsonl"), "--out", str(tmp_path), *options]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert asked == [["the cat sat on the mat"] * 3]
    assert (list(found["scores"]["ours"]), found["unscored"]) == (["aeb-spa", "mean"], {"aeb-eng": 1})
    assert found["scores"]["ours"]["mean"]["COMET"]["score"] == pytest.approx(0.6)
    note = "ours: aeb-eng: 1 of 1 utterances could not be translated (no usable audio); their lines are empty"
    assert note in (tmp_path / "scores.txt").read_text()


def test_prepare_needs_a_layout_and_a_number_of_workers(tmp_path: Path, said: Callable[..., str]) -> None:
    arguments = (prepare.main, "--root", tmp_path, "--split", "train", "--out", tmp_path / "out")
    assert "unknown corpus layout 'must-c'; known layouts: manifest, " in said(*arguments, "--corpus", "must-c")
    assert "--workers -1: must be at least 0" in said(*arguments, "--corpus", "manifest", "--workers", "-1")


def test_report_of_what_is_no_run_or_cannot_be_written(run_dir: Path, tmp_path: Path, said: Callable[..., str]) -> None:
    assert f"{tmp_path} is no run directory: it has no config.yaml" in said(report.main, tmp_path)
    (run_dir / "report").touch()
    assert "[Errno 17] File exists" in said(report.main, run_dir)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--references", "a.txt", "b.txt"], "--references takes one file, .*; found a.txt, b.txt"),
        (["--references", "a.txt", "--references", "b.txt"], "--references takes one file, .*; found a.txt, b.txt"),
        (["--references", "a.txt", "--manifest", "m.jsonl"], "not allowed with argument --references"),
        (["--manifest", "m.jsonl", "--manifest", "n.jsonl"], "--manifest is given twice: m.jsonl, n.jsonl"),
        (["--references", "a.txt", "--out", "x", "--out", "y"], "--out is given twice: x, y"),
    ],
)
def test_evaluate_forgets_no_option(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse takes the last of two, and what follows the first for a system."""
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["ours.txt", *options])
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)
