from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import wandb
from matplotlib.figure import Figure
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

from gdps_ds.config import Config
from gdps_ds.config_file import ConfigError
from gdps_ds.reporting.page import Picture, Section, Table, write_page
from gdps_ds.reporting.samples import Sample
from gdps_ds.reporting.tracking import Tracker, WandbRuns, flat
from tests.launch import ROOT

UNIFIED, UPDATES = 6, 4


def config(folder: Path, **track: object) -> Config:
    phases = {"unify": {"updates": UNIFIED, "lr": 0.1}, "specialise": {"updates": UPDATES, "lr": 0.1}}
    return Config.model_validate(
        {
            "deepspeed": "zero.json",
            "run": {"dir": str(folder)},
            "data": {"languages": ["aeb"], "corpora": [{"layout": "manifest", "root": "."}]},
            "train": phases,
            "track": track,
        }
    )


@dataclass
class Logged:
    """What W&B holds of one of its runs, over all attempts."""

    settings: Any = None
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)


def logged(folder: Path) -> dict[str, Logged]:
    """The runs that W&B kept offline, by their job type."""
    wandb.teardown()  # waits until everything is in the files
    found: dict[str, Logged] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        store, own = DataStore(), Logged()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(data)
            match record.WhichOneof("record_type"):
                case "run":
                    own = found.setdefault(record.run.job_type, own)
                    own.settings = record.run
                case "history":
                    own.history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
                case "summary":
                    own.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
                case "artifact":
                    own.artifacts[record.artifact.type] = [entry.path for entry in record.artifact.manifest.contents]
    return found


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


