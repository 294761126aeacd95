"""Tables of a comparison, pinned; and the files that it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gdps_ds.config import DecodeConfig
from gdps_ds.evaluation.seeds import compare_arms
from gdps_ds.plan import SharingPlan
from gdps_ds.reporting.arms_report import (
    ArmRecord,
    comparison_tables,
    costs_table,
    differences_table,
    latex_table,
    plans_table,
    read_record,
    scores_table,
    write_comparison,
)
from gdps_ds.reporting.page import Table
from tests.tiny import LANGUAGES, tiny_plan
from tests.unit.evaluation.texts import system

UNIFORM = SharingPlan.uniform(LANGUAGES)
RUNS = {
    "uniform": {seed: system("", {"aeb": 0.3, "bem": 0.2}, seed=seed) for seed in (1, 2)},
    "gdps": {seed: system("", {"aeb": 0.1, "bem": 0.2}, seed=10 + seed) for seed in (1, 2)},
}
RECORDS = {
    "uniform": {seed: ArmRecord(UNIFORM, 100, 0.0, 0.5, 20.0) for seed in (1, 2)},
    "gdps": {1: ArmRecord(tiny_plan(), 150, 1e-7, 0.25, 16.0), 2: ArmRecord(tiny_plan(), 170, 3e-7, 0.75, None)},
}
EVALUATION = compare_arms(RUNS, ("uniform", "gdps"), DecodeConfig(resamples=50, trials=50))


def test_the_best_arm_comes_first() -> None:
    table = scores_table(EVALUATION, "BLEU")
    assert table.head == ("arm", "aeb", "bem", "mean", "95 %", "sd", "seeds")
    assert [row[0] for row in table.rows] == ["gdps", "uniform"]
    mean = EVALUATION.scores["gdps"]["mean"]["BLEU"]
    assert table.rows[0][3:] == (f"{mean.score:.2f}", f"[{mean.low:.2f}, {mean.high:.2f}]", f"{mean.deviation:.2f}", "2")


def test_differences_have_signs_and_both_p_values() -> None:
    found = [each for each in EVALUATION.differences if each.reference == "uniform"]
    table = differences_table(found)
    (mean,) = [each for each in found if (each.metric, each.row) == ("BLEU", "mean")]
    assert table.rows[0][0] == "BLEU gdps"
    assert table.rows[0][3:] == (
        f"+{mean.difference:.2f}",
        f"[{mean.low:+.2f}, {mean.high:+.2f}]",
        f"{mean.p_utterances:.4f}",
        f"{mean.p_seeds:.4f}",
    )


def test_costs_are_means_over_seeds_and_against_uniform() -> None:
    rows = {row[0]: row[1:] for row in costs_table(RECORDS).rows}
    assert rows["gdps"] == ("160", "+60", "16.0", "+2.00e-07", "0.5000")
    assert costs_table({"gdps": RECORDS["gdps"]}).rows[0][2] == ""


def test_every_seed_shows_its_plan() -> None:
    rows = {row[0]: row[1:] for row in plans_table(RECORDS).rows}
    digest = tiny_plan().digest[:8]
    site = tiny_plan().sites[0].name
    assert rows["gdps, seed 2"] == ("aeb gle | bem est", site, "24 of 48", "preserve, neurons", digest)
    assert rows["uniform, seed 1"][:4] == ("aeb + 3", "none", "", "")


def test_latex_prints_text_as_it_stands() -> None:
    found = latex_table(Table(("arm", "95 %"), (("random_groups", "1.0"),)))
    assert found.splitlines() == [
        "\\begin{tabular}{lr}",
        "\\toprule",
        "arm & 95 \\% \\\\",
        "\\midrule",
        "random\\_groups & 1.0 \\\\",
        "\\bottomrule",
        "\\end{tabular}",
    ]


def test_a_comparison_leaves_its_files(tmp_path: Path) -> None:
    text = write_comparison(EVALUATION, RECORDS, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*(f"comparison.{kind}" for kind in ("txt", "json", "tex", "html")), "arms.png", "arms.svg"}
    html = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "http" not in html and "Difference from uniform" in html
    tree = json.loads((tmp_path / "comparison.json").read_text())
    assert tree["arms"]["gdps"]["2"]["parameters"] == 170
    assert tree["scores"]["gdps"]["mean"]["BLEU"]["by_seed"].keys() == {"1", "2"}
    assert all(title in text for _, title in comparison_tables(EVALUATION, RECORDS))


def test_a_record_is_read_from_what_a_run_leaves(tmp_path: Path) -> None:
    lines = [
        {"phase": "split", "update": 0, "time": 0.0, "arm": "gdps", "before": 1.0, "after": 1.5},
        {"phase": "split", "update": 0, "time": 5.0, "arm": "paper", "before": 1.0, "after": 4.0},
        *({"phase": "gdps", "update": n, "time": 10.0 * n, "seen": {"utterances": 50.0 * n}} for n in (1, 2, 3)),
        {"phase": "gdps", "update": 3, "time": 31.0, "dev": {"all": 0.75}},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "gdps.json").write_text('{"scores": {}, "signatures": {}, "parameters": 7}')
    # 100 and 150 utterances in 10 s each.
    assert read_record(tmp_path, "gdps", tmp_path / "none.json", LANGUAGES) == ArmRecord(
        UNIFORM, 7, 0.5, 0.75, pytest.approx(12.5)
    )
