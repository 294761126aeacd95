"""The figures of a plan: each function turns numbers into one :class:`matplotlib.figure.Figure`, and does nothing else.

Colours are those of Okabe & Ito, told apart by colour-blind readers; a group has the same colour in every figure. What
is undefined is grey and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, leaves_list

Array = NDArray[np.float64]

GROUP_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4E00", "#5C2E91", "#B8A900", "#004D40",
)  # fmt: skip
SHARED_COLOUR = "#555555"
UNDEFINED_COLOUR = "#D9D9D9"
INK = "#222222"
MARKERS = "osD^v<>P"

WIDE, NARROW = 7.0, 5.2
"""Widths in inches: two panels, and one."""

ANNOTATED = 10
"""Most languages whose matrix cells have room for numbers."""


def colour_of(group: int) -> str:
    return GROUP_COLOURS[group % len(GROUP_COLOURS)]


def panels(count: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """An empty figure with ``count`` panels side by side, in the common style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, count, **options)).ravel())
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=9)
    return figure, axes


def similarity_map(title: str, languages: Sequence[str], rho: Array, low: Array, high: Array, floor: float = 0.0) -> Figure:
    """Similarity of every pair: below the diagonal rho, above it the 95 % interval, coloured by its width.

    Args:
        title: of the site.
        languages: L names, in the order of the axes.
        rho: (L, L), NaN where undefined.
        low: (L, L) lower ends of the intervals, -inf where unbounded.
        high: (L, L) upper ends.
        floor: the value of the darkest colour; the brightest is 1.
    """
    count = len(languages)
    side = max(3.4, min(0.62 * count if count <= ANNOTATED else 0.24 * count, 9.0))
    figure, (axes,) = panels(1, side + 1.9, side + 0.6)
    below = np.tril(np.ones((count, count), dtype=bool), -1)
    with np.errstate(invalid="ignore"):
        spread = np.where(np.isfinite(low) & np.isfinite(high), high - low, np.nan)
    axes.set_facecolor(UNDEFINED_COLOUR)
    values = axes.imshow(np.ma.masked_invalid(np.where(below, rho, np.nan)), cmap="cividis", vmin=floor, vmax=1)
    widths = axes.imshow(np.ma.masked_invalid(np.where(below.T, spread, np.nan)), cmap="Purples", vmin=0, vmax=1)
    axes.imshow(np.ma.masked_where(~np.eye(count, dtype=bool), np.ones((count, count))), cmap="Greys", vmin=1, vmax=2)
    if count <= ANNOTATED:
        for row, column in zip(*np.nonzero(below), strict=True):
            _number(axes, column, row, _short(rho[row, column]), rho[row, column] < (floor + 1) / 2)
            ends = f"{_short(low[column, row])}\n{_short(high[column, row])}"
            _number(axes, row, column, ends, bool(spread[column, row] > 0.6))
    size = 9 if count <= 40 else 5
    axes.set_xticks(range(count), languages, rotation=0 if count <= ANNOTATED else 90, fontsize=size)
    axes.set_yticks(range(count), languages, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    for image, label in ((widths, "width of the 95 % interval (above)"), (values, "rho (below the diagonal)")):
        bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, aspect=30)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    return figure


