from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gdps_ds.config import DecodeConfig
from gdps_ds.evaluation.comparison import Comparison, Estimate, Evaluation, compare
from gdps_ds.reporting.score_tables import (
    comparison_table,
    comparisons_table,
    evaluation_text,
    latex,
    latex_table,
    write_tables,
)
from tests.unit.evaluation.texts import system

NAMES = ("gdps", "uniform_50%")


def evaluation(p: float = 0.01, comet: bool = True) -> Evaluation:
    """Two systems, one language."""
    values = {"gdps": {"BLEU": 12.5, "TER": 50.0, "COMET": 0.73215}, "uniform_50%": {"BLEU": 10.0, "TER": 40.0, "COMET": 0.7}}
    metrics = [metric for metric in values["gdps"] if comet or metric != "COMET"]
    return Evaluation(
        scores={
            name: {
                row: {
                    metric: Estimate(values[name][metric], values[name][metric] - 1, values[name][metric] + 1)
                    for metric in metrics
                }
                for row in ("aeb", "mean")
            }
            for name in NAMES
        },
        comparisons=tuple(
            Comparison(metric, row, *NAMES, values["gdps"][metric] - values["uniform_50%"][metric], -1.0, 4.25, 0.5, p)
            for metric in metrics
            for row in ("aeb", "mean")
        ),
        signatures={metric: f"sig|{metric}" for metric in metrics},
        utterances={"aeb": 100},
        unscored={"gle": 7},
        empty={"gdps": 0, "uniform_50%": 3},
        tests={"resamples": 1000, "trials": 10_000, "seed": 12345},
    )


def test_systems_stand_below_each_other_and_two_have_a_difference() -> None:
    scores = {"BLEU": 10.0, "TER": 50.0}
    better = {"BLEU": 12.5, "TER": 40.0}
    lines = comparison_table(
        {"gdps": {"aeb": better, "mean": better}, "uniform": {"aeb": scores, "mean": scores}}, {"BLEU": "sig|a", "TER": "sig|b"}
    ).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["aeb", "mean"],
        ["BLEU", "gdps", "12.50", "12.50"],
        ["BLEU", "uniform", "10.00", "10.00"],
        ["BLEU", "difference", "+2.50", "+2.50"],
    ]
    assert lines[6].split() == ["TER", "difference", "-10.00", "-10.00"]
    assert lines[7:] == ["BLEU: sig|a", "TER: sig|b"]
    assert len({len(line) for line in lines[:7]}) == 1


def test_rows_that_a_system_lacks_are_shown_as_such() -> None:
    """One arm was scored before a language had two targets, the other after."""
    ten = {"BLEU": 10.0}
    systems = {"old": {"que": ten, "mean": ten}, "new": {"que-eng": ten, "que-spa": ten, "mean": ten}}
    lines = comparison_table(systems, {"BLEU": "sig"}).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["que", "mean", "que-eng", "que-spa"],
        ["BLEU", "old", "10.00", "10.00", "n/a", "n/a"],
        ["BLEU", "new", "n/a", "10.00", "10.00", "10.00"],
        ["BLEU", "difference", "n/a", "+0.00", "n/a", "n/a"],
    ]


def test_one_system_or_three_have_no_difference() -> None:
    scores = {"aeb": {"BLEU": 10.0}, "mean": {"BLEU": 10.0}}
    for names in (["a"], ["a", "b", "c"]):
        assert "difference" not in comparison_table(dict.fromkeys(names, scores), {"BLEU": "sig"})


def test_comparisons_show_difference_interval_and_both_p_values() -> None:
    line = comparisons_table(evaluation().comparisons).splitlines()[1]
    assert re.split(r"  +", line) == ["BLEU", "gdps - uniform_50%", "aeb", "+2.50 [-1.00, +4.25]", "0.5000", "0.0100"]


def test_the_text_tells_what_is_missing() -> None:
    text = evaluation_text(evaluation(comet=False))
    assert "utterances: aeb 100" in text
    assert "uniform_50%: 3 translations are empty" in text and "gdps: 0" not in text
    assert "gle: 7 utterances are not scored for want of references" in text
    assert "COMET was not asked for (--comet)" in text
    assert "1000 bootstrap resamples, 10000 trials of approximate randomisation, seed 12345" in text
    assert "COMET was not" not in evaluation_text(evaluation())


def test_comet_has_four_decimals() -> None:
    text = evaluation_text(evaluation())
    assert re.search(r"COMET gdps +0\.7321 +0\.7321", text)
    assert re.search(r"BLEU gdps +11\.50 to 13\.50", text)


def test_latex_is_a_booktabs_table() -> None:
    lines = latex_table(evaluation(p=0.04)).splitlines()
    assert lines[0] == "% BLEU: sig|BLEU"
    body = lines[lines.index("\\begin{tabular}{lrr}") :]
    assert body == [
        "\\begin{tabular}{lrr}",
        "\\toprule",
        " & aeb & mean \\\\",
        "\\midrule",
        "\\multicolumn{3}{l}{BLEU $\\uparrow$} \\\\",
        "gdps & \\textbf{12.50} & \\textbf{12.50} \\\\",
        "uniform\\_50\\% & 10.00$^{*}$ & 10.00$^{*}$ \\\\",
        "\\midrule",
        "\\multicolumn{3}{l}{TER $\\downarrow$} \\\\",
        "gdps & 50.00 & 50.00 \\\\",
        "uniform\\_50\\% & \\textbf{40.00}$^{*}$ & \\textbf{40.00}$^{*}$ \\\\",
        "\\midrule",
        "\\multicolumn{3}{l}{COMET $\\uparrow$} \\\\",
        "gdps & \\textbf{0.7321} & \\textbf{0.7321} \\\\",
        "uniform\\_50\\% & 0.7000$^{*}$ & 0.7000$^{*}$ \\\\",
        "\\bottomrule",
        "\\end{tabular}",
    ]


def test_a_star_needs_a_small_p_value() -> None:
    assert "$^{*}$" not in latex_table(evaluation(p=0.05))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5% #1 $x {y}", "a\\_b \\& 5\\% \\#1 \\$x \\{y\\}"),
        ("\\~^", "\\textbackslash{}\\textasciitilde{}\\textasciicircum{}"),
        ("a<b>|c", "a\\textless{}b\\textgreater{}\\textbar{}c"),
        ("chrF++", "chrF++"),
    ],
)
def test_latex_prints_names_as_they_are(text: str, expected: str) -> None:
    assert latex(text) == expected


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    systems = [system("good", {"aeb": 0.1, "bem": 0.1}, count=20), system("poor", {"aeb": 0.3, "bem": 0.2}, count=20, seed=2)]
    found = compare(systems, DecodeConfig(resamples=20, trials=20))
    text = write_tables(found, tmp_path)
    assert (tmp_path / "scores.txt").read_text() == text + "\n"
    tree = json.loads((tmp_path / "scores.json").read_text())
    assert tree == json.loads(json.dumps(found.to_dict()))
    bleu = tree["scores"]["good"]["mean"]["BLEU"]
    assert f"{bleu['score']:.2f}" in text and f"{bleu['score']:.2f}" in (tmp_path / "scores.tex").read_text()
    assert set(bleu) == {"score", "low", "high"}


def test_notes_stand_below_the_scores() -> None:
    note = "gdps: aeb: 2 of 100 translations were cut at decode.max_new_tokens"
    assert f"\n\n{note}" in evaluation_text(replace(evaluation(), notes=(note,)))
