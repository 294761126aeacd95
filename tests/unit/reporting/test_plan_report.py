from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gdps_ds.analysis.sketch import Sketches
from gdps_ds.analysis.stability import conflict_ratio
from gdps_ds.config import PlanConfig
from gdps_ds.plan import SharingPlan
from gdps_ds.reporting.plan_report import Analysis, analyse, rules_table, with_interval, write_report
from gdps_ds.reporting.style import number
from launchers.analyse import main
from tests.launch import ROOT
from tests.unit.analysis.planted import PlantedSite, plant

CALM, TORN = "encoder.layers.2.ffn2", "encoder.layers.10.ffn2"
SITES = {CALM: PlantedSite(between=0.97), TORN: PlantedSite(between=0.4)}
SETTINGS = PlanConfig(round_to=8, bootstrap=100)


def planted(**changes: object) -> Sketches:
    return plant([0, 1, 0, 0], SITES, **({"noise": 0.5, "seed": 0} | changes)).sketches  # type: ignore[arg-type]


class Page(HTMLParser):
    """Tables as lists of rows, the addresses that the page names, and all its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.in_cell = True
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data.strip()

    def table(self, first: str) -> dict[str, dict[str, str]]:
        """The table whose first heading is ``first``: row -> column -> entry."""
        head, *rows = next(table for table in self.tables if table[0][0] == first)
        return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(planted(), SETTINGS, ("ours", "paper"))


@pytest.fixture(scope="module")
def folder(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(analysis, tmp_path_factory.mktemp("report"), "run <one>").parent


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_numbers_are_those_of_the_evidence(page: Page, analysis: Analysis) -> None:
    plan = analysis.plans["ours"]
    shown = page.table("site")
    assert list(shown) == [CALM, TORN]
    for name, site in plan.evidence["sites"].items():
        row = shown[name]
        assert row["conflict [95 %]"] == with_interval(site["conflict"])
        assert row["conflict × share [95 %]"] == with_interval(site["weighted_conflict"])
        assert row["energy share"] == number(site["energy_share"])
        assert row["delta"] == number(site["delta"])
        assert row["mean purity"] == number(np.mean(site["purity"]))
        assert row["told from 0"] == ("yes" if site["significant"] else "no")
        bem = {end: site["self"][end][1] for end in ("value", "low", "high")}
        assert row["self bem [95 %]"] == with_interval(bem)
    assert plan.summary() in page.text
    tokens = page.table("language")
    assert {language: row["target tokens"] for language, row in tokens.items()} == {
        language: f"{count:.0f}" for language, count in plan.provenance["tokens"].items()
    }
    considered = page.table("groups considered")
    candidate = plan.evidence["grouping"]["candidates"][0]
    assert considered["2"]["languages"] == "aeb est gle | bem"
    assert considered["2"]["replicates that agree"] == f"{candidate['stability']:.1%}"


def test_rules_stand_side_by_side(page: Page, analysis: Analysis) -> None:
    rows = page.table("")
    ours, paper = analysis.plans["ours"], analysis.plans["paper"]
    assert rows["groups"] == {"rule ours": "aeb est gle | bem", "rule paper": "aeb est gle | bem"}
    assert rows["sites"] == {"rule ours": TORN, "rule paper": paper.sites[0].name}
    assert rows["shared neurons"]["rule ours"] == "24 of 64 (37.5%)"
    capacity = paper.evidence["splits"][paper.sites[0].name]["capacity"]
    assert rows["delta at the site"]["rule paper"] == number(capacity["delta"])
    assert rows["digest"] == {"rule ours": ours.digest[:12], "rule paper": paper.digest[:12]}


def test_page_is_whole_without_network(page: Page, folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert page.addresses and all(address.startswith("data:image/png;base64,iVBOR") for address in page.addresses)
    assert not re.search(r"https?://|//\w+\.|@import|url\(|<script|<link", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    assert 'name="viewport"' in html
    assert "run &lt;one&gt;" in html and "<one>" not in html
    pictures = sorted(path.stem for path in folder.glob("*.png"))
    assert len(page.addresses) == len(pictures) and pictures == sorted(path.stem for path in folder.glob("*.svg"))
    for name in ("conflict", "tree-ours", "tree-paper", f"similarity-{CALM}", f"similarity-{TORN}", f"neurons-ours-{TORN}"):
        assert name in pictures
    assert SharingPlan.load(folder / "plan-ours.json").sites[0].name == TORN


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    noise = analyse(planted(noise=1e4), SETTINGS, ("ours", "paper"))
    assert noise.plans["ours"].is_uniform
    page = Page(write_report(noise, tmp_path, "noise").read_text(encoding="utf-8"))
    assert page.table("site")[TORN]["conflict [95 %]"] == "n/a"
    assert not re.search(r"\b(nan|None)\b", page.text.split("setting or version")[0])
    assert page.table("")["decision"] == {"rule ours": "stays uniform", "rule paper": "stays uniform"}


def test_a_run_that_kept_few_neuron_sketches_is_reported(tmp_path: Path) -> None:
    sketches = planted()
    partly = sketches.sites | {CALM: dataclasses.replace(sketches.sites[CALM], neurons=None)}
    sketches = dataclasses.replace(sketches, sites=partly)
    analysis = analyse(sketches, SETTINGS.model_copy(update={"sites": (CALM,)}), ("paper",))
    assert (analysis.plans["paper"].init, len(analysis.plans["paper"].sites)) == ("svd", 1)
    assert "no neuron sketch" in rules_table(analysis.plans).rows[6][1]
    write_report(analysis, tmp_path, "run")
    torn = analyse(sketches, SETTINGS, ("ours",)).plans["ours"]
    assert (torn.init, torn.sites[0].name) == ("neurons", TORN)


def test_one_language_is_reported(tmp_path: Path) -> None:
    alone = analyse(plant([0], SITES, noise=0.5, seed=0).sketches, SETTINGS, ("ours",))
    assert alone.plans["ours"].is_uniform
    assert write_report(alone, tmp_path, "run").is_file()


def test_halves_agree_where_the_signal_is_clear(analysis: Analysis, page: Page) -> None:
    whole = analysis.plans["ours"]
    for half in analysis.halves["ours"]:
        assert half.groups == whole.groups and [site.name for site in half.sites] == [TORN]
        conflict = whole.evidence["splits"][TORN]["neurons"]["conflict"]
        assert conflict_ratio(conflict, half.sites[0].shared) < 0.5
    tables = [table for table in page.tables if table[1][0] in {"ours: all folds", "ours: even against odd folds"}]
    assert [row[0] for row in tables[0][1:4]] == ["ours: all folds", "ours: even folds", "ours: odd folds"]
    rho = number(analysis.halves_agree["ours"].rho)
    assert tables[1][1] == ["ours: even against odd folds", "1.00", "100%", "1.00", rho]


def test_every_method_of_clustering_is_shown(page: Page) -> None:
    shown = page.table("method")
    assert list(shown) == ["average linkage", "Ward linkage", "k-means"]
    assert shown["k-means"]["ours, on rho"] == "aeb est gle | bem" and "paper, on cosine" in shown["k-means"]


def test_too_few_folds_for_halves_are_said(tmp_path: Path) -> None:
    few = analyse(planted(folds=2), SETTINGS, ("ours",))
    assert few.halves == {"ours": ()} and not few.halves_agree
    page = Page(write_report(few, tmp_path, "run").read_text(encoding="utf-8"))
    assert "There are too few folds" in page.text


def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    planted().save(folder / "sketches.safetensors")
    return folder


def test_launcher_takes_the_settings_of_the_run_and_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_dir(tmp_path)
    (folder / "config.yaml").write_text("plan: {round_to: 8, bootstrap: 50, width: constant}\n")
    plan = analyse(planted(), PlanConfig(round_to=8, bootstrap=50, width="constant"), ("ours",))
    plan.plans["ours"].save(folder / "plan.json")
    assert main([str(folder), "--rule", "ours"]) == 0
    assert f"The run applied plan {plan.plans['ours'].digest[:12]}, which is the plan of rule ours" in (
        folder / "analysis" / "report.html"
    ).read_text(encoding="utf-8")
    out = tmp_path / "other"
    assert main([str(folder), "plan.shared=0.5", "--rule", "paper", "--out", str(out), "plan.bootstrap=60"]) == 0
    settings = json.loads((out / "plan-paper.json").read_text())["provenance"]["settings"]
    assert (settings["shared"], settings["bootstrap"], settings["width"]) == (0.5, 60, "constant")
    assert "not a plan below" in (out / "report.html").read_text(encoding="utf-8")
    assert not (out / "plan-ours.json").exists()
    assert "32 of 64 neurons shared" in capsys.readouterr().out


def test_launcher_needs_a_sketch_file_only(tmp_path: Path) -> None:
    """In a fresh interpreter: neither the model's libraries nor a GPU's are imported."""
    planted().save(tmp_path / "mined.safetensors")
    code = (
        "import sys; from launchers.analyse import main; "
        "code = main(['--sketches', sys.argv[1], '--rule', 'ours', 'plan.round_to=8', 'plan.bootstrap=20']); "
        "assert not {'transformers', 'deepspeed', 'matplotlib.pyplot'} & set(sys.modules); sys.exit(code)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mined.safetensors")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "analysis" / "report.html").is_file()


def test_launcher_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fault(*arguments: str) -> str:
        assert main(arguments) == 2
        return capsys.readouterr().err

    assert f"no file {tmp_path / 'sketches.safetensors'}" in fault(str(tmp_path))
    (tmp_path / "sketches.safetensors").write_text("nonsense")
    assert "sketches.safetensors is no sketch file" in fault(str(tmp_path))
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    assert "model.safetensors is no sketch file" in fault("--sketches", str(tmp_path / "model.safetensors"))
    folder = run_dir(tmp_path)
    assert "groups=2: only plan.key=value can be set here" in fault(str(folder), "groups=2")
    assert "plan.grups: unknown key; did you mean 'groups'?" in fault(str(folder), "plan.grups=2")
    assert "plan.round_to: no multiple of 64 below the hidden width 64" in fault(str(folder), "plan.bootstrap=20")
    for arguments in ([], [str(folder), str(folder)], [str(folder), str(folder), "--sketches", "x", "--out", "y"]):
        with pytest.raises(SystemExit):
            main(arguments)