def language_tree(
    linkage: Array, languages: Sequence[str], labels: Sequence[int], distance: str, method: str, title: str
) -> Figure:
    """Dendrogram with the languages at the left, their groups coloured.

    Args:
        linkage: (L - 1, 4) as in SciPy.
        languages: L names.
        labels: the group of each language.
        distance: what the merge height measures.
        method: linkage method.
        title: of the figure.
    """
    count = len(languages)
    figure, (axes,) = panels(1, NARROW, max(1.8, 1.0 + (0.32 if count <= 40 else 0.15) * count))
    drawn = dendrogram(linkage, no_plot=True)
    # SciPy lays leaf i at 5 + 10 i; its links come in the order of their highest leaf, so each is coloured by its span.
    groups = np.asarray(labels)[drawn["leaves"]]
    for across, along in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        members = groups[_leaves_under(across, along, drawn)]
        colour = colour_of(int(members[0])) if len(set(members.tolist())) == 1 else SHARED_COLOUR
        axes.plot(along, across, color=colour, linewidth=1.8, solid_capstyle="round")
    axes.set_yticks(5 + 10 * np.arange(count), [languages[leaf] for leaf in drawn["leaves"]])
    for tick, group in zip(axes.get_yticklabels(), groups, strict=True):
        tick.set_color(colour_of(int(group)))
        tick.set_fontsize(9 if count <= 40 else 6)
        tick.set_fontweight("bold")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(10 * count, 0)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{distance} at which branches merge ({method} linkage)", fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def conflict_by_layer(sites: Mapping[str, Mapping[str, Any]], chosen: Sequence[str]) -> Figure:
    """Conflict, and conflict weighted by gradient energy, of every site against its layer, with 95 % intervals.

    Args:
        sites: site -> figures as in ``plan.evidence["sites"]``.
        chosen: the sites that are split, ringed.
    """
    figure = Figure(figsize=(WIDE, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name, (kind, layer) in layers_of(list(sites)).items():
        kinds.setdefault(kind, []).append((layer, name))
    names = (("conflict", "conflict: mean of 1 − rho"), ("weighted_conflict", "conflict × energy share"))
    for axes, (key, label) in zip((upper, lower), names, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_ylabel(label, fontsize=9)
        for number, (kind, members) in enumerate(kinds.items()):
            shift = 0.16 * (number - (len(kinds) - 1) / 2)
            _interval_series(axes, members, sites, key, shift, (kind, colour_of(number), MARKERS[number % len(MARKERS)]))
            ringed = [(layer + shift, sites[name][key]["value"]) for layer, name in members if name in chosen]
            axes.plot(*zip(*ringed, strict=True) if ringed else ([], []), "o", ms=15, mfc="none", mec=INK, mew=1.5)
    lower.set_xlabel("layer (from 0); ringed: split; hollow: not told from 0", fontsize=9)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def capacity_decision(figures: Mapping[str, Any], hidden: int) -> Figure:
    """How the shared width follows from the divergence: the published thresholds at the left, the continuous rule at the right.

    Args:
        figures: ``plan.evidence["splits"][site]["capacity"]``.
        hidden: h, hidden neurons of the block.
    """
    figure, (left, right) = panels(2, WIDE, 3.1, sharey=True)
    delta, share = figures["delta"], figures["common_share"]
    top = max(0.25, 1.15 * (delta or 0.0))
    left.step([min(0.0, delta or 0.0), 0.05, 0.15, top], [0.75, 0.75, 0.5, 0.25], where="pre", color=SHARED_COLOUR, linewidth=2)
    left.set_xlabel("delta = mean S_self − mean S_cross", fontsize=9)
    left.set_title("published thresholds", fontsize=10, loc="left")
    right.plot([-0.2, 0, 1], [0, 0, 1], color=SHARED_COLOUR, linewidth=2)
    right.set_xlabel("rho between the groups (common share)", fontsize=9)
    right.set_title("continuous rule", fontsize=10, loc="left")
    if delta is not None:
        left.plot(delta, 0.75 if delta < 0.05 else 0.5 if delta < 0.15 else 0.25, "o", ms=9, color=colour_of(1))
    if share["value"] is not None:
        low, high = (share[end] if share[end] is not None else share["value"] for end in ("low", "high"))
        at = float(np.clip(share["value"], 0, 1))
        right.errorbar(share["value"], at, xerr=[[share["value"] - low], [high - share["value"]]], fmt="o", ms=9, capsize=4,
                       color=colour_of(0))  # fmt: skip
    for axes in (left, right):
        if "shared_width" in figures:
            taken = figures["shared_width"] / hidden
            axes.axhline(taken, color=INK, linewidth=1, linestyle=":")
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    if "shared_width" in figures:
        right.annotate(f"taken: {figures['shared_width']} of {hidden} neurons", (1, taken), xytext=(0, 4), fontsize=9,
                       textcoords="offset points", ha="right", va="bottom")  # fmt: skip
    left.set_ylabel("hidden neurons that are shared", fontsize=9)
    return figure


def energy_shares(shares: Mapping[str, float], groups: Sequence[Sequence[str]], group_shares: Sequence[float]) -> Figure:
    """pi: each language's, and each group's, share of the energy of the joint singular components."""
    languages = [language for group in groups for language in group]
    colours = [colour_of(index) for index, group in enumerate(groups) for _ in group]
    figure, (left, right) = panels(2, WIDE, max(2.0, 0.8 + 0.28 * min(len(languages), 60)), width_ratios=(3, 2))
    left.barh(languages, [shares[language] for language in languages], color=colours, height=0.7)
    left.axvline(1 / len(languages), color=INK, linewidth=1, linestyle=":")
    left.set_xlabel("share pi of a language (dotted: equal)", fontsize=9)
    names = [f"{' '.join(group)}" if len(group) <= 3 else f"{group[0]} + {len(group) - 1} others" for group in groups]
    right.barh(range(len(groups)), group_shares, color=[colour_of(index) for index in range(len(groups))], height=0.7)
    right.set_yticks(range(len(groups)), names)
    right.set_xlabel("share pi of a group", fontsize=9)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        for bar in axes.patches:
            label = f" {bar.get_width():.1%}"
            axes.text(bar.get_width(), bar.get_y() + bar.get_height() / 2, label, va="center", fontsize=8)
        axes.margins(x=0.18)
    return figure


def component_energies(energies: Mapping[str, Sequence[float]], languages: Sequence[str], leading: int = 16) -> Figure:
    """Energy of every language on the leading joint singular components, each |G_l v_c|² / n_l."""
    values = np.array([energies[language][:leading] for language in languages], dtype=np.float64)
    figure, (axes,) = panels(1, WIDE, max(2.0, 1.0 + 0.26 * min(len(languages), 60)))
    image = axes.imshow(values, cmap="cividis", vmin=0, aspect="auto")
    axes.set_yticks(range(len(languages)), languages, fontsize=9 if len(languages) <= 40 else 5)
    axes.set_xticks(range(values.shape[1]), range(1, values.shape[1] + 1))
    axes.set_xlabel("joint singular component, by size", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("share of a unit gradient's energy", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def canonical_correlations(
    cca: Mapping[str, Any], names: Sequence[str], group_of: Mapping[str, int], title: str
) -> Figure:
    """Canonical correlations of every pair, and how many directions each pair has in common.

    Args:
        cca: ``plan.evidence["splits"][site]["cca_languages"]`` or ``["cca_groups"]``.
        names: of the languages (or groups) in the order to show.
        group_of: the group of each name.
        title: of the figure.
    """
    count = len(names)
    figure, (left, right) = panels(2, WIDE, max(3.0, min(0.6 + 0.28 * count, 7.0)), width_ratios=(1, 1))
    common = np.full((count, count), np.nan)
    place = {name: index for index, name in enumerate(names)}
    seen: set[bool] = set()
    for pair, figures in cca["pairs"].items():
        first, second = pair.split("|")
        within = group_of[first] == group_of[second]
        values = np.array(figures["correlations"], dtype=np.float64)
        kind = None if within in seen else "within a group" if within else "between groups"
        seen.add(within)
        style: dict[str, Any] = {"color": colour_of(0), "linestyle": "-"} if within else {"color": colour_of(1), "linestyle": "--"}
        alpha = 0.9 if len(cca["pairs"]) <= 10 else max(0.04, 8 / len(cca["pairs"]))
        left.plot(np.arange(1, len(values) + 1), values, linewidth=1.4, alpha=alpha, label=kind, **style)
        common[place[first], place[second]] = common[place[second], place[first]] = figures["in_common"]
    left.axhline(cca["threshold"], color=INK, linewidth=1, linestyle=":")
    left.set_xlabel("direction (dotted: counts as common)", fontsize=9)
    left.set_ylabel("canonical correlation", fontsize=9)
    left.set_ylim(0, 1.03)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    for handle in left.legend(frameon=False, fontsize=9).legend_handles:
        handle.set_alpha(1)
    right.set_facecolor(UNDEFINED_COLOUR)
    right.imshow(np.ma.masked_invalid(common), cmap="cividis", vmin=0)
    if count <= 2 * ANNOTATED:
        for row, column in zip(*np.nonzero(np.isfinite(common)), strict=True):
            _number(right, column, row, f"{common[row, column]:.0f}", common[row, column] < np.nanmax(common) / 2)
    size = 9 if count <= 20 else 5
    right.set_xticks(range(count), names, rotation=0 if max(map(len, names)) * count <= 24 else 90, fontsize=size)
    right.set_yticks(range(count), names, fontsize=size)
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    right.set_title("directions in common", fontsize=10, loc="left")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def neuron_map(conflict: Array, energies: Array, lanes: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Conflict of every hidden neuron against its energy, coloured by lane; and what conflict is left as the lane widens.

    Args:
        conflict: (h,), noise-free on average, so that single neurons may fall below 0.
        energies: (G, h).
        lanes: the neurons of each lane, the shared one first.
        names: of the lanes.
    """
    figure, (left, right) = panels(2, WIDE, 3.6)
    energy = energies.mean(axis=0)
    for number, (lane, name) in enumerate(zip(lanes, names, strict=True)):
        chosen = np.asarray(lane, dtype=np.int64)
        colour = SHARED_COLOUR if number == 0 else colour_of(number - 1)
        left.scatter(energy[chosen], conflict[chosen], s=9, alpha=0.6, linewidths=0, color=to_rgba(colour), label=name,
                     marker="o" if number == 0 else "^", rasterized=True)  # fmt: skip
    scale = {"linear_width": max(float(np.median(np.abs(conflict))), 1e-12)}
    left.set_yscale("asinh", **scale)
    left.set_xscale("asinh", linear_width=max(float(np.median(np.abs(energy))), 1e-12))
    left.set_xlabel("energy of the neuron (mean over groups)", fontsize=9)
    left.set_ylabel("conflict of the neuron", fontsize=9)
    left.legend(frameon=False, fontsize=9, markerscale=2)
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(MaxNLocator(4)) if False else None
    total = conflict.sum()
    order = np.concatenate([np.asarray(lanes[0], dtype=np.int64), np.setdiff1d(np.arange(len(conflict)), lanes[0])])
    ranked = np.argsort(conflict, kind="stable")
    del order
    grid = np.arange(len(conflict) + 1) / len(conflict)
    right.plot(grid, np.concatenate([[0.0], np.cumsum(conflict[ranked])]) / total, color=colour_of(0), label="least conflict first")
    right.plot([0, 1], [0, 1], color=SHARED_COLOUR, linestyle="--", label="random neurons")
    share, left_in = len(lanes[0]) / len(conflict), float(conflict[list(lanes[0])].sum() / total)
    right.plot(share, left_in, "o", ms=8, color=colour_of(1))
    right.annotate(f"shared lane: {share:.0%} of neurons,\n{left_in:.0%} of the conflict", (share, left_in), xytext=(8, -4),
                   textcoords="offset points", fontsize=9, va="top")  # fmt: skip
    right.set_xlabel("neurons in the shared lane", fontsize=9)
    right.set_ylabel("conflict left in the shared lane", fontsize=9)
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    right.legend(frameon=False, fontsize=9)
    return figure


def tree_order(linkage: Array) -> list[int]:
    """Indices of the leaves from top to bottom of :func:`language_tree`."""
    return [int(leaf) for leaf in leaves_list(linkage)]
