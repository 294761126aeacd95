"""A run for people: one HTML page that needs nothing else, from what the run directory holds.

``RUN_DIR/report.html`` is the page; its figures are in ``RUN_DIR/report/`` as PNG and SVG too.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gdps_ds.analysis.planner import fold_weights, folds_of
from gdps_ds.analysis.similarity import Array, Interval, interval, measure, noise_corrected, similarity
from gdps_ds.analysis.sketch import Sketches
from gdps_ds.config_file import ConfigError
from gdps_ds.data.manifest import DataError
from gdps_ds.evaluation.comparison import Comparison, Evaluation
from gdps_ds.evaluation.metrics import LOWER_IS_BETTER, MEAN
from gdps_ds.plan import PlanError
from gdps_ds.reporting import run_figures
from gdps_ds.reporting.page import Picture, Section, Table, write_page
from gdps_ds.reporting.plan_pictures import (
    conflict_picture,
    grouping_picture,
    language_order,
    similarity_pictures,
    split_pictures,
)
from gdps_ds.reporting.plan_report import sites_table
from gdps_ds.reporting.run_metrics import curves, durations
from gdps_ds.reporting.run_record import RunDir
from gdps_ds.reporting.samples import Sample, choose, sample_sections, with_audio
from gdps_ds.reporting.score_tables import number, remarks
from gdps_ds.reporting.tracking import Tracker

PHASES = {"unified": "unified", "plan": "mining and planning", "split": "split"}
"""Phases of ``metrics.jsonl`` as people call them; ``scores-ARM`` is the translation of an arm, the rest are arms."""
PAGE, FIGURES = "report.html", "report"
SPACE = "\N{NO-BREAK SPACE}"
PERCENT = f"[95{SPACE}%]"


def finish_report(folder: Path, tracker: Tracker | None = None) -> str:
    """The report at the end of a run, also on Weights & Biases where ``tracker`` logs there; for rank 0.

    Never raises an :class:`Exception`: a run that is complete stays so, whatever is wrong with its report.

    Returns:
        A line for people: where the report is, or what went wrong (the traceback goes to stderr) and how to try again.
    """
    try:
        path, parts = write_report(folder)
        if tracker is not None:
            tracker.show({name: parts[name] for name in parts if name not in ("Samples", "Configuration")}, folder / FIGURES)
            tracker.show_samples(read_samples(RunDir(folder)))
            tracker.keep(folder)
    except Exception as error:
        traceback.print_exc()
        return (
            f"report: {type(error).__name__}: {error}; the run itself is complete, and "
            f"python launchers/report.py {folder} tries again"
        )
    return f"report: {path}"


def write_report(folder: Path) -> tuple[Path, dict[str, list[Section]]]:
    """Write the report of a run, or of as much as there is of it; gives the page and its parts.

    Raises:
        OSError: no run directory, or it cannot be written to.
    """
    parts = make_parts(RunDir(folder))
    made = folder / FIGURES / PAGE
    write_page(made, f"Run {folder.resolve().name}", [section for sections in parts.values() for section in sections])
    # Beside its figures it is written, and then it takes the place of an older one at once.
    return made.replace(folder / PAGE), parts


def make_parts(run: RunDir) -> dict[str, list[Section]]:
    """The page from top to bottom, a few sections each part."""
    return {name: _made(name, part, run) for name, part in PARTS.items()}


def _made(name: str, part: Callable[[RunDir], list[Section]], run: RunDir) -> list[Section]:
    """A part of the report; where it cannot be made, the others are no worse for it, and the page says why."""
    try:
        return part(run)
    except (DataError, ConfigError, PlanError) as error:
        print(f"report: {name}: {error}", file=sys.stderr, flush=True)
        return [Section(name, (f"This part could not be made: {error}",))]
    except Exception as error:
        traceback.print_exc()
        return [Section(name, (f"This part could not be made: {type(error).__name__}: {error}",))]


def overview(run: RunDir) -> list[Section]:
    train = run.config["train"]
    complete = (run.folder / "summary.json").is_file()
    rows = [
        ("state", "complete" if complete else "not complete: this page shows what there is so far"),
        ("languages", ", ".join(run.config["data"]["languages"])),
        ("updates", f"{run.unified} unified, then {train['specialise']['updates']} of each arm ({', '.join(run.arms)})"),
        ("model", str(run.config["model"]["pretrained"] or "a new one")),
    ]
    if run.lines:
        first, last = (datetime.fromtimestamp(line["time"], UTC) for line in (run.lines[0], run.lines[-1]))
        rows.append(("logged", f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"))
    return [Section("", tables=(Table(("", ""), tuple(rows)),))]


def scores(run: RunDir) -> list[Section]:
    """Scores of every language, group and mean with intervals, and paired tests against the first system."""
    evaluation = run.evaluation
    if evaluation is None:
        return [Section("Scores", ("The run has not translated its test set yet.",))]
    colours = {name: run_figures.colour_of_arm(name, list(evaluation.scores)) for name in evaluation.scores}
    first = next(iter(evaluation.scores))
    tables, pictures = [], []
    for metric in evaluation.signatures:
        leads = [each for each in evaluation.comparisons if (each.metric, each.first) == (metric, first)]
        by_system = {name: {row: each[metric] for row, each in rows.items()} for name, rows in evaluation.scores.items()}
        figure = run_figures.scores(metric, by_system, leads, colours)
        direction = "lower" if metric in LOWER_IS_BETTER else "higher"
        pictures.append(Picture(f"scores-{metric}", figure, f"{metric}, {direction} is better, with 95 % bootstrap intervals."))
        tables.append(score_table(metric, evaluation, leads))
    counted = ", ".join(f"{language} {count}" for language, count in evaluation.utterances.items())
    text = [_verdict(each) for each in evaluation.comparisons if (each.metric, each.row, each.first) == ("BLEU", MEAN, first)]
    text.append(f"Utterances scored: {counted}.")
    text += [f"{line}." for line in (*run.data_notes, *remarks(evaluation))]
    signatures = "\n".join(f"{metric}: {signature}" for metric, signature in evaluation.signatures.items())
    pictured = Section("Scores", tuple(text), pictures=tuple(pictures))
    return [pictured, Section("", tables=tuple(tables)), Section("", summary=signatures)]


def score_table(metric: str, evaluation: Evaluation, leads: Sequence[Comparison]) -> Table:
    """A row each language, group and mean; ``leads`` are the first system's over the others."""
    others = list(dict.fromkeys(each.second for each in leads))
    found = {(each.row, each.second): each for each in leads}
    rows = []
    for row in next(iter(evaluation.scores.values())):
        points = (by_row[row][metric] for by_row in evaluation.scores.values())
        cells = [f"{number(metric, each.score)} {_range(metric, each.low, each.high)}" for each in points]
        for other in others:
            lead = found[row, other]
            difference = _minus(number(metric, lead.difference, signed=True))
            cells += [f"{difference} {_range(metric, lead.low, lead.high)}", f"{lead.p_randomisation:.3f}"]
        rows.append((row, *cells))
    heads = [head for other in others for head in (f"{leads[0].first} − {other} {PERCENT}", "p")]
    return Table((metric, *(f"{name} {PERCENT}" for name in evaluation.scores), *heads), tuple(rows))


