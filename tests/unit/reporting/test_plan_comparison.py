from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from gdps_ds.analysis.sketch import Sketches
from gdps_ds.config import PlanConfig
from gdps_ds.reporting.page import breakable
from gdps_ds.reporting.plan_comparison import plans_table, runs_agree_table, sites_table, write_comparison
from gdps_ds.reporting.plan_report import Analysis, analyse, with_interval
from gdps_ds.reporting.style import number
from launchers.analyse import main
from tests.unit.analysis.planted import PlantedSite, plant

CALM, TORN = "encoder.layers.2.ffn2", "encoder.layers.10.ffn2"
SETTINGS = PlanConfig(round_to=8, bootstrap=50)


def planted(labels: tuple[int, ...] = (0, 1, 0, 0), seed: int = 0) -> Sketches:
    sites = {CALM: PlantedSite(between=0.97), TORN: PlantedSite(between=0.4)}
    return plant(labels, sites, noise=0.5, seed=seed).sketches


@pytest.fixture(scope="module")
def runs() -> dict[str, Analysis]:
    """Two runs that find the same, and one that finds other groups."""
    labels = {"one": (0, 1, 0, 0), "two": (0, 1, 0, 0), "other": (0, 0, 1, 1)}
    return {name: analyse(planted(each, seed), SETTINGS, ("ours", "paper")) for seed, (name, each) in enumerate(labels.items())}


def test_tables_show_each_run_and_their_agreement(runs: dict[str, Analysis]) -> None:
    decided = {row[0]: row[1:] for row in plans_table(runs).rows}
    assert list(decided) == [f"{rule}: {name}" for rule in ("ours", "paper") for name in runs]
    assert decided["ours: one"] == ("aeb est gle | bem", TORN, "24 of 64 (37.5%)")
    assert decided["ours: other"][0] == "aeb bem | est gle"
    agree = {row[0]: row[1:] for row in runs_agree_table(runs).rows}
    # Adjusted Rand indices 1, 0 and 0 (three languages and one against two pairs agree by chance): 1 / 3.
    assert agree["ours: between runs"][:3] == ("0.333", "100%", "1.00")
    assert agree["ours: between halves of a run"][:3] == ("1.00", "100%", "1.00")
    conflict = {row[0]: row[1:] for row in sites_table(runs).rows}
    expected = [each.plans["ours"].evidence["sites"][TORN]["weighted_conflict"] for each in runs.values()]
    assert conflict[TORN] == tuple(map(with_interval, expected))


def test_page_lists_rho_of_every_pair(runs: dict[str, Analysis], tmp_path: Path) -> None:
    html = write_comparison(runs, tmp_path / "page").read_text(encoding="utf-8")
    assert "Sharing plans of 3 runs" in html and "http" not in html
    rho = runs["other"].measured[TORN].rho
    shown = [number(float(end[0, 3])) for end in (rho.value, rho.low, rho.high)]
    assert f"<td>{shown[0]} [{shown[1]}, {shown[2]}]</td>" in html and "aeb gle</th>" in html


def test_runs_that_cannot_be_compared_are_named(runs: dict[str, Analysis], tmp_path: Path) -> None:
    fewer = analyse(planted((0, 1, 0)), SETTINGS, ("ours", "paper"))
    with pytest.raises(ValueError, match="the same languages: one has aeb, bem, est, gle; fewer aeb, bem, est"):
        write_comparison({"one": runs["one"], "fewer": fewer}, tmp_path)
    sketches = planted()
    calm = dataclasses.replace(sketches, sites={CALM: sketches.sites[CALM]})
    with pytest.raises(ValueError, match=rf"the same sites: one has {CALM}, {TORN}; calm {CALM}"):
        write_comparison({"one": runs["one"], "calm": analyse(calm, SETTINGS, ("ours", "paper"))}, tmp_path)


def test_launcher_compares_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        planted(seed=seed).save(folder / "sketches.safetensors")
    (tmp_path / "seed1" / "config.yaml").write_text(json.dumps({"plan": {"round_to": 8, "bootstrap": 20}}))
    out = tmp_path / "both"
    arguments = [str(tmp_path / "seed1"), str(tmp_path / "seed2"), "--rule", "ours", "--out", str(out)]
    assert main(arguments) == 0
    assert "ours: between runs" in (out / "comparison.html").read_text(encoding="utf-8")
    assert f"wrote {out / 'comparison.html'}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "seed2").iterdir()) == ["sketches.safetensors"]


def test_long_names_may_break_and_numbers_may_not() -> None:
    assert breakable("encoder.layers.11.ffn2 <0.394>") == "encoder.<wbr>layers.<wbr>11.<wbr>ffn2 &lt;0.394&gt;"
