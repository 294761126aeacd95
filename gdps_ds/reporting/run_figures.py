"""The figures of a run: each function turns numbers into one :class:`matplotlib.figure.Figure`, and does nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from gdps_ds.analysis.similarity import Interval
from gdps_ds.evaluation.comparison import Comparison, Estimate
from gdps_ds.reporting.run_metrics import UNIFIED, Curves, Duration
from gdps_ds.reporting.style import INK, SHARED_COLOUR, SMALL, TEXT, WIDTH, colour_of, panels, tidy

SINGLE = 10
"""Most languages that have a line of their own."""
PANELS = 12
"""Most languages that have a panel of their own."""
STYLES = ("-", "--", ":", "-.")


def colour_of_arm(arm: str, arms: Sequence[str]) -> str:
    """An arm has the same colour in every figure; what all arms come from is grey."""
    return colour_of(arms.index(arm)) if arm in arms else SHARED_COLOUR


def losses(training: Curves, dev: Curves, arms: Sequence[str], unified: int, splits: Sequence[int]) -> Figure:
    """Training and dev losses over the whole run, a colour a language, a dash an arm.

    Args:
        training: with label smoothing, as they are minimised.
        dev: without.
        arms: start at update ``unified`` of the run.
        unified: updates of the unified phase.
        splits: updates of the run at which blocks are replaced.
    """
    figure, axes = panels(2, 6.4, sharex=True)
    languages = [name for name in _languages(training) if name != "all"]
    for own, found, title in zip(axes, (training, dev), ("training", "dev"), strict=True):
        for index, language in enumerate([*languages, "all"]):
            single = len(languages) <= SINGLE and language != "all"
            colour = colour_of(index) if single else INK if language == "all" else SHARED_COLOUR
            width, opacity = (1.4, 1.0) if single else (2.0, 1.0) if language == "all" else (0.5, 0.4)
            if single or len(languages) > SINGLE:
                _course(own, found, language, arms, unified, color=colour, linewidth=width, alpha=opacity)
            if own is axes[0] and (single or (language == "all" and len(languages) > SINGLE)):
                own.plot([], [], color=colour, label="all languages" if language == "all" else language)
        _mark_splits(own, splits)
        own.set_yscale("log")
        own.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        own.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        own.tick_params(axis="y", which="minor", labelsize=SMALL)
        own.set_ylabel(f"{title} loss a target token", fontsize=TEXT)
    for style, arm in zip(STYLES, arms, strict=False):
        axes[0].plot([], [], color=INK, linestyle=style, label=arm)
    axes[0].legend(frameon=False, fontsize=TEXT, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    axes[1].set_xlabel("update" + ("  (dotted: split)" if splits else ""), fontsize=TEXT)
    return figure


def dev_by_language(dev: Curves, arms: Sequence[str], unified: int, splits: Sequence[int]) -> Figure:
    """Dev losses (or BLEU) from the second half of the unified phase on, a panel a language, a colour an arm.

    Of many languages those are shown whose arms end farthest apart, and all languages together where ``dev`` has them.
    """
    found = _languages(dev)
    languages = [name for name in found if name != "all"]
    if len(languages) > PANELS:
        languages = sorted(sorted(languages, key=lambda name: -_spread(dev, name, arms))[: PANELS - 1])
    shown = [*languages, *(["all"] if len(languages) > 1 and "all" in found else [])]
    rows = (len(shown) + 1) // 2
    figure = Figure(figsize=(WIDTH, 0.7 + 1.55 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False, sharex=True).ravel()
    for own, language in zip(axes, shown, strict=False):
        tidy(own)
        own.set_title("all languages" if language == "all" else language, fontsize=TEXT, loc="left", fontweight="bold")
        for phase in (*arms, UNIFIED):
            at, values = _points(dev, language, phase, unified)
            if phase in arms and len(at):
                # From where it comes.
                start, first = _points(dev, language, UNIFIED, unified)
                at, values = np.concatenate([start[-1:], at]), np.concatenate([first[-1:], values])
            late = at >= unified / 2
            colour, label = colour_of_arm(phase, arms), phase if own is axes[0] else None
            own.plot(at[late], values[late], "o-", ms=3.5, lw=1.5, color=colour, label=label)
        _mark_splits(own, splits)
        own.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        own.yaxis.set_major_locator(MaxNLocator(4))
        own.tick_params(labelsize=SMALL, labelbottom=True)
    for own in axes[len(shown) :]:
        own.set_axis_off()
    figure.legend(frameon=False, fontsize=TEXT, ncols=4, loc="outside upper left")
    return figure


def mean_similarities(
    languages: Sequence[str], cross: Mapping[str, Interval], rho: Mapping[str, Interval], colours: Mapping[str, str]
) -> Figure:
    """Each language's mean similarity to the others, before and after the split (Figure 2 of the GDPS paper, 2603.25836).

    Args:
        languages: L names.
        cross: model -> (L,) mean S_cross.
        rho: model -> (L,) mean of the noise-corrected similarity.
        colours: model -> its colour.
    """
    figure, axes = panels(2, 1.3 + 0.2 * len(cross) + 2 * _row_heights(len(languages), len(cross)), sharey=True)
    for own, found, label in zip(axes, (cross, rho), ("mean cosine", "mean rho: corrected for noise"), strict=True):
        for index, (model, each) in enumerate(found.items()):
            places = np.arange(len(languages)) + _shift(index, len(found))
            _dots(own, places, each.value, each.low, each.high, colours[model], model)
        _rows(own, languages)
        own.set_xlabel(f"{label} with the other languages (95 % interval)", fontsize=TEXT)
    axes[0].legend(frameon=False, fontsize=TEXT, ncols=1, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def scores(
    metric: str, by_system: Mapping[str, Mapping[str, Estimate]], differences: Sequence[Comparison], colours: Mapping[str, str]
) -> Figure:
    """Scores of every row and system with intervals and, below, by how much the first system leads each other one.

    Args:
        metric: its name.
        by_system: system -> row (language, group or mean) -> estimate.
        differences: first system minus another one, one metric, all rows.
        colours: system -> its colour.
    """
    rows = list(next(iter(by_system.values())))
    count = 2 if differences else 1
    figure, axes = panels(count, 0.8 + count * (_row_heights(len(rows), len(by_system)) + 0.5), sharey=True)
    for index, (system, found) in enumerate(by_system.items()):
        value, low, high = np.array([[each.score, each.low, each.high] for each in found.values()]).T
        _dots(axes[0], np.arange(len(rows)) + _shift(index, len(by_system)), value, low, high, colours[system], system)
    _rows(axes[0], rows)
    axes[0].set_xlabel(f"{metric} (95 % interval)", fontsize=TEXT)
    axes[0].legend(frameon=False, fontsize=TEXT, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    others = list(dict.fromkeys(each.second for each in differences))
    for index, other in enumerate(others):
        own = {each.row: each for each in differences if each.second == other}
        value, low, high = np.array([[own[row].difference, own[row].low, own[row].high] for row in rows]).T
        colour = colours[other] if len(others) > 1 else INK
        _dots(axes[1], np.arange(len(rows)) + _shift(index, len(others)), value, low, high, colour, f"minus {other}")
    if differences:
        axes[1].axvline(0, color=SHARED_COLOUR, linewidth=1, linestyle=":")
        _rows(axes[1], rows)
        second = others[0] if len(others) == 1 else "the others"
        axes[1].set_xlabel(f"{metric}: {differences[0].first} minus {second} (95 % interval)", fontsize=TEXT)
        if len(others) > 1:
            axes[1].legend(frameon=False, fontsize=TEXT, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def time_by_phase(found: Sequence[Duration], names: Mapping[str, str]) -> Figure:
    """Seconds of every phase, those spent on dev losses apart."""
    figure, (axes,) = panels(1, 0.9 + 0.3 * len(found))
    places = np.arange(len(found))
    rest = np.array([each.seconds - each.dev_seconds for each in found])
    dev = np.array([each.dev_seconds for each in found])
    axes.barh(places, rest, color=colour_of(0), height=0.7)
    axes.barh(places, dev, left=rest, color=colour_of(1), height=0.7, label="of it dev losses")
    for place, each in zip(places, found, strict=True):
        axes.text(each.seconds, place, f" {in_words(each.seconds)}", va="center", fontsize=SMALL)
    axes.set_yticks(places, [names[each.name] for each in found], fontsize=TEXT)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(each.seconds for each in found))
    axes.set_xlabel("seconds", fontsize=TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if dev.any():
        axes.legend(frameon=False, fontsize=TEXT, loc="lower right")
    return figure


def throughput(found: Sequence[Duration], arms: Sequence[str], unified: int) -> Figure:
    """Utterances a second, and where it was measured the share of time spent waiting for data, over the whole run."""
    trained = [each for each in found if each.rates]
    waits = any(each.waits for each in trained)
    figure, axes = panels(2 if waits else 1, 4.6 if waits else 2.6, sharex=True)
    for each in trained:
        colour, offset = colour_of_arm(each.name, arms), 0 if each.name == UNIFIED else unified
        for own, points in zip(axes, (each.rates, each.waits), strict=False):
            own.plot([offset + at for at, _ in points], [value for _, value in points], color=colour, lw=1.4, label=each.name)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("utterances a second", fontsize=TEXT)
    axes[0].legend(frameon=False, fontsize=TEXT, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    if waits:
        axes[1].set_ylim(bottom=0)
        axes[1].set_ylabel("waiting for data", fontsize=TEXT)
        axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    axes[-1].set_xlabel("update", fontsize=TEXT)
    return figure


def in_words(seconds: float) -> str:
    """``3 h 07 min``, ``4 min 05 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _course(axes: Axes, found: Curves, language: str, arms: Sequence[str], unified: int, **look: Any) -> None:
    """A language's losses: the unified phase, and from its last point on each arm."""
    start, first = _points(found, language, UNIFIED, unified)
    axes.plot(start, first, "-", **look)
    for style, arm in zip(STYLES, arms, strict=False):
        at, values = _points(found, language, arm, unified)
        if len(at):
            axes.plot([*start[-1:], *at], [*first[-1:], *values], style, **look)