@pytest.fixture
def track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tracker]:
    """A tracker of an attempt at the run in ``tmp_path``, with W&B offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return lambda **settings: Tracker(config(tmp_path, wandb=True, **settings), tmp_path, is_main=True)


def test_metrics_are_lines_that_a_resumed_run_appends_to(tmp_path: Path) -> None:
    for update in (1, 2):
        tracker = Tracker(config(tmp_path), tmp_path, is_main=True)
        tracker.log("unified", update, loss={"aeb": 0.5})
        tracker.log("unified", update, dev={"aeb": 0.25})
        tracker.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["update"]) for line in lines] == [
        *(("start", 0), ("unified", 1), ("unified", 1)),
        *(("start", 0), ("unified", 2), ("unified", 2)),
    ]
    assert lines[1]["loss"] == {"aeb": 0.5} and lines[5]["dev"] == {"aeb": 0.25}
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert not (tmp_path / "wandb-id").exists()


def test_an_attempt_with_nothing_to_do_leaves_no_line(tmp_path: Path) -> None:
    Tracker(config(tmp_path), tmp_path, is_main=True).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = Tracker(config(tmp_path, wandb=True), tmp_path, is_main=False)
    tracker.log("unified", 1, loss=1.0)
    tracker.show({}, tmp_path)
    tracker.keep(tmp_path)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_nested_values_become_panels() -> None:
    assert flat({"loss": {"aeb": 1, "all": 2}, "lr": 3}) == [("loss/aeb", 1), ("loss/all", 2), ("lr", 3)]


def test_arms_are_runs_of_one_group_that_share_panels(tmp_path: Path, track: Callable[..., Tracker]) -> None:
    tracker = track(name="first", group="all seeds", tags=("seed-1",))
    for update in (2, 4, 6):
        tracker.log("unified", update, loss={"aeb": 1.0 / update})
    tracker.log("unified", 6, dev={"aeb": 0.5})
    tracker.log("plan", 0, digest="abc", groups=[["aeb"]])
    tracker.log("split", 0, before=0.5, after=0.5)
    for arm in ("gdps", "uniform"):
        tracker.log(arm, 4, loss={"aeb": 0.125})
        tracker.log(f"scores-{arm}", 0, aeb={"BLEU": 12.5})
    tracker.close()
    runs = logged(tmp_path)
    assert set(runs) == {"report", "unified", "gdps", "uniform"}
    identity = (tmp_path / "wandb-id").read_text()
    for part, run in runs.items():
        settings = run.settings
        assert (settings.run_id, settings.display_name, settings.run_group) == (
            f"{identity}-{part}",
            f"first {part}",
            "all seeds",
        )
        assert set(settings.tags) == {part, "seed-1"}
    steps = [(line["_step"], line.get("loss/aeb"), line.get("dev/aeb")) for line in runs["unified"].history]
    assert steps == [(2, 0.5, None), (4, 0.25, None), (6, 1 / 6, 0.5)]
    for arm in ("gdps", "uniform"):
        (line,) = runs[arm].history
        assert (line["_step"], line["loss/aeb"], line["scores/aeb/BLEU"]) == (UNIFIED + UPDATES, 0.125, 12.5)
    assert runs["gdps"].summary["plan/digest"] == "abc" and runs["gdps"].summary["split/after"] == 0.5


def test_a_resumed_run_keeps_its_ids_and_leaves_out_what_it_repeats(tmp_path: Path, track: Callable[..., Tracker]) -> None:
    tracker = track()
    tracker.log("unified", 4, loss=2.0)
    tracker.log("unified", 2, loss=3.0)  # as after a kill, from a checkpoint of update 1
    tracker.close()
    before = {part: run.settings.run_id for part, run in logged(tmp_path).items()}
    tracker = track()
    tracker.log("unified", 3, loss=2.5)  # again by another attempt, to which W&B tells nothing offline
    tracker.log("unified", 4, loss=2.0)
    tracker.log("unified", 4, dev={"aeb": 0.5})  # which the first was stopped before
    tracker.log("unified", 6, loss=1.0)
    tracker.close()
    runs = logged(tmp_path)
    assert {part: run.settings.run_id for part, run in runs.items()} == before
    found = [(line["_step"], line.get("loss"), line.get("dev/aeb")) for line in runs["unified"].history]
    assert found == [(4, 2.0, None), (4, None, 0.5), (6, 1.0, None)]


def test_figures_tables_and_speech_are_media_of_the_report(tmp_path: Path, track: Callable[..., Tracker]) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    table = Table(("loss", "gdps"), (("aeb", "0.5"),))
    section = Section("Losses", tables=(table,), pictures=(Picture("curve", figure, "Down."),))
    write_page(tmp_path / "report" / "page.html", "", [section])
    speech = io.BytesIO()
    soundfile.write(speech, np.zeros(1600), 16_000, format="FLAC")
    texts = {"gdps": "hallo", "uniform": "ha"}
    samples = [
        Sample("a", "aeb", 0.1, "salut", "hello", texts, speech.getvalue()),
        Sample("b", "aeb", 0.1, None, "hello", texts, None, "no audio: gone"),
    ]
    tracker = track()
    tracker.show({"Course": [section]}, tmp_path / "report")
    tracker.show_samples(samples)
    tracker.close()
    report = logged(tmp_path)["report"]
    assert report.summary["Course/curve/_type"] == "image-file" and report.summary["Course/curve/caption"] == "Down."
    files = next(tmp_path.glob("wandb/offline-run-*-report")) / "files"
    kept = json.loads((files / report.summary["Course/loss/path"]).read_text())
    assert (kept["columns"], kept["data"]) == (["loss", "gdps"], [["aeb", "0.5"]])
    kept = json.loads((files / report.summary["Translations/path"]).read_text())
    assert kept["columns"] == ["id", "language", "speech", "spoken", "reference", "gdps", "uniform"]
    (first, second) = kept["data"]
    assert first[2:] == ["Audio", "salut", "hello", "hallo", "ha"]
    assert second[2:4] == [None, None]
    assert sum(path.endswith(".wav") for path in report.artifacts["run_table"]) == 1


def test_plan_and_checkpoints_are_artifacts_only_when_asked_for(tmp_path: Path, track: Callable[..., Tracker]) -> None:
    (tmp_path / "plan.json").write_text("{}")
    saved = tmp_path / "checkpoints" / "gdps" / "update-000004" / "state.bin"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(b"1")
    for artifacts, expected in (
        ((), {}),
        (("plan", "checkpoints"), {"plan": ["plan.json"], "model": ["update-000004/state.bin"]}),
    ):
        tracker = track(artifacts=artifacts)
        tracker.keep(tmp_path)
        tracker.close()
        runs = logged(tmp_path)
        assert (runs["gdps"].artifacts if "gdps" in runs else {}) == expected


def test_without_a_login_the_option_and_what_to_do_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: Any) -> Any:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"track\.wandb: .*\n.*No API key configured.*; give WANDB_API_KEY, set WANDB_MODE="):
        Tracker(config(tmp_path, wandb=True), tmp_path, is_main=True)


def test_a_network_that_fails_later_ends_no_run(
    tmp_path: Path, track: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def down(**settings: Any) -> Any:
        raise wandb.errors.CommError("no route")

    tracker = track()
    monkeypatch.setattr(wandb, "init", down)
    tracker.log("unified", 1, loss=1.0)
    tracker.log("unified", 2, loss=0.5)
    tracker.close()
    assert said_of_wandb(capsys) == [DROPPED.format("CommError: no route")]
    assert "unified" not in logged(tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


DROPPED = "W&B is dropped ({}); the run goes on, and metrics.jsonl has it all"


def said_of_wandb(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("W&B")]


@pytest.mark.parametrize(("error", "again"), [("CommError", False), ("CommError", True), ("UsageError", True)])
def test_only_a_new_run_without_a_login_is_refused(
    tmp_path: Path,
    track: Callable[..., Tracker],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: str,
    again: bool,
) -> None:
    """A job that is queued again at night, or meets a network that is down, goes on without W&B."""

    def refuse(**settings: Any) -> Any:
        raise getattr(wandb.errors, error)("not now")

    if again:
        (tmp_path / "wandb-id").write_text("abcdef01")
    monkeypatch.setattr(wandb, "init", refuse)
    tracker = track()
    tracker.log("unified", 1, loss=1.0)
    tracker.close()
    assert said_of_wandb(capsys) == [DROPPED.format(f"{error}: not now")]


KILLED_HELPER = """
import os, signal, sys, subprocess
from pathlib import Path
from gdps_ds.config import Config
from gdps_ds.reporting.tracking import Tracker

