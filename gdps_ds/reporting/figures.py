"""The figures of a plan: each function turns numbers into one :class:`matplotlib.figure.Figure`, and does nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, to_tree

from gdps_ds.reporting.style import (
    INK,
    MARKERS,
    SHARED_COLOUR,
    SMALL,
    TEXT,
    cell,
    colour_bar,
    colour_of,
    group_name,
    layers_of,
    matrix_axes,
    panels,
)

Array = NDArray[np.float64]
Figures = Mapping[str, Any]
"""A node of ``plan.evidence``."""

ANNOTATED = 10
"""Most languages whose matrix cells have room for numbers."""


def similarity_map(title: str, languages: Sequence[str], rho: Array, low: Array, high: Array, floor: float = 0.0) -> Figure:
    """Similarity of every pair: below the diagonal rho, above it the 95 % interval, coloured by its width.

    Args:
        title: of the figure.
        languages: L names, in the order of the axes.
        rho: (L, L), NaN where undefined.
        low: (L, L) lower ends of the intervals, -inf where unbounded.
        high: (L, L) upper ends, inf where unbounded.
        floor: value of the darkest colour; the brightest is 1.
    """
    count = len(languages)
    side = float(np.clip((0.55 if count <= ANNOTATED else 0.22) * count, 2.6, 8.0))
    figure, (axes,) = panels(1, side + 0.6, side + 2.0)
    below = np.tri(count, k=-1, dtype=bool)
    with np.errstate(invalid="ignore"):
        spread = np.where(np.isfinite(low) & np.isfinite(high), high - low, np.nan)
    matrix_axes(axes, languages, languages)
    widths = axes.imshow(np.where(below.T, spread, np.nan), cmap="Purples", vmin=0, vmax=1)
    values = axes.imshow(np.where(below, rho, np.nan), cmap="viridis", vmin=floor, vmax=1)
    axes.imshow(np.where(np.eye(count, dtype=bool), 0.0, np.nan), cmap="Greys", vmin=0, vmax=1)
    if count <= ANNOTATED:
        for row, column in zip(*np.nonzero(below), strict=True):
            _write(axes, row, column, cell(rho[row, column]), dark=rho[row, column] < (floor + 1) / 2)
            ends = f"{cell(low[row, column])}\n{cell(high[row, column])}"
            _write(axes, column, row, ends, dark=spread[column, row] > 0.6)
    axes.set_title(title, fontsize=TEXT + 1, loc="left")
    colour_bar(figure, widths, axes, "above: width of the 95 % interval")
    colour_bar(figure, values, axes, "below: rho (grey: undefined)")
    return figure


def language_tree(
    linkage: Array, languages: Sequence[str], labels: Sequence[int], distance: str, method: str, title: str
) -> Figure:
    """Dendrogram with the languages at the left, a colour a group.

    Args:
        linkage: (L - 1, 4) as in SciPy.
        languages: L names.
        labels: (L,) the group of each language.
        distance: what the height of a merge measures.
        method: of linkage.
        title: of the figure.
    """
    count = len(languages)
    figure, (axes,) = panels(1, max(1.9, 1.0 + (0.28 if count <= 40 else 0.13) * count))
    _, nodes = to_tree(linkage, rd=True)
    under = [{int(labels[leaf]) for leaf in node.pre_order()} for node in nodes]
    colours = [colour_of(min(groups)) if len(groups) == 1 else SHARED_COLOUR for groups in under]
    drawn = dendrogram(linkage, no_plot=True, link_color_func=colours.__getitem__)
    for across, along, colour in zip(drawn["icoord"], drawn["dcoord"], drawn["color_list"], strict=True):
        axes.plot(along, across, color=colour, linewidth=1.8)
    # SciPy puts leaf i at 5 + 10 i.
    axes.set_yticks(5 + 10 * np.arange(count), [languages[leaf] for leaf in drawn["leaves"]])
    for tick, leaf in zip(axes.get_yticklabels(), drawn["leaves"], strict=True):
        tick.set(color=colours[leaf], fontsize=TEXT if count <= 40 else 6, fontweight="bold")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(10 * count, 0)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{distance} at which branches merge ({method} linkage)", fontsize=TEXT)
    axes.set_title(title, fontsize=TEXT + 1, loc="left")
    return figure


def conflict_by_layer(sites: Mapping[str, Figures], chosen: Sequence[str]) -> Figure:
    """Conflict of every site against its layer, plain and weighted by gradient energy, with 95 % intervals.

    Args:
        sites: ``plan.evidence["sites"]``.
        chosen: the sites that are split; they are ringed.
    """
    figure, (upper, lower) = panels(2, 4.8, sharex=True)
    layers = layers_of(list(sites))
    kinds = list(dict.fromkeys(kind for kind, _ in layers.values()))
    for axes, key in ((upper, "conflict"), (lower, "weighted_conflict")):
        axes.axhline(0, color=INK, linewidth=0.8)
        for index, kind in enumerate(kinds):
            shift = 0.16 * (index - (len(kinds) - 1) / 2)
            members = {name: layer + shift for name, (own, layer) in layers.items() if own == kind}
            _intervals(axes, members, sites, key, kind, colour_of(index), MARKERS[index % len(MARKERS)])
            ringed = [name for name in members if name in chosen and sites[name][key]["value"] is not None]
            at = [members[name] for name in ringed]
            axes.plot(at, [sites[name][key]["value"] for name in ringed], "o", ms=14, mfc="none", mec=INK, mew=1.4)
    upper.set_ylabel("conflict: mean of 1 − rho", fontsize=TEXT)
    lower.set_ylabel("conflict × energy share", fontsize=TEXT)
    lower.set_xlabel("layer, from 0  (ring: split; hollow: not told from 0)", fontsize=TEXT)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.legend(frameon=False, fontsize=TEXT, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def capacity_decision(capacity: Figures, hidden: int) -> Figure:
    """How the shared width follows from the divergence: by the published thresholds, and by the continuous rule.

    Args:
        capacity: ``plan.evidence["splits"][site]["capacity"]``.
        hidden: h, hidden neurons of the block.
    """
    figure, (upper, lower) = panels(2, 5.2)
    delta, share = capacity["delta"], capacity["common_share"]
    edges = [min(-0.01, (delta or 0) - 0.02), 0.05, 0.15, max(0.25, (delta or 0) + 0.02)]
    upper.stairs([0.75, 0.5, 0.25], edges, baseline=None, color=SHARED_COLOUR, linewidth=2)
    upper.set_xlabel("delta = mean S_self − mean S_cross", fontsize=TEXT)
    upper.set_title("published thresholds", fontsize=TEXT + 1, loc="left")
    if delta is not None:
        upper.plot(delta, 0.75 if delta < 0.05 else 0.5 if delta < 0.15 else 0.25, "D", ms=8, color=colour_of(1))
    lower.plot([-0.15, 0, 1], [0, 0, 1], color=SHARED_COLOUR, linewidth=2)
    lower.set_xlabel("rho between the groups (95 % interval)", fontsize=TEXT)
    lower.set_title("continuous rule", fontsize=TEXT + 1, loc="left")
    if share["value"] is not None:
        ends = _ends(share, lower.get_xlim())
        lower.errorbar(
            share["value"], np.clip(share["value"], 0, 1), xerr=ends, fmt="o", ms=8, capsize=4, color=colour_of(0), zorder=3
        )
    for axes in (upper, lower):
        axes.set_ylabel("neurons that are shared", fontsize=TEXT)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if "shared_width" in capacity:
            axes.axhline(capacity["shared_width"] / hidden, color=INK, linewidth=1, linestyle=":")
    if "shared_width" in capacity:
        taken = f"dotted: taken, {capacity['shared_width']} of {hidden} hidden neurons"
        figure.suptitle(taken, fontsize=TEXT + 1, x=0.01, ha="left")
    return figure


def energy_shares(shares: Mapping[str, float], groups: Sequence[Sequence[str]], group_shares: Sequence[float]) -> Figure:
    """pi, the share of the energy of the joint singular components: of each language, and of each group."""
    languages = [language for group in groups for language in group]
    owner = [index for index, group in enumerate(groups) for _ in group]
    step, rows = 0.28 if len(languages) <= 40 else 0.15, (len(languages), len(groups))
    figure, (upper, lower) = panels(2, 1.6 + step * sum(rows), height_ratios=rows)
    names = [group_name(group) for group in groups]
    _shares(upper, languages, [shares[language] for language in languages], [colour_of(index) for index in owner])
    _shares(lower, names, group_shares, [colour_of(index) for index in range(len(groups))])
    upper.axvline(1 / len(languages), color=INK, linewidth=1, linestyle=":")
    upper.set_xlabel("a language's share pi (dotted: equal shares)", fontsize=TEXT)
    lower.set_xlabel("a group's share pi", fontsize=TEXT)
    return figure


def component_energies(energies: Mapping[str, Sequence[float]], languages: Sequence[str], leading: int = 16) -> Figure:
    """Energy of every language on the ``leading`` joint singular components, |G_l v_c|^2 / n_l."""
    values = np.array([energies[language][:leading] for language in languages], dtype=np.float64)
    step = 0.28 if len(languages) <= 40 else 0.1
    figure, (axes,) = panels(1, max(2.0, 1.0 + step * len(languages)))
    matrix_axes(axes, languages, [str(component + 1) for component in range(values.shape[1])])
    image = axes.imshow(values, cmap="viridis", vmin=0, aspect="auto")
    axes.set_xlabel("joint singular component, largest first", fontsize=TEXT)
    colour_bar(figure, image, axes, "share of a unit gradient's energy")
    return figure


def canonical_correlations(cca: Figures, names: Sequence[str], labels: Sequence[int], title: str) -> Figure:
    """Canonical correlations of every pair, and how many directions each pair has in common.

    Args:
        cca: ``cca_languages`` or ``cca_groups`` of ``plan.evidence["splits"][site]``.
        names: of the languages (or groups), in the order to show.
        labels: the group of each name.
        title: of the figure.
    """
    shown = [group_name(name.split("+")) for name in names]
    count = len(names)
    height = float(np.clip(0.6 + 0.28 * count, 2.4, 4.8))
    figure, axes = panels(1, 2.8) if count == 2 else panels(2, 2.8 + height, height_ratios=(2.8, height))
    upper = axes[0]
    place = {name: index for index, name in enumerate(names)}
    common = np.full((count, count), np.nan)
    lines: dict[str, list[Array]] = {"within a group": [], "between groups": []}
    for pair, figures in cca["pairs"].items():
        first, second = (place[name] for name in pair.split("|"))
        kind = "within a group" if labels[first] == labels[second] else "between groups"
        lines[kind].append(np.array(figures["correlations"], dtype=np.float64))
        common[first, second] = common[second, first] = figures["in_common"]
    for (kind, values), colour, style in zip(lines.items(), (colour_of(0), colour_of(1)), ("-", "--"), strict=True):
        if values:
            _bundle(upper, np.array(values), kind, colour, style)
    upper.axhline(cca["threshold"], color=INK, linewidth=1, linestyle=":")
    upper.set_xlabel("direction (dotted: common from here up)", fontsize=TEXT)
    upper.set_ylabel("canonical correlation", fontsize=TEXT)
    upper.set_ylim(0, 1.03)
    upper.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.legend(frameon=False, fontsize=TEXT)
    upper.set_title(title, fontsize=TEXT + 1, loc="left")
    if count > 2:
        _counts(axes[1], common, shown)
        axes[1].set_title("directions in common", fontsize=TEXT + 1, loc="left")
    return figure


def neuron_map(conflict: Array, energies: Array, lanes: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Conflict of every hidden neuron against its energy, a colour a lane; and the conflict left in the shared lane.

    Args:
        conflict: (h,), free of noise on average, so that single neurons may fall below 0.
        energies: (G, h).
        lanes: the neurons of each lane, the shared one first.
        names: of the lanes.
    """
    figure, (upper, lower) = panels(2, 6.2)
    energy, height = _floored(energies.mean(axis=0)), _floored(conflict)
    for index, (lane, name) in enumerate(zip(lanes, names, strict=True)):
        upper.scatter(
            *(energy[list(lane)], height[list(lane)]),
            s=9,
            alpha=0.6,
            linewidths=0,
            color=SHARED_COLOUR if index == 0 else colour_of(index - 1),
            marker="o" if index == 0 else "^",
            label=name,
            rasterized=True,
        )
    upper.set_xscale("log")
    upper.set_yscale("log")
    upper.set_xlabel("energy of the neuron (mean over groups)", fontsize=TEXT)
    upper.set_ylabel("conflict of the neuron (bottom edge: about 0)", fontsize=TEXT)
    upper.legend(frameon=False, fontsize=TEXT, markerscale=2)
    total, count = conflict.sum(), len(conflict)
    path = np.concatenate([[0.0], np.cumsum(np.sort(conflict))]) / total
    share, remains = len(lanes[0]) / count, conflict[list(lanes[0])].sum() / total
    lower.plot(np.arange(count + 1) / count, path, color=colour_of(0), label="least conflict first")
    lower.plot([0, 1], [0, 1], color=SHARED_COLOUR, linestyle="--", label="random neurons")
    lower.plot(share, remains, "o", ms=8, color=colour_of(1), label=f"taken: {share:.0%} with {remains:.0%}")
    lower.set_xlabel("neurons in the shared lane", fontsize=TEXT)
    lower.set_ylabel("conflict left in the shared lane", fontsize=TEXT)
    lower.xaxis.set_major_formatter(PercentFormatter(1))
    lower.yaxis.set_major_formatter(PercentFormatter(1))
    lower.legend(frameon=False, fontsize=TEXT)
    return figure


