from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gdps_ds.analysis.planner import fold_weights, make_plan
from gdps_ds.analysis.sketch import SiteSketch, Sketches
from gdps_ds.config import Config, DecodeConfig, PlanConfig
from gdps_ds.config_file import dump_config
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.table import write_utterances
from gdps_ds.evaluation.comparison import compare
from gdps_ds.evaluation.decoding import Translation
from gdps_ds.evaluation.systems import System, write_translations
from gdps_ds.reporting.run_metrics import curves, durations, read_metrics
from gdps_ds.reporting.run_record import RunDir
from gdps_ds.reporting.run_report import finish_report, losses, make_parts, mean_similarity, similarities
from gdps_ds.reporting.samples import Sample, choose, flac, marked, sample_sections, with_audio
from gdps_ds.reporting.score_tables import write_tables
from launchers.report import main
from tests.launch import ROOT
from tests.unit.analysis.planted import PlantedSite, plant
from tests.unit.reporting.test_plan_report import Page

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


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page((finished / "report.html").read_text(encoding="utf-8"))


def shown(run: Path) -> str:
    """All text of the report but its tables, without drawing anything."""
    sections = [section for part in make_parts(RunDir(run)).values() for section in part]
    return "\n".join(text for section in sections for text in (section.title, *section.text, section.summary))


def systems(test: list[Utterance]) -> list[System]:
    right = [Translation(each.id, each.source_lang, "eng", str(each.target_text), each.target_text) for each in test]
    wrong = [dataclasses.replace(row, hypothesis=row.hypothesis.replace("cat", "<b>cow</b>")) for row in right]
    return [System("gdps", tuple(right)), System("uniform", tuple(wrong))]


def test_the_page_needs_nothing_else_and_shows_every_part(finished: Path, page: Page) -> None:
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    html = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|@import", html)
    assert '<meta name="viewport" content="width=device-width' in html
    for text in (
        *(
            "Run some run",
            "complete",
            "Scores",
            "Losses",
            "before and after the split",
            "Sharing plan",
            "Translations from gle",
        ),
        *("Timing", "Configuration", "zero_optimization", f"Split of {TORN}", "no trained arm has been mined"),
    ):
        assert text in page.text, text
    assert "could not be made" not in page.text
    names = {path.name for path in (finished / "report").iterdir()}
    assert {"losses.png", "losses.svg", "scores-BLEU.png", "time.svg", f"mean-similarity-{TORN}.png"} <= names
    assert "report.html" not in names


def test_the_launcher_writes_the_same_page_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "report.html").read_bytes()
    assert main([str(finished)]) == 0
    assert capsys.readouterr().out == f"wrote {finished}/report.html\n"
    assert (finished / "report.html").read_bytes() == before


def test_scores_are_those_of_the_comparison_with_intervals(finished: Path, page: Page) -> None:
    record = RunDir(finished)
    assert record.plan is not None
    evaluation = compare(record.systems, DecodeConfig(resamples=50, trials=100), record.plan.groups)
    table = page.table("BLEU")
    assert list(table) == ["aeb", "bem", "est", "gle", "aeb+est+gle", "mean"]
    found = evaluation.scores["uniform"]["bem"]["BLEU"]
    space = "\N{NO-BREAK SPACE}"
    assert table["bem"][f"uniform [95{space}%]"] == f"{found.score:.2f} [{found.low:.2f},{space}{found.high:.2f}]"
    assert table["mean"][f"gdps [95{space}%]"] == f"100.00 [100.00,{space}100.00]"
    lead = next(each for each in evaluation.comparisons if (each.metric, each.row) == ("BLEU", "mean"))
    assert table["mean"][f"gdps − uniform [95{space}%]"].startswith(f"+{lead.difference:.2f} [")
    assert f"gdps − uniform: +{lead.difference:.2f} BLEU in the mean" in page.text


def test_scores_of_the_evaluation_are_taken_over(run: Path) -> None:
    (zero_shot, _), record = systems(RunDir(run).test_set.values()), RunDir(run)  # type: ignore[arg-type]
    others = [*record.systems, dataclasses.replace(zero_shot, name="zero-shot")]
    write_tables(compare(others, DecodeConfig(resamples=50, trials=100)), run / "evaluation")
    assert set(record.evaluation.scores) == {"gdps", "uniform", "zero-shot"}  # type: ignore[union-attr]
    # One that lacks an arm is older than the run.
    write_tables(compare(others[1:], DecodeConfig(resamples=50, trials=100)), run / "evaluation")
    assert set(record.evaluation.scores) == {"gdps", "uniform"}  # type: ignore[union-attr]


def test_a_run_that_has_just_begun_says_what_is_missing(run: Path) -> None:
    for name in ("summary.json", "plan.json", "sketches.safetensors", "hypotheses/gdps.jsonl", "hypotheses/uniform.jsonl"):
        (run / name).unlink()
    text = shown(run)
    for missing in ("not translated its test set yet", "no sketches of several languages", "has not planned"):
        assert missing in text, missing
    assert "could not be made" not in text
    (overview,) = make_parts(RunDir(run))["Run"]
    assert dict(overview.tables[0].rows)["state"].startswith("not complete")