def losses(run: RunDir) -> list[Section]:
    training, dev = curves(run.lines, "loss"), curves(run.lines, "dev")
    splits = sorted({run.unified + line["update"] for line in run.lines if line["phase"] == "split"})
    course = run_figures.losses(training, dev, run.arms, run.unified, splits)
    pictures = [Picture("losses", course, "Losses of the whole run; training losses are label-smoothed, dev losses are not.")]
    if any(arm in dev for arm in run.arms):
        after = run_figures.dev_by_language(dev, run.arms, run.unified, splits)
        pictures.append(Picture("dev-losses", after, "Dev losses around the split, each panel with a scale of its own."))
    if bleu := curves(run.lines, "dev_bleu"):
        course = run_figures.dev_by_language(bleu, run.arms, run.unified, splits)
        pictures.append(Picture("dev-bleu", course, "BLEU on the dev set around the split."))
    jumps = [
        f"The split after update {run.unified + line['update']} moved the loss of one dev batch from {line['before']:.4f} to "
        f"{line['after']:.4f} ({line['after'] - line['before']:+.1e})."
        for line in run.lines
        if line["phase"] == "split"
    ]
    pictured = Section("Losses", tuple(jumps), pictures=tuple(pictures))
    return [pictured, Section("", tables=(_last_losses(dev),))] if dev else [pictured]


