"""The common look of figures and the common writing of numbers.

Colours are those of Okabe & Ito, which colour-blind readers tell apart, and four more; a group has the same colour in
every figure. What is undefined is grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GROUP_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A4E00",
    "#5C2E91",
    "#B8A900",
    "#004D40",
)
SHARED_COLOUR = "#555555"
UNDEFINED_COLOUR = "#D9D9D9"
INK = "#222222"
MARKERS = "osD^v<>P"

WIDTH = 4.8
"""Width of a figure in inches: a phone shows it whole, with letters that can be read."""

TEXT, SMALL, TINY = 9, 8, 5
"""Sizes in points."""


def colour_of(index: int) -> str:
    return GROUP_COLOURS[index % len(GROUP_COLOURS)]


def panels(count: int, height: float, width: float = WIDTH, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` empty panels, one below the other; ``options`` go to ``Figure.subplots``. No global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(count, 1, squeeze=False, **options).ravel())
    for each in axes:
        tidy(each)
    return figure, axes


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TEXT)


def matrix_axes(axes: Axes, rows: Sequence[str], columns: Sequence[str], room: int = 44) -> None:
    """Name rows and columns of a matrix, without frame or tick marks; columns side by side if ``room`` letters hold them."""
    upright = sum(map(len, columns)) + len(columns) <= room
    axes.set_xticks(range(len(columns)), columns, rotation=0 if upright else 90, fontsize=TEXT if len(columns) <= 40 else TINY)
    axes.set_yticks(range(len(rows)), rows, fontsize=TEXT if len(rows) <= 40 else TINY)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_facecolor(UNDEFINED_COLOUR)


def colour_bar(figure: Figure, image: Any, axes: Axes, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def group_name(group: Sequence[str]) -> str:
    """Its languages, or how many there are besides the first."""
    return " ".join(group) if len(group) <= 3 else f"{group[0]} + {len(group) - 1}"


def number(value: float | None, digits: int = 3) -> str:
    """A figure for people: ``digits`` significant digits; NaN and None are ``n/a``."""
    if value is None or np.isnan(value):
        return "n/a"
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def cell(value: float) -> str:
    """A figure of a matrix cell, two decimals: ``.47``."""
    if np.isfinite(value):
        return f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")
    return number(value)


def layers_of(sites: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Site -> its kind and layer: ``...layers.10.ffn2`` is of kind ``ffn2`` in layer 10.

    The layer is the last number in a name, and kinds are named by what differs between them. A site without a number
    gets its place in the list.
    """
    found = {}
    for place, name in enumerate(sites):
        parts = name.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdigit()]
        layer = int(parts[numbers[-1]]) if numbers else place
        found[name] = (tuple("*" if index in numbers[-1:] else part for index, part in enumerate(parts)), layer)
    kinds = {kind for kind, _ in found.values()}
    shortest = min(len(kind) for kind in kinds) - 1
    skipped = min(len(commonprefix(list(kinds))), shortest)  # noqa: RUF071  (of tuples of name parts, not of paths)
    return {name: (".".join(kind[skipped:]), layer) for name, (kind, layer) in found.items()}