def _points(found: Curves, language: str, phase: str, unified: int) -> tuple[np.ndarray, np.ndarray]:
    """Updates of the run, and the losses there."""
    own = found.get(phase, {}).get(language, {})
    return np.array(list(own), dtype=np.int64) + (0 if phase == UNIFIED else unified), np.array(list(own.values()))


def _languages(found: Curves) -> list[str]:
    return list(dict.fromkeys(language for by_language in found.values() for language in by_language))


def _spread(dev: Curves, language: str, arms: Sequence[str]) -> float:
    """How far apart the arms end."""
    last = [list(dev[arm][language].values())[-1] for arm in arms if language in dev.get(arm, {})]
    return max(last) - min(last) if last else 0.0


def _mark_splits(axes: Axes, splits: Sequence[int]) -> None:
    for update in splits:
        axes.axvline(update, color=INK, linewidth=1, linestyle=":")


def _row_heights(rows: int, side_by_side: int) -> float:
    """Inches that so many rows need."""
    return max(0.8, (0.17 if rows <= 40 else 0.08) * rows * max(2, side_by_side) ** 0.7)


def _shift(index: int, count: int) -> float:
    """Rows are 1 apart; what shares a row stands side by side in 0.6 of it."""
    return 0.6 * ((index + 0.5) / count - 0.5)


def _dots(axes: Axes, at: np.ndarray, value: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, label: str) -> None:
    """Values with intervals, from left to right; an end that is unbounded is not drawn."""
    known = np.isfinite(value)
    ends = [np.where(np.isfinite(end), np.maximum(gap, 0), 0) for end, gap in ((low, value - low), (high, high - value))]
    axes.errorbar(
        value[known], at[known], xerr=[each[known] for each in ends], fmt="o", ms=5, color=colour, capsize=2, label=label
    )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=TEXT if len(names) <= 40 else 5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