def similarities(run: RunDir) -> list[Section]:
    """Figure 2 of the paper: similarity of a language's gradients with the others', before the split and after."""
    title = "Similarity of the languages before and after the split"
    before, after = run.sketches, run.later_sketches
    sites = _shown_sites(run)
    if before is None or not sites or len(before.languages) < 2:
        return [Section(title, ("The run holds no sketches of several languages (sketches.safetensors).",))]
    weights = fold_weights(before, run.config["plan"]["bootstrap"])
    text, pictures = [], []
    for site in sites:
        measured = {"unified, before": mean_similarity(before, site, weights)}
        for arm, sketches in after.items():
            shared = f"{site}.shared"
            name = shared if shared in sketches.sites else site
            label = f"{arm}, after" + (": shared lane" if name == shared else "")
            measured[label] = mean_similarity(sketches, name, fold_weights(sketches, run.config["plan"]["bootstrap"]))
        colours = {label: run_figures.colour_of_arm(label.split(",")[0], run.arms) for label in measured}
        cross, rho = ({label: pair[index] for label, pair in measured.items()} for index in range(2))
        figure = run_figures.mean_similarities(before.languages, cross, rho, colours)
        pictures.append(Picture(f"mean-similarity-{site}", figure, f"{site}: mean similarity of gradients with the others'."))
    if not after:
        names = ", ".join(f"sketches.{arm}.safetensors" for arm in run.arms)
        text.append(f"Before the split only: no trained arm has been mined ({names}).")
    return [Section(title, tuple(text), pictures=tuple(pictures))]


def mean_similarity(sketches: Sketches, site: str, weights: Array) -> tuple[Interval, Interval]:
    """Each language's mean S_cross and mean rho with the others, (L,) with bootstrap intervals over folds.

    Args:
        sketches: of L languages.
        site: one of theirs.
        weights: (L, F, B) of :func:`gdps_ds.analysis.planner.fold_weights`.
    """
    folds = folds_of(sketches, site)
    estimate, drawn = similarity(folds), similarity(folds, weights)
    cross = interval(_mean_of_others(estimate), _mean_of_others(drawn))
    return cross, interval(_mean_of_others(noise_corrected(estimate)), _mean_of_others(noise_corrected(drawn)))


def sharing_plan(run: RunDir) -> list[Section]:
    plan = run.plan
    if plan is None:
        return [Section("Sharing plan", ("The run has not planned.",))]
    head = Section("Sharing plan", summary=plan.summary())
    if not plan.evidence:
        return [head]
    rule = plan.provenance["settings"]["rule"]
    pictures = [conflict_picture(plan), grouping_picture(rule, plan)]
    split: list[Section] = []
    if run.sketches is not None:
        weights = fold_weights(run.sketches, run.config["plan"]["bootstrap"])
        measured = {site: measure(folds_of(run.sketches, site), weights) for site in _shown_sites(run)}
        order = language_order(plan, measured)
        pictures += similarity_pictures(measured, plan.languages, order)
        split = [
            Section(f"Split of {site.name}", pictures=tuple(split_pictures(rule, plan, site, order)))
            for site in plan.sites
            if site.name in plan.evidence["splits"]
        ]
    known = tuple(picture for picture in pictures if picture is not None)
    return [head, Section("Where and between whom", pictures=known), Section("", tables=(sites_table(plan),)), *split]


def samples(run: RunDir) -> list[Section]:
    return sample_sections(read_samples(run)) or [Section("Samples", ("The run has not translated its test set yet.",))]


