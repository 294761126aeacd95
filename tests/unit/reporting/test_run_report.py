from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import yaml

from gdps_ds.analysis.planner import fold_weights, make_plan
from gdps_ds.analysis.sketch import SiteSketch
from gdps_ds.config import DecodeConfig, PlanConfig
from gdps_ds.config_file import read_sections
from gdps_ds.data.manifest import DataError
from gdps_ds.evaluation.comparison import compare
from gdps_ds.evaluation.systems import read_translations, write_translations
from gdps_ds.reporting.run_metrics import curves, durations, read_metrics
from gdps_ds.reporting.run_record import RunDir
from gdps_ds.reporting.run_report import PARTS, finish_report, losses, make_parts, mean_similarity, scores, similarities
from gdps_ds.reporting.score_tables import write_tables
from launchers.report import main
from tests.launch import ROOT
from tests.unit.analysis.planted import PlantedSite, plant
from tests.unit.reporting.runs import (
    LANGUAGES,
    TORN,
    UNIFIED,
    UPDATES,
    metrics,
    sketches,
    systems,
)
from tests.unit.reporting.test_plan_report import Page


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page((finished / "report.html").read_text(encoding="utf-8"))


def shown(run: Path) -> str:
    """All text of the report but its tables, without drawing anything."""
    sections = [section for part in make_parts(RunDir(run)).values() for section in part]
    return "\n".join(text for section in sections for text in (section.title, *section.text, section.summary))


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


def test_arms_are_tested_against_each_other_where_there_is_no_reference(run: Path) -> None:
    for old, new in {"gdps": "paper", "uniform": "wide"}.items():
        (run / "hypotheses" / f"{old}.jsonl").rename(run / "hypotheses" / f"{new}.jsonl")
    tree = read_sections(run / "config.yaml")
    tree["run"]["arms"] = ["paper", "wide"]
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    evaluation = RunDir(run).evaluation
    assert evaluation is not None
    assert {(each.first, each.second) for each in evaluation.comparisons} == {("paper", "wide")}


def test_scores_of_the_evaluation_are_taken_over(run: Path) -> None:
    (zero_shot, _), record = systems(RunDir(run).test_set.values()), RunDir(run)  # type: ignore[arg-type]
    others = [*record.systems, dataclasses.replace(zero_shot, name="zero-shot")]
    write_tables(compare(others, DecodeConfig(resamples=50, trials=100)), run / "evaluation")
    assert set(record.evaluation.scores) == {"gdps", "uniform", "zero-shot"}  # type: ignore[union-attr]
    # One that lacks an arm is older than the run.
    write_tables(compare(others[1:], DecodeConfig(resamples=50, trials=100)), run / "evaluation")
    assert set(record.evaluation.scores) == {"gdps", "uniform"}  # type: ignore[union-attr]


def test_scores_of_another_version_are_refused_by_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores by language alone, as evaluations once were, and half a file; the other parts are made."""
    path = run / "evaluation" / "scores.json"
    path.parent.mkdir()
    for text in (json.dumps({"scores": {"gdps": {"aeb": 12.5}}}), '{"scores"'):
        path.write_text(text)
        made = make_parts(RunDir(run))
        (section,) = made["Scores"]
        assert f"{path}: not scores as this version writes them" in section.text[0]
        assert "run launchers/evaluate.py again, or remove the file" in section.text[0]
        assert len(made["Losses"]) > 1
        told = capsys.readouterr().err
        assert "report: Scores: " in told and "Traceback" not in told


def test_what_could_not_be_translated_was_cut_or_is_left_out_is_shown(run: Path) -> None:
    path = run / "hypotheses" / "gdps.jsonl"
    first, second, *rest = read_translations(path)
    rows = [dataclasses.replace(first, pieces=0, hypothesis=""), dataclasses.replace(second, cut=True), *rest]
    settings = DecodeConfig(beams=2).with_pieces_of(30.0)
    write_translations(path, rows, settings)
    (run / "notes.txt").write_text("bem: the dev loss leaves out 3 longer than data.max_frames\n")
    (section, *_) = scores(RunDir(run))
    assert [line for line in section.text if "gdps: " in line or "left" in line or "leaves" in line or "settings" in line] == [
        "bem: the dev loss leaves out 3 longer than data.max_frames.",
        "gdps: 1 translations are empty.",
        "gdps was decoded with other settings: decode.beams 2 instead of 5.",
        "with which settings these were decoded is not known: uniform.",
        "gdps: aeb: 1 of 5 utterances could not be translated (no usable audio); their lines are empty.",
        "gdps: aeb: 1 of 5 translations were cut at decode.max_new_tokens.",
    ]


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


def test_a_fault_in_one_part_is_shown_and_leaves_the_others(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a file is the cause of is told in a line, any other with its traceback."""
    (run / "metrics.jsonl").write_text('{"phase": "unified", "update": 1, "time": 1.0}\n{"phase": "uni')
    text = shown(run)
    assert text.count(f"This part could not be made: {run}/metrics.jsonl, line 2: not JSON") == 3
    assert "Translations from bem" in text and "BLEU in the mean" in text
    told = capsys.readouterr().err
    assert told.count("metrics.jsonl, line 2: not JSON") == 3 and "Traceback" not in told
    monkeypatch.setitem(PARTS, "Plan", lambda run: run.config["nothing"])
    assert "This part could not be made: KeyError" in shown(run)
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


def test_the_command_runs_from_the_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "launchers/report.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr == f"report: {tmp_path} is no run directory: it has no config.yaml\n"