def test_a_plan_written_by_hand_and_a_model_that_stays_uniform(run: Path) -> None:
    split = {"name": TORN, "hidden": 64, "shared_width": 32}
    for sites, groups in (([split], [["bem"], ["aeb", "est", "gle"]]), ([], [LANGUAGES])):
        (run / "plan.json").write_text(json.dumps({"languages": LANGUAGES, "groups": groups, "sites": sites}))
        text = shown(run)
        assert "written by hand" in text and "could not be made" not in text
    calm = make_plan(plant([0, 0, 0, 0], {TORN: PlantedSite(between=0.99)}, noise=1.0, seed=0).sketches, PlanConfig())
    assert calm.is_uniform
    calm.save(run / "plan.json")
    assert "stays uniform" in shown(run) and "could not be made" not in shown(run)


def test_a_fault_in_one_part_is_shown_and_leaves_the_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text('{"phase": "unified", "update": 1, "time": 1.0}\n{"phase": "uni')
    text = shown(run)
    assert text.count("This part could not be made: DataError") == 3
    assert "metrics.jsonl, line 2: not JSON" in text
    assert "Translations from bem" in text and "BLEU in the mean" in text
    assert "Traceback" in capsys.readouterr().err


def test_a_finished_run_survives_its_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report").write_text("a file where the folder should be")
    said = finish_report(run)
    assert "the run itself is complete" in said and f"python launchers/report.py {run} tries again" in said
    assert "FileExistsError" in said and "Traceback" in capsys.readouterr().err


# Metrics --------------------------------------------------------------------------------------------------------------


def test_an_update_that_was_made_twice_counts_as_the_last_time() -> None:
    found = curves(metrics(), "loss")
    assert found["unified"]["aeb"] == {2: 5.0, 4: 4.0, 6: 3.5, 8: 3.0}
    assert list(found["gdps"]["all"]) == [2, 4]
    assert curves(metrics(), "dev")["uniform"] == {name: {4: 1.9} for name in (*LANGUAGES, "all")}


def test_time_goes_to_the_phase_that_spent_it() -> None:
    found = {each.name: each for each in durations(metrics())}
    assert {name: each.seconds for name, each in found.items()} == {
        "unified": 60.0,  # the 1000 seconds between the attempts are nobody's
        "plan": 30.0,
        "split": 2.0,
        "gdps": 25.0,
        "scores-gdps": 7.0,
        "uniform": 25.0,
        "scores-uniform": 7.0,
    }
    assert (found["unified"].dev_seconds, found["unified"].updates, found["unified"].padding) == (10.0, 8, 0.125)
    # Neither the first line of an attempt nor that of an arm, before which engines are built.
    assert found["unified"].rates == ((4, 5.0), (6, 5.0), (8, 5.0))
    assert found["uniform"].rates == ((4, 5.0),)
    assert [wait for _, wait in found["gdps"].waits] == [0.25, 0.25]


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(DataError, match="no such file; the run has not logged"):
        read_metrics(path)
    path.write_text('{"phase": "a", "update": 1, "time": 2}\n{"phase": "a"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: must be an object with phase, update and time"):
        read_metrics(path)


def test_arms_go_on_from_the_unified_phase_and_the_split_is_marked(run: Path) -> None:
    pictured, _ = losses(RunDir(run))
    axes = pictured.pictures[0].figure.axes[0]
    drawn = [line.get_xydata() for line in axes.get_lines() if len(line.get_xdata()) > 1]
    arms = [points for points in drawn if points[0][0] == UNIFIED and points[-1][0] == UNIFIED + UPDATES]
    assert len(arms) == 2 * len(LANGUAGES)
    assert sorted({float(points[0][1]) for points in arms}) == [3.0, 3.1, 3.2, 3.3]
    marks = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in marks] == [[UNIFIED, UNIFIED]]


# Similarity -----------------------------------------------------------------------------------------------------------


def test_mean_similarity_is_that_of_single_pairs() -> None:
    found = sketches()
    cross, rho = mean_similarity(found, TORN, fold_weights(found, 50))
    gradients = np.moveaxis(found.sites[TORN].core, 0, 2).reshape(4, 16, -1)
    unit = gradients / np.linalg.norm(gradients, axis=2, keepdims=True)

    def mean_cosine(one: int, two: int) -> float:
        return float(np.mean([unit[one, f] @ unit[two, g] for f, g in permutations(range(16), 2)]))

    matrix = np.array([[mean_cosine(one, two) for two in range(4)] for one in range(4)])
    corrected = matrix / np.sqrt(np.outer(np.diagonal(matrix), np.diagonal(matrix)))
    for language in range(4):
        others = [each for each in range(4) if each != language]
        np.testing.assert_allclose(cross.value[language], matrix[language, others].mean(), rtol=1e-10)
        np.testing.assert_allclose(rho.value[language], corrected[language, others].mean(), rtol=1e-10)
    for each in (cross, rho):
        assert (each.low < each.value).all() and (each.value < each.high).all()