def read_samples(run: RunDir) -> list[Sample]:
    """A few translations of every language, with the speech as far as it is still there."""
    return with_audio(choose(run.systems, run.test_set.values()), run.test_set) if run.systems else []


def timing(run: RunDir) -> list[Section]:
    found = [each for each in durations(run.lines) if each.seconds > 0]
    if not found:
        return [Section("Timing", ("The run has logged too little to tell.",))]
    names = {each.name: _phase_name(each.name) for each in found}
    pictures = [Picture("time", run_figures.time_by_phase(found, names), "Wall-clock time of every phase.")]
    if any(each.rates for each in found):
        caption = "Utterances of all ranks a second, in training."
        pictures.append(Picture("throughput", run_figures.throughput(found, run.arms, run.unified), caption))
    rows = [
        (
            names[each.name],
            run_figures.in_words(each.seconds),
            run_figures.in_words(each.dev_seconds) if each.dev_seconds else "",
            str(each.updates or ""),
            f"{np.median([rate for _, rate in each.rates]):.1f}" if each.rates else "",
            f"{np.mean([wait for _, wait in each.waits]):.1%}" if each.waits else "",
            f"{each.padding:.1%}" if each.padding is not None else "",
        )
        for each in found
    ]
    rows.append(("all", run_figures.in_words(sum(each.seconds for each in found)), "", "", "", "", ""))
    head = ("phase", "time", "of it the dev set", "updates", "utterances a second (median)", "waiting for data", "padding")
    return [Section("Timing", pictures=tuple(pictures)), Section("", tables=(Table(head, tuple(rows)),))]


def configuration(run: RunDir) -> list[Section]:
    found = [run.folder / name for name in ("config.yaml", "deepspeed.json")]
    text = "\n\n".join(f"# {path.name}\n{path.read_text(encoding='utf-8').strip()}" for path in found if path.is_file())
    return [Section("Configuration", summary=text)]


PARTS: dict[str, Callable[[RunDir], list[Section]]] = {
    "Run": overview,
    "Scores": scores,
    "Losses": losses,
    "Similarity": similarities,
    "Plan": sharing_plan,
    "Samples": samples,
    "Timing": timing,
    "Configuration": configuration,
}


def _verdict(lead: Comparison) -> str:
    difference = _minus(number("BLEU", lead.difference, signed=True))
    return (
        f"{lead.first} − {lead.second}: {difference} BLEU in the mean over the languages, "
        f"95 % interval {_range('BLEU', lead.low, lead.high)}, p = {lead.p_randomisation:.3f} by approximate randomisation."
    )


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _range(metric: str, low: float, high: float) -> str:
    """An interval that is never broken over two lines."""
    return _minus(f"[{number(metric, low)},{SPACE}{number(metric, high)}]")


def _last_losses(dev: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Table:
    """The last dev loss of every phase, a row each language."""
    languages = list(next(iter(dev.values())))
    last = {phase: {name: list(values.values())[-1] for name, values in found.items()} for phase, found in dev.items()}
    rows = [(name, *(f"{found[name]:.4f}" if name in found else "n/a" for found in last.values())) for name in languages]
    return Table(("last dev loss", *last), tuple(rows))


def _shown_sites(run: RunDir) -> list[str]:
    """The sites that are split; else those whose figures the plan shows."""
    if run.plan is None or run.sketches is None:
        return []
    names = [site.name for site in run.plan.sites] or list(run.plan.evidence.get("similarity", ()))
    return [name for name in names if name in run.sketches.sites]


def _mean_of_others(similarities: Array) -> Array:
    """(L, ...) mean over the other languages of (L, L, ...), of the pairs that are defined; NaN where none is."""
    others = ~np.eye(len(similarities), dtype=bool)
    known = np.isfinite(similarities) & others.reshape(*others.shape, *(1,) * (similarities.ndim - 2))
    counts = known.sum(axis=1)
    sums = np.where(known, similarities, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _phase_name(phase: str) -> str:
    return PHASES.get(phase, phase.replace("scores-", "translating with ", 1))
