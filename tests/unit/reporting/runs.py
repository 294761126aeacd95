"""A finished run of four languages, made without training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gdps_ds.analysis.planner import make_plan
from gdps_ds.analysis.sketch import Sketches
from gdps_ds.config import Config, PlanConfig
from gdps_ds.config_file import dump_config
from gdps_ds.data.manifest import Utterance
from gdps_ds.data.table import write_utterances
from gdps_ds.evaluation.decoding import Translation
from gdps_ds.evaluation.systems import System, write_translations
from gdps_ds.reporting.run_report import finish_report
from tests.unit.analysis.planted import PlantedSite, plant

CALM, TORN = "encoder.layers.2.ffn2", "encoder.layers.10.ffn2"
LANGUAGES = ("aeb", "bem", "est", "gle")
WORDS = ("the", "small", "dog", "saw", "a", "big", "cat", "on", "the", "old", "wall", "near", "my", "house", "today")
PLAN = {"round_to": 8, "bootstrap": 100, "sites": [TORN]}
UNIFIED, UPDATES = 8, 4


def sketches(noise: float = 0.5) -> Sketches:
    sites = {CALM: PlantedSite(between=0.97), TORN: PlantedSite(between=0.4)}
    return plant([0, 1, 0, 0], sites, noise=noise, seed=0).sketches


def utterance(folder: Path, language: str, number: int) -> Utterance:
    """Half a second of noise in a file that is longer, and a target text."""
    path = folder / "audio" / f"{language}.wav"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        samples = np.random.default_rng(len(language)).uniform(-0.5, 0.5, 48_000)
        soundfile.write(path, samples, 16_000, subtype="PCM_16")
    text = " ".join(WORDS[number : number + 8])
    return Utterance(f"{language}-{number}", str(path), language, "eng", text, f"<{language}> {number}", 0.25 * number, 0.5)


def metrics() -> list[dict]:
    """Ten seconds between the lines of both attempts; the second repeats update 4 and starts 1000 s after the first."""
    lines: list[dict] = [{"phase": "start", "update": 0, "time": 0.0}]

    def add(phase: str, update: int, seconds: float = 10.0, **values: object) -> None:
        lines.append({"phase": phase, "update": update, "time": lines[-1]["time"] + seconds} | values)

    def train(phase: str, update: int, loss: float) -> None:
        by_language = {name: loss + place / 10 for place, name in enumerate((*LANGUAGES, "all"))}
        add(phase, update, loss=by_language, seen={"tokens": 9.0, "utterances": 50.0}, data_wait=0.25, padding=0.125)

    train("unified", 2, 5.0)
    train("unified", 4, 4.5)
    add("start", 0, 1000.0)
    train("unified", 4, 4.0)
    for update in (6, 8):
        train("unified", update, 5.0 - update / 4)
        add("unified", update, 5.0, dev={name: 3.0 - update / 8 for name in (*LANGUAGES, "all")})
    add("plan", 0, 30.0, digest="0", sites=1, groups=[["bem"], ["aeb", "est", "gle"]])
    add("split", 0, 2.0, before=2.0, after=2.0)
    for arm, gain in (("gdps", 0.2), ("uniform", 0.1)):
        for update in (2, 4):
            train(arm, update, 3.0 - gain)
        add(arm, 4, 5.0, dev={name: 2.0 - gain for name in (*LANGUAGES, "all")})
        add(f"scores-{arm}", 0, 7.0)
    return lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four languages with its report; gdps translates without fault, uniform not."""
    tmp_path = tmp_path_factory.mktemp("runs")
    folder = tmp_path / "some run"
    folder.mkdir()
    config = Config.model_validate(
        {
            "deepspeed": "zero.json",
            "run": {"dir": str(folder)},
            "data": {"languages": LANGUAGES, "corpora": [{"layout": "manifest", "root": "."}]},
            "train": {"unify": {"updates": UNIFIED, "lr": 0.1}, "specialise": {"updates": UPDATES, "lr": 0.1}},
            "plan": PLAN,
            "decode": {"resamples": 50, "trials": 100},
        }
    )
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "deepspeed.json").write_text('{"zero_optimization": {"stage": 2}}')
    (folder / "summary.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()))
    sketches().save(folder / "sketches.safetensors")
    make_plan(sketches(), PlanConfig.model_validate(PLAN)).save(folder / "plan.json")
    test = [utterance(tmp_path, language, number) for language in LANGUAGES for number in range(5)]
    write_utterances(folder / "data" / "test.arrow", test, "key")
    for system in systems(test):
        write_translations(folder / "hypotheses" / f"{system.name}.jsonl", system.translations)
    assert finish_report(folder) == f"report: {folder}/report.html"
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("report*")))


def systems(test: list[Utterance]) -> list[System]:
    right = [Translation(each.id, each.source_lang, "eng", str(each.target_text), each.target_text) for each in test]
    wrong = [dataclasses.replace(row, hypothesis=row.hypothesis.replace("cat", "<b>cow</b>")) for row in right]
    return [System("gdps", tuple(right)), System("uniform", tuple(wrong))]