def test_the_shared_lane_is_shown_beside_the_baseline_after_the_split(run: Path) -> None:
    before = sketches()
    core = before.sites[TORN].core
    lanes = {
        f"{TORN}.shared": SiteSketch(32, core + core.sum(axis=1, keepdims=True)),
        f"{TORN}.private.0": SiteSketch(32, core),
    }
    dataclasses.replace(before, sites=lanes).save(run / "sketches.gdps.safetensors")
    before.save(run / "sketches.uniform.safetensors")
    (section,) = similarities(RunDir(run))
    assert not section.text
    axes = section.pictures[0].figure.axes[0]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["unified, before", "gdps, after: shared lane", "uniform, after"]
    centres = [np.mean(container.lines[0].get_xdata()) for container in axes.containers]
    assert centres[1] > centres[0] == pytest.approx(centres[2])


# Samples --------------------------------------------------------------------------------------------------------------


def test_speech_in_the_page_is_the_utterance(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    players = re.findall(r'<audio controls preload="metadata"[^>]*src="data:audio/flac;base64,([^"]*)"', html)
    assert len(players) == 3 * len(LANGUAGES)
    original, _ = soundfile.read(next(iter(RunDir(finished).test_set.values())).audio)
    starts = [round(0.25 * number * 16_000) for number in range(5)]
    for player in players:
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(player)))
        assert (rate, len(samples)) == (16_000, 8_000)
        assert min(np.abs(samples - original[start : start + 8_000]).max() for start in starts) < 1e-4


def test_samples_do_not_depend_on_the_order_and_every_language_comes_first_once(tmp_path: Path) -> None:
    test = [utterance(tmp_path, language, number) for language in LANGUAGES for number in range(5)]
    chosen = choose(systems(test), test)
    assert choose(systems(test[::-1]), test) == chosen
    assert [sample.language for sample in chosen] == list(LANGUAGES) * 3
    assert all(sample.hypotheses["gdps"] == sample.reference for sample in chosen)
    many = [dataclasses.replace(test[0], id=str(number), source_lang=f"l{number:03}") for number in range(100)]
    assert len(choose(systems(many), many)) == 100


def test_audio_stays_within_its_limit_and_what_is_left_out_says_so(tmp_path: Path) -> None:
    test = {each.id: each for each in (utterance(tmp_path, language, n) for language in LANGUAGES for n in range(5))}
    chosen = choose(systems(list(test.values())), test.values())
    size = len(flac(test[chosen[0].id]))
    heard = with_audio(chosen, test, limit=round(4.5 * size))
    assert [sample.audio is not None for sample in heard] == [True] * 4 + [False] * 8
    assert all("audio left out: the page holds" in sample.note for sample in heard[4:])


def test_audio_that_is_gone_is_a_note(tmp_path: Path) -> None:
    test = {each.id: each for each in (utterance(tmp_path, language, 0) for language in LANGUAGES)}
    chosen = choose(systems(list(test.values())), test.values())
    Path(test["bem-0"].audio).unlink()
    del test["gle-0"]
    notes = {sample.language: sample.note for sample in with_audio(chosen, test)}
    assert notes["aeb"] == "" and f"{tmp_path}/audio/bem.wav: missing file" in notes["bem"]
    assert notes["gle"] == "no audio: the run's data has no such utterance"
    assert "missing file" in str(sample_sections(with_audio(chosen, test))[1].tables[0].rows[0][1])


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("a b c", "a b c", "a b c"),
        ("a x y c", "a b c", "a <mark>x y</mark> c"),
        ("<i> & b", "a b", "<mark>&lt;i&gt; &amp;</mark> b"),
        ("x <y>", None, "x &lt;y&gt;"),
        ("", "a", "<em>empty</em>"),
    ],
)
def test_words_that_the_reference_lacks_are_marked(hypothesis: str, reference: str | None, expected: str) -> None:
    assert str(marked(hypothesis, reference)) == expected


def test_texts_are_no_markup() -> None:
    sample = Sample("<id>", "aeb", None, "<src>", "<ref>", {"gdps": "<hyp>"}, None, "<note>")
    ((section,), rows) = (sample_sections([sample]), dict(sample_sections([sample])[0].tables[0].rows))
    assert section.tables[0].head == ("<id>", "")
    assert rows == {
        "": "<note>",
        "spoken": "<bdi>&lt;src&gt;</bdi>",
        "reference": "<bdi>&lt;ref&gt;</bdi>",
        "gdps": "<mark>&lt;hyp&gt;</mark>",
    }
    assert type(rows[""]) is str  # escaped by the page


def test_the_command_runs_from_the_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "launchers/report.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr == f"report: {tmp_path} is no run directory: it has no config.yaml\n"
