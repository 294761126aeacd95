"""A comparison of arms as text, JSON, LaTeX, a figure and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gdps_ds.analysis.arms import REFERENCES, UNIFORM
from gdps_ds.evaluation.arm_scores import read_arm_scores
from gdps_ds.evaluation.metrics import MEAN
from gdps_ds.evaluation.seeds import METRICS, ArmScore, ArmsEvaluation, Difference
from gdps_ds.files import atomic_write
from gdps_ds.plan import SharingPlan
from gdps_ds.reporting.page import Picture, Section, Table, write_page
from gdps_ds.reporting.run_metrics import METRICS_FILE, durations, read_metrics
from gdps_ds.reporting.score_tables import in_columns, latex, number, unscored_lines
from gdps_ds.reporting.style import INK, SHARED_COLOUR, TEXT, colour_of, group_name, panels


@dataclass(frozen=True)
class ArmRecord:
    """What one seed's run says of an arm besides its translations.

    Attributes:
        plan: what its model is split by.
        parameters: of its model.
        jump: loss of one dev batch after the split minus before; 0 without a split.
        dev: last dev loss per token, over all languages.
        rate: utterances a second in training: the median over stretches between log lines; None where there is but one line.
    """

    plan: SharingPlan
    parameters: int
    jump: float
    dev: float | None
    rate: float | None


Records = Mapping[str, Mapping[int, ArmRecord]]
"""Arm -> seed -> record."""


def read_record(run_dir: Path, arm: str, plan: Path, languages: Sequence[str]) -> ArmRecord:
    """The record of a finished arm; ``plan`` is its file, which a uniform arm does not have.

    Raises:
        DataError: the run's metrics.jsonl or the arm's scores are missing, damaged or of another version.
    """
    lines = read_metrics(run_dir / METRICS_FILE)
    jumps = [line["after"] - line["before"] for line in lines if line["phase"] == "split" and line.get("arm") == arm]
    dev = [line["dev"]["all"] for line in lines if line["phase"] == arm and "dev" in line]
    rates = [rate for each in durations(lines) if each.name == arm for _, rate in each.rates]
    return ArmRecord(
        SharingPlan.load(plan) if plan.is_file() else SharingPlan.uniform(languages),
        read_arm_scores(run_dir / "scores" / f"{arm}.json").parameters,
        jumps[0] if jumps else 0.0,
        dev[-1] if dev else None,
        float(np.median(rates)) if rates else None,
    )


def write_comparison(evaluation: ArmsEvaluation, records: Records, folder: Path) -> str:
    """Write ``comparison.txt``, ``.json``, ``.tex`` and ``.html``, and the figure as PNG and SVG; gives the text."""
    text = comparison_text(evaluation, records)
    costs = {
        arm: {seed: asdict(each) | {"plan": each.plan.digest} for seed, each in by_seed.items()}
        for arm, by_seed in records.items()
    }
    tables = [table for table, _ in comparison_tables(evaluation, records)]
    contents = {
        "txt": text,
        "json": json.dumps(evaluation.to_dict() | {"arms": costs}, indent=2, ensure_ascii=False),
        "tex": "\n\n".join([*(f"% {note}" for note in notes(evaluation)), *map(latex_table, tables)]),
    }
    for kind, content in contents.items():
        with atomic_write(folder / f"comparison.{kind}") as file:
            file.write(content + "\n")
    picture = Picture("arms", arms_figure(evaluation), "Mean BLEU over languages and seeds, and its difference from uniform.")
    sections = [
        Section("", notes(evaluation), pictures=(picture,)),
        *(Section(title, tables=(table,)) for table, title in comparison_tables(evaluation, records)),
    ]
    write_page(folder / "comparison.html", "Comparison of arms", sections)
    return text


def comparison_text(evaluation: ArmsEvaluation, records: Records) -> str:
    parts = [
        f"{title}\n" + "\n".join(in_columns([table.head, *table.rows]))
        for table, title in comparison_tables(evaluation, records)
    ]
    return "\n\n".join([*parts, "\n".join(notes(evaluation))])


def notes(evaluation: ArmsEvaluation) -> tuple[str, ...]:
    """What the figures rest on."""
    tests, counts = evaluation.tests, ", ".join(f"{lang} {count}" for lang, count in evaluation.utterances.items())
    return (
        f"Test utterances: {counts}. Scores are means over seeds; brackets hold 95 % of {tests['resamples']} bootstrap "
        "resamples of seeds and utterances (few seeds make them too narrow); sd is the standard deviation over seeds.",
        f"p (utterances): approximate randomisation of the test set, {tests['trials']} trials, these seeds given. p (seeds): "
        "paired t-test over seeds. Neither is corrected for the number of tests.",
        *(f"{line}." for line in (*unscored_lines(evaluation.unscored), *evaluation.notes)),
        *(f"{metric}: {signature}" for metric, signature in evaluation.signatures.items()),
    )


def comparison_tables(evaluation: ArmsEvaluation, records: Records) -> list[tuple[Table, str]]:
    """Tables with their titles, from top to bottom."""
    tables = [(scores_table(evaluation, metric), f"{metric}: mean over seeds") for metric in METRICS]
    for reference in REFERENCES:
        found = [each for each in evaluation.differences if each.reference == reference]
        if found:
            tables.append((differences_table(found), f"Difference from {reference}"))
    return [
        *tables,
        (costs_table(records), "What an arm costs"),
        (plans_table(records), "Plans"),
    ]


def scores_table(evaluation: ArmsEvaluation, metric: str) -> Table:
    """A row an arm, best mean first."""
    rows = [row for row in next(iter(evaluation.scores.values())) if row != MEAN]
    lines = []
    for arm, by_row in _ranked(evaluation, metric):
        mean = by_row[MEAN]
        deviation = "" if mean.deviation is None else number(metric, mean.deviation)
        cells = [number(metric, by_row[row].score) for row in rows]
        bracket = f"[{number(metric, mean.low)}, {number(metric, mean.high)}]"
        lines.append((arm, *cells, number(metric, mean.score), bracket, deviation, str(len(mean.by_seed))))
    return Table(("arm", *rows, "mean", "95 %", "sd", "seeds"), tuple(lines))


def differences_table(differences: Sequence[Difference]) -> Table:
    """A row an arm and metric: differences in each language, in the mean with its interval, and p-values of the latter."""
    rows = list(dict.fromkeys(each.row for each in differences if each.row != MEAN))
    found = {(each.metric, each.arm, each.row): each for each in differences}
    lines = []
    for metric in METRICS:
        means = sorted((each for each in differences if (each.metric, each.row) == (metric, MEAN)), key=lambda x: -x.difference)
        for mean in means:
            cells = [number(metric, found[metric, mean.arm, row].difference, signed=True) for row in rows]
            bracket = f"[{number(metric, mean.low, signed=True)}, {number(metric, mean.high, signed=True)}]"
            p_seeds = "" if mean.p_seeds is None else f"{mean.p_seeds:.4f}"
            total = number(metric, mean.difference, signed=True)
            lines.append((f"{metric} {mean.arm}", *cells, total, bracket, f"{mean.p_utterances:.4f}", p_seeds))
    return Table(("", *rows, "mean", "95 %", "p (utterances)", "p (seeds)"), tuple(lines))


def costs_table(records: Records) -> Table:
    """Parameters, speed, and what the split and the training did to the loss; means over seeds."""
    uniform = records.get(UNIFORM, {})
    lines = []
    for arm, by_seed in records.items():
        each = list(by_seed.values())
        added = [record.parameters - uniform[seed].parameters for seed, record in by_seed.items() if seed in uniform]
        rates = [record.rate for record in each if record.rate is not None]
        dev = [record.dev for record in each if record.dev is not None]
        lines.append(
            (
                arm,
                f"{np.mean([record.parameters for record in each]):.0f}",
                f"{np.mean(added):+.0f}" if added else "",
                f"{np.mean(rates):.1f}" if rates else "",
                f"{np.mean([record.jump for record in each]):+.2e}",
                f"{np.mean(dev):.4f}" if dev else "",
            )
        )
    return Table(("arm", "parameters", "added", "train utterances/s", "loss jump at the split", "last dev loss"), tuple(lines))


def plans_table(records: Records) -> Table:
    """A row an arm and seed; arms of one plan and one optimiser are the same experiment, which shows here."""
    lines = []
    for arm, by_seed in records.items():
        for seed, record in by_seed.items():
            plan = record.plan
            shared = ", ".join(f"{len(site.shared)} of {site.hidden}" for site in plan.sites)
            sites = ", ".join(site.name for site in plan.sites)
            groups = " | ".join(map(group_name, plan.groups))
            how = f"{plan.width}, {plan.init}" if plan.sites else ""
            lines.append((f"{arm}, seed {seed}", groups, sites or "none", shared, how, plan.digest[:8]))
    return Table(("arm", "groups", "sites", "shared", "width, init", "plan"), tuple(lines))


def latex_table(table: Table) -> str:
    """A ``tabular`` (``\\usepackage{booktabs}``)."""
    lines = [" & ".join(map(latex, row)) + " \\\\" for row in (table.head, *table.rows)]
    columns = f"l{'r' * (len(table.head) - 1)}"
    body = "\n".join([lines[0], "\\midrule", *lines[1:]])
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}"


def arms_figure(evaluation: ArmsEvaluation) -> Figure:
    """Mean BLEU of every arm, and its difference from uniform where that is there: intervals, and a dot a seed."""
    metric = METRICS[0]
    ranked = [arm for arm, _ in _ranked(evaluation, metric)][::-1]
    scores = {arm: evaluation.scores[arm][MEAN][metric] for arm in ranked}
    leads = {
        each.arm: each for each in evaluation.differences if (each.metric, each.row, each.reference) == (metric, MEAN, UNIFORM)
    }
    figure, axes = panels(2 if leads else 1, (0.26 * len(ranked) + 0.9) * (2 if leads else 1))
    shown: list[Mapping[str, ArmScore | Difference]] = [scores, leads]
    for own, points, label in zip(axes, shown, (f"mean {metric}", f"{metric} − uniform"), strict=False):
        for place, arm in enumerate(ranked):
            if arm in points:
                each = points[arm]
                value = each.score if isinstance(each, ArmScore) else each.difference
                own.plot([each.low, each.high], [place, place], color=_colour(arm), linewidth=2.5, alpha=0.5)
                own.plot(list(each.by_seed.values()), [place] * len(each.by_seed), ".", color=INK, markersize=3, zorder=3)
                own.plot(value, place, "o", color=_colour(arm), markersize=6)
        own.set_yticks(range(len(ranked)), ranked, fontsize=TEXT)
        own.set_ylim(-0.6, len(ranked) - 0.4)
        own.set_xlabel(label, fontsize=TEXT)
        own.grid(axis="x", linewidth=0.4)
    if leads:
        axes[1].axvline(0.0, color=INK, linewidth=0.8)
    return figure


def _ranked(evaluation: ArmsEvaluation, metric: str) -> list[tuple[str, dict[str, ArmScore]]]:
    """Arms by their mean, best first, as row -> score for one metric."""
    by_arm = {arm: {row: each[metric] for row, each in rows.items()} for arm, rows in evaluation.scores.items()}
    return sorted(by_arm.items(), key=lambda pair: -pair[1][MEAN].score)


def _colour(arm: str) -> str:
    """Ours and its variants, the published method and its variants, and what is not split."""
    if arm.startswith("paper"):
        return colour_of(1)
    return SHARED_COLOUR if arm in (UNIFORM, "wide", "pcgrad") else colour_of(0)
