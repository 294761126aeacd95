"""Score tables as text for people, as JSON for programs and as LaTeX (booktabs) for papers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gdps_ds.evaluation.comparison import Comparison, Evaluation
from gdps_ds.evaluation.metrics import LOWER_IS_BETTER
from gdps_ds.files import atomic_write

Scores = Mapping[str, Mapping[str, float]]
"""Language (or ``mean``) -> metric -> score."""

DECIMALS = {"COMET": 4}
"""COMET runs from about 0 to 1, all other metrics to 100."""
SIGNIFICANT = 0.05
LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
}


def write_tables(evaluation: Evaluation, folder: Path) -> str:
    """Write ``scores.json``, ``scores.txt`` and ``scores.tex``; gives the text."""
    text = evaluation_text(evaluation)
    contents = {
        "scores.json": json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False),
        "scores.txt": text,
        "scores.tex": latex_table(evaluation),
    }
    for name, content in contents.items():
        with atomic_write(folder / name) as file:
            file.write(content + "\n")
    return text


def comparison_table(systems: Mapping[str, Scores], signatures: Mapping[str, str]) -> str:
    """A line per metric and system, a column per row of scores; with two systems, the first one's lead below them.

    A system that was scored by another version may lack a row: its cell says so.
    """
    names, columns = list(systems), list(dict.fromkeys(row for rows in systems.values() for row in rows))
    blocks: list[list[str]] = []
    for metric in signatures:
        blocks += [
            [f"{metric} {name}", *(_cell(metric, _score(systems[name], row, metric)) for row in columns)] for name in names
        ]
        if len(names) == 2:
            pairs = [[_score(systems[name], row, metric) for name in names] for row in columns]
            leads = [None if first is None or second is None else first - second for first, second in pairs]
            blocks.append([f"{metric} difference", *(_cell(metric, lead, signed=True) for lead in leads)])
    notes = [f"{metric}: {signature}" for metric, signature in signatures.items()]
    return "\n".join([*in_columns([["", *columns], *blocks]), *notes])


def _score(rows: Scores, row: str, metric: str) -> float | None:
    return rows.get(row, {}).get(metric)


def _cell(metric: str, value: float | None, signed: bool = False) -> str:
    return "n/a" if value is None else number(metric, value, signed)


def comparisons_table(comparisons: Sequence[Comparison]) -> str:
    """A line per metric, pair of systems and row: difference, interval and p-values."""
    head = ["metric", "first - second", "row", "difference [95 %]", "p bootstrap", "p randomisation"]
    lines = [
        [
            each.metric,
            f"{each.first} - {each.second}",
            each.row,
            number(each.metric, each.difference, signed=True) + _interval(each.metric, each.low, each.high),
            f"{each.p_bootstrap:.4f}",
            f"{each.p_randomisation:.4f}",
        ]
        for each in comparisons
    ]
    return "\n".join(in_columns([head, *lines], left=3))


def evaluation_text(evaluation: Evaluation) -> str:
    """Scores, their intervals, paired tests and what they rest on."""
    points = {
        name: {row: {metric: each.score for metric, each in by_metric.items()} for row, by_metric in rows.items()}
        for name, rows in evaluation.scores.items()
    }
    counts = ", ".join(f"{language} {count}" for language, count in evaluation.utterances.items())
    parts = [f"utterances: {counts}", comparison_table(points, evaluation.signatures), _intervals(evaluation)]
    if evaluation.comparisons:
        parts.append(f"{_tests(evaluation)}\n{comparisons_table(evaluation.comparisons)}")
    parts += remarks(evaluation)
    if "COMET" not in evaluation.signatures:
        parts.append("COMET was not asked for (--comet)")
    return "\n\n".join(parts)


def remarks(evaluation: Evaluation) -> list[str]:
    """What has to be told beside the scores, a line each."""
    empty = [f"{name}: {count} translations are empty" for name, count in evaluation.empty.items() if count]
    return [*empty, *unscored_lines(evaluation.unscored), *evaluation.notes]


def unscored_lines(unscored: Mapping[str, int]) -> list[str]:
    """``unscored``: row of a pair of languages -> utterances without a reference."""
    return [f"{row}: {count} utterances are not scored for want of references" for row, count in unscored.items()]


def latex_table(evaluation: Evaluation) -> str:
    """A ``tabular`` (``\\usepackage{booktabs}``): a block per metric, the best score of a column in bold, and a star where
    approximate randomisation tells a score from the first system's."""
    names = list(evaluation.scores)
    rows = list(evaluation.scores[names[0]])
    p_values = {
        (each.metric, each.row, each.second): each.p_randomisation for each in evaluation.comparisons if each.first == names[0]
    }
    blocks = []
    for metric in evaluation.signatures:
        scores = {name: [evaluation.scores[name][row][metric].score for row in rows] for name in names}
        best = [_best(metric)(column) for column in zip(*scores.values(), strict=True)]
        arrow = "downarrow" if metric in LOWER_IS_BETTER else "uparrow"
        blocks.append(f"\\midrule\n\\multicolumn{{{len(rows) + 1}}}{{l}}{{{latex(metric)} $\\{arrow}$}} \\\\")
        for name in names:
            cells = []
            for row, score, top in zip(rows, scores[name], best, strict=True):
                text = number(metric, score)
                star = "$^{*}$" if p_values.get((metric, row, name), 1.0) < SIGNIFICANT else ""
                cells.append((f"\\textbf{{{text}}}" if len(names) > 1 and text == number(metric, top) else text) + star)
            blocks.append(" & ".join([latex(name), *cells]) + " \\\\")
    notes = [f"% {metric}: {signature}" for metric, signature in evaluation.signatures.items()]
    if evaluation.comparisons:
        notes.append(f"% star: p < {SIGNIFICANT} against {names[0]}; {_tests(evaluation)}")
    head = f"\\begin{{tabular}}{{l{'r' * len(rows)}}}\n\\toprule\n{' & '.join(['', *map(latex, rows)])} \\\\"
    return "\n".join([*notes, head, *blocks, "\\bottomrule\n\\end{tabular}"])


def latex(text: str) -> str:
    """``text`` so that LaTeX prints it as it stands."""
    return re.sub(r"[&%$#_{}\\~^<>|]", lambda found: LATEX_SPECIAL[found[0]], text)


def number(metric: str, value: float, signed: bool = False) -> str:
    decimals = DECIMALS.get(metric, 2)
    return f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"


def _interval(metric: str, low: float, high: float) -> str:
    return f" [{number(metric, low, signed=True)}, {number(metric, high, signed=True)}]"


def _intervals(evaluation: Evaluation) -> str:
    """95 % of the resamples of every score."""
    columns = list(next(iter(evaluation.scores.values())))
    lines = [
        [
            f"{metric} {name}",
            *(f"{number(metric, rows[row][metric].low)} to {number(metric, rows[row][metric].high)}" for row in columns),
        ]
        for metric in evaluation.signatures
        for name, rows in evaluation.scores.items()
    ]
    return "\n".join(in_columns([["95 % intervals", *columns], *lines]))


def _tests(evaluation: Evaluation) -> str:
    tests = evaluation.tests
    return (
        f"paired tests: {tests['resamples']} bootstrap resamples, {tests['trials']} trials of approximate randomisation, "
        f"seed {tests['seed']}; not corrected for the number of tests, the bootstrap's p one-sided as in sacreBLEU"
    )


def _best(metric: str) -> Callable[[Sequence[float]], float]:
    return min if metric in LOWER_IS_BETTER else max


def in_columns(lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Cells in columns, the first ``left`` of them flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