folder = Path(sys.argv[1])
tracker = Tracker(Config.model_validate_json(sys.argv[2]), folder, is_main=True)
tracker.log("unified", 2, loss=1.0)
listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
(helper,) = [line.split()[0] for line in listing if "wandb-core" in line and int(line.split()[1]) == os.getpid()]
os.kill(int(helper), signal.SIGTERM)
tracker.log("unified", 4, loss=1.0)
tracker.log("gdps", 4, loss=1.0)
tracker.log("plan", 0, digest="abc")
tracker.show({}, folder)
tracker.keep(folder)
tracker.close()
sys.exit(os.EX_TEMPFAIL)
"""


def test_a_helper_process_that_is_killed_ends_no_run(tmp_path: Path) -> None:
    """As by a scheduler that signals every process of a job; nor is the process's exit code another one."""
    (tmp_path / "plan.json").write_text("{}")
    variables = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONPATH": str(ROOT)}
    settings = config(tmp_path, wandb=True, artifacts=["plan"]).model_dump_json(by_alias=True)
    command = [sys.executable, "-c", KILLED_HELPER, str(tmp_path), settings]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == os.EX_TEMPFAIL, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("W&B")]
    assert len(said) == 1 and said[0].startswith("W&B is dropped ("), done.stderr
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["update"]) for line in lines[1:]] == [("unified", 2), ("unified", 4), ("gdps", 4), ("plan", 0)]


@pytest.mark.parametrize("method", ["show", "show_samples", "keep", "log", "close"])
def test_whatever_wandb_raises_it_is_dropped(
    tmp_path: Path,
    track: Callable[..., Tracker],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    def fail(*arguments: Any) -> None:
        raise ValueError("anything\nat all")

    monkeypatch.setattr(WandbRuns, "__init__", lambda self, config, folder: None)
    for name in ("show", "show_samples", "keep", "log", "close"):
        monkeypatch.setattr(WandbRuns, name, fail if name == method else lambda *arguments: None)
    tracker = track()
    tracker.log("unified", 1, loss=1.0)
    tracker.show({}, tmp_path)
    tracker.show_samples([Sample("a", "aeb", 0.1, None, "hello", {"gdps": "ha"}, None)])
    tracker.keep(tmp_path)
    tracker.close()
    assert said_of_wandb(capsys) == [DROPPED.format("ValueError: anything")]