def _write(axes: Axes, row: int, column: int, text: str, *, dark: bool) -> None:
    axes.text(column, row, text, ha="center", va="center", fontsize=SMALL, color="white" if dark else INK, linespacing=0.95)


def _ends(figure: Figures, limits: tuple[float, float]) -> Array:
    """(2, 1) distances from a value to both ends of its interval; an unbounded end goes to the limit of the axis."""
    low, high = (figure[end] if figure[end] is not None else limit for end, limit in zip(("low", "high"), limits, strict=True))
    return np.maximum([[figure["value"] - low], [high - figure["value"]]], 0.0)


def _intervals(
    axes: Axes, at: Mapping[str, float], sites: Mapping[str, Figures], key: str, label: str, colour: str, marker: str
) -> None:
    """Values of ``key`` with their intervals; hollow where not significant, a grey cross on the axis where undefined."""
    for name, x in at.items():
        figure = sites[name][key]
        if figure["value"] is None:
            axes.plot(x, 0, "x", color=SHARED_COLOUR)
            continue
        face = colour if sites[name]["significant"] else "white"
        ends = _ends(figure, (figure["value"], figure["value"]))
        axes.errorbar(x, figure["value"], yerr=ends, fmt=marker, ms=6, color=colour, mfc=face, elinewidth=1.4, capsize=2)
    axes.plot([], [], marker, color=colour, label=label)


def _shares(axes: Axes, names: Sequence[str], shares: Sequence[float], colours: Sequence[str]) -> None:
    places = np.arange(len(names))
    axes.barh(places, shares, color=colours, height=0.7)
    axes.set_yticks(places, names, fontsize=TEXT if len(names) <= 40 else 6)
    for place, share in zip(places, shares, strict=True):
        size = SMALL if len(names) <= 40 else 6
        axes.text(0, place, f"  {share:.1%}", va="center", fontsize=size, color="white", fontweight="bold")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(shares))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _bundle(axes: Axes, lines: Array, label: str, colour: str, style: str) -> None:
    """Lines (N, K): each thin, or their median with the middle 90 % where there are more than :data:`ANNOTATED`."""
    directions = np.arange(1, lines.shape[1] + 1)
    if len(lines) <= ANNOTATED:
        axes.plot(directions, lines.T, color=colour, linestyle=style, linewidth=1.3, label=[label] + [""] * (len(lines) - 1))
        return
    low, middle, high = np.quantile(lines, [0.05, 0.5, 0.95], axis=0)
    axes.fill_between(directions, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(directions, middle, color=colour, linestyle=style, linewidth=2, label=f"{label} (median, 90 % of pairs)")


def _counts(axes: Axes, counts: Array, names: Sequence[str]) -> None:
    """A (L, L) matrix of whole numbers, NaN on the diagonal."""
    matrix_axes(axes, names, names, room=24)
    axes.imshow(counts, cmap="viridis", vmin=0)
    if len(names) <= 2 * ANNOTATED:
        for row, column in zip(*np.nonzero(np.isfinite(counts)), strict=True):
            _write(axes, row, column, f"{counts[row, column]:.0f}", dark=counts[row, column] < np.nanmax(counts) / 2)


def _floored(values: Array) -> Array:
    """Values for a logarithmic axis: what is not positive, or a thousandth of the largest, stands at that edge."""
    return np.maximum(values, max(float(values.max()) / 1000, float(np.finfo(np.float64).tiny)))
