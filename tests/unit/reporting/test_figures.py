from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from gdps_ds.reporting import figures
from gdps_ds.reporting.style import INK, SHARED_COLOUR, cell, colour_of, group_name, layers_of, number

LANGUAGES = ("aeb", "bem", "est")
RHO = np.array([[1, 0.25, np.nan], [0.25, 1, -0.5], [np.nan, -0.5, 1]])
LOW = np.array([[1, 0.125, -np.inf], [0.125, 1, -0.75], [-np.inf, -0.75, 1]])
HIGH = np.array([[1, 0.5, np.inf], [0.5, 1, -0.25], [np.inf, -0.25, 1]])


def texts(axes: Axes) -> dict[tuple[float, float], str]:
    """(row, column) -> what is written there."""
    return {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}


def names(axes: Axes, axis: str) -> list[str]:
    return [tick.get_text() for tick in getattr(axes, f"get_{axis}ticklabels")()]


def drawn(figure: Figure) -> bytes:
    """A figure that cannot be drawn fails here, not in the report."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


def interval(value: float | None, width: float = 0.1) -> dict[str, float | None]:
    return {"value": value, "low": None if value is None else value - width, "high": None if value is None else value + width}


def site(conflict: float | None, significant: bool = True) -> dict[str, Any]:
    weighted = None if conflict is None else conflict / 2
    return {"conflict": interval(conflict), "weighted_conflict": interval(weighted), "significant": significant}


def test_similarity_map_shows_rho_below_and_intervals_above_the_diagonal() -> None:
    figure = figures.similarity_map("site", LANGUAGES, RHO, LOW, HIGH, floor=-0.5)
    axes = figure.axes[0]
    assert names(axes, "x") == names(axes, "y") == list(LANGUAGES)
    assert texts(axes) == {
        (1, 0): ".25",
        (2, 0): "n/a",
        (2, 1): "−.50",
        (0, 1): ".12\n.50",
        (0, 2): "−∞\n∞",
        (1, 2): "−.75\n−.25",
    }
    widths, values = (np.ma.filled(image.get_array(), np.nan) for image in axes.images[:2])
    np.testing.assert_array_equal(values, [[np.nan] * 3, [0.25, np.nan, np.nan], [np.nan, -0.5, np.nan]])
    np.testing.assert_array_equal(widths, [[np.nan, 0.375, np.nan], [np.nan, np.nan, 0.5], [np.nan] * 3])
    assert axes.images[1].get_clim() == (-0.5, 1)
    assert drawn(figure)


def test_many_languages_are_drawn_without_numbers() -> None:
    many = [f"l{index}" for index in range(60)]
    figure = figures.similarity_map("site", many, *(np.full((60, 60), 0.5) for _ in range(3)))
    assert not figure.axes[0].texts and names(figure.axes[0], "y") == many
    assert max(figure.get_size_inches()) < 12


def test_tree_has_its_leaves_in_order_and_its_groups_in_colour() -> None:
    # 0 and 2 merge at 1, 1 and 3 at 2, and both pairs at 10.
    tree = np.array([[0, 2, 1.0, 2], [1, 3, 2.0, 2], [4, 5, 10.0, 4]])
    figure = figures.language_tree(tree, "abcd", [0, 1, 0, 1], "1 − rho", "average", "ours")
    axes = figure.axes[0]
    assert names(axes, "y") == [list("abcd")[leaf] for leaf in leaves_list(tree)] == ["a", "c", "b", "d"]
    assert [tick.get_color() for tick in axes.get_yticklabels()] == [colour_of(group) for group in (0, 0, 1, 1)]
    merges = {max(np.asarray(line.get_xdata())): line.get_color() for line in axes.lines}
    assert merges == {1.0: colour_of(0), 2.0: colour_of(1), 10.0: SHARED_COLOUR}
    assert "1 − rho" in axes.get_xlabel() and drawn(figure)


def test_conflict_stands_at_its_layer_with_its_interval() -> None:
    sites = {f"encoder.layers.{layer}.{kind}": site(0.1 * layer) for layer in (2, 10) for kind in ("ffn1", "ffn2")}
    sites["encoder.layers.3.ffn2"] = site(None, significant=False)
    figure = figures.conflict_by_layer(sites, ["encoder.layers.10.ffn2"])
    upper = figure.axes[0]
    points = [(round(float(bar.lines[0].get_xdata()[0])), float(bar.lines[0].get_ydata()[0])) for bar in upper.containers]
    assert sorted(points) == [(2, pytest.approx(0.2))] * 2 + [(10, pytest.approx(1.0))] * 2
    segments = [segment for bar in upper.containers for lines in bar.lines[2] for segment in lines.get_segments()]
    assert {(round(low, 6), round(high, 6)) for (_, low), (_, high) in segments} == {(0.1, 0.3), (0.9, 1.1)}
    rings = [line for line in upper.lines if line.get_markersize() == 14 and len(line.get_xdata())]
    assert len(rings) == 1 and rings[0].get_ydata()[0] == pytest.approx(1.0)
    undefined = [line for line in upper.lines if line.get_marker() == "x"]
    assert [round(float(line.get_xdata()[0])) for line in undefined] == [3]
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["ffn1", "ffn2"]
    assert drawn(figure)


@pytest.mark.parametrize(("delta", "fraction"), [(-0.01, 0.75), (0.049, 0.75), (0.05, 0.5), (0.15, 0.25), (0.6, 0.25)])
def test_capacity_point_lies_on_the_published_steps(delta: float, fraction: float) -> None:
    share = {"value": 0.5, "low": 0.4, "high": None}
    figure = figures.capacity_decision({"delta": delta, "common_share": share, "shared_width": 32}, 64)
    upper, lower = figure.axes
    point = next(line for line in upper.lines if line.get_marker() == "D")
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (delta, fraction)
    values, edges, _ = upper.patches[0].get_data()
    assert values[np.searchsorted(edges, delta, side="right") - 1] == fraction
    taken = [line for line in lower.lines if line.get_linestyle() == ":"]
    assert taken[0].get_ydata()[0] == 0.5
    assert drawn(figure)


def test_capacity_without_figures_is_drawn() -> None:
    nothing = {"delta": None, "common_share": interval(None)}
    assert drawn(figures.capacity_decision(nothing, 64))


def test_shares_are_ordered_and_coloured_by_group() -> None:
    figure = figures.energy_shares({"aeb": 0.5, "bem": 0.2, "est": 0.3}, [("bem", "est"), ("aeb",)], [0.5, 0.5])
    upper, lower = figure.axes
    assert names(upper, "y") == ["bem", "est", "aeb"] and names(lower, "y") == ["bem est", "aeb"]
    assert [bar.get_width() for bar in upper.patches] == [0.2, 0.3, 0.5]
    assert [text.get_text().strip() for text in upper.texts] == ["20.0%", "30.0%", "50.0%"]
    assert upper.patches[0].get_facecolor() == lower.patches[0].get_facecolor() != upper.patches[2].get_facecolor()
    assert drawn(figure)


def test_components_show_the_leading_ones() -> None:
    figure = figures.component_energies({"aeb": [0.5, 0.25, 0.125], "bem": [0.25, 0.5, 0]}, ["bem", "aeb"], leading=2)
    np.testing.assert_array_equal(np.asarray(figure.axes[0].images[0].get_array()), [[0.25, 0.5], [0.5, 0.25]])
    assert names(figure.axes[0], "y") == ["bem", "aeb"] and drawn(figure)


def cca(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {
        "threshold": 0.5,
        "pairs": {f"{a}|{b}": {"correlations": [0.9, 0.1 * n], "in_common": n} for n, (a, b) in enumerate(pairs, 1)},
    }


def test_canonical_correlations_follow_the_names() -> None:
    pairs = cca(("aeb", "bem"), ("aeb", "est"), ("bem", "est"))
    figure = figures.canonical_correlations(pairs, ["est", "aeb", "bem"], [1, 0, 0], "languages")
    upper, lower = figure.axes
    assert texts(lower) == {(0, 1): "2", (0, 2): "3", (1, 0): "2", (1, 2): "1", (2, 0): "3", (2, 1): "1"}
    assert names(lower, "x") == ["est", "aeb", "bem"]
    colours = {round(float(line.get_ydata()[1]), 3): line.get_color() for line in upper.lines if len(line.get_ydata()) == 2}
    assert colours[0.1] == colour_of(0) and colours[0.2] == colours[0.3] == colour_of(1)
    assert len(figures.canonical_correlations(cca(("aeb", "bem+est")), ["aeb", "bem+est"], [0, 1], "").axes) == 1


def test_many_pairs_are_summed_up() -> None:
    languages = [f"l{index}" for index in range(12)]
    pairs = [(a, b) for index, a in enumerate(languages) for b in languages[index + 1 :]]
    figure = figures.canonical_correlations(cca(*pairs), languages, [0, 1] * 6, "languages")
    assert len(figure.axes[0].lines) == 3 and drawn(figure)


def test_neurons_have_the_colour_of_their_lane_and_the_conflict_that_is_left() -> None:
    conflict, energies = np.array([0.4, -0.1, 0.5, 0.2]), np.array([[1.0, 2, 3, 4], [3.0, 2, 1, 0]])
    figure = figures.neuron_map(conflict, energies, [[1, 3], [0], [2]], ["shared", "aeb", "bem"])
    upper, lower = figure.axes
    shared, *private = upper.collections
    # Below 0 stands at the edge, a thousandth of the largest.
    np.testing.assert_allclose(shared.get_offsets(), [[2, 0.0005], [2, 0.2]])
    np.testing.assert_allclose([lane.get_offsets()[0] for lane in private], [[2, 0.4], [2, 0.5]])
    taken = next(line for line in lower.lines if line.get_marker() == "o")
    assert (taken.get_xdata()[0], taken.get_ydata()[0]) == (0.5, pytest.approx(0.1))
    path = lower.lines[0]
    np.testing.assert_allclose(path.get_ydata(), [0, -0.1, 0.1, 0.5, 1.0], atol=1e-12)
    assert drawn(figure)


def every_figure() -> Iterator[Figure]:
    three = np.full((3, 3), 0.5)
    yield figures.similarity_map("site", LANGUAGES, three, three - 0.1, three + 0.1)
    yield figures.language_tree(linkage([[0.0], [1.0], [3.0]]), LANGUAGES, [0, 0, 1], "1 − rho", "average", "ours")
    yield figures.conflict_by_layer({"layers.0.ffn1": site(0.1), "layers.1.ffn1": site(0.2)}, [])
    yield figures.capacity_decision({"delta": 0.1, "common_share": interval(0.5), "shared_width": 8}, 16)
    yield figures.energy_shares({"aeb": 0.5, "bem": 0.5}, [("aeb",), ("bem",)], [0.5, 0.5])
    yield figures.component_energies({"aeb": [1.0]}, ["aeb"])
    yield figures.canonical_correlations(cca(("aeb", "bem")), ["aeb", "bem"], [0, 1], "languages")
    yield figures.neuron_map(np.array([0.1, 0.2]), np.ones((2, 2)), [[0], [1]], ["shared", "private"])


def test_axes_are_labelled_and_lines_are_not_light() -> None:
    for figure in every_figure():
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel() or axes.images, figure
        assert all(line.get_color() != "white" for axes in figure.axes for line in axes.lines)
        assert figure.get_size_inches()[0] <= 4.8, "wider figures cannot be read on a phone"


def test_numbers_for_people() -> None:
    written = {
        0.39504: "0.395",
        1.0: "1.00",
        -0.012345: "−0.0123",
        1234.5: "1.23e+03",
        np.nan: "n/a",
        -np.inf: "−∞",
        0.0: "0.00",
    }
    assert {value: number(value) for value in written} == written
    assert number(None) == "n/a"
    assert [cell(value) for value in (0.471, -0.3, 1.0, np.nan, 0.999)] == [".47", "−.30", "1.00", "n/a", "1.00"]


def test_layers_are_the_last_number_and_kinds_what_differs() -> None:
    names_ = ["speech_encoder.encoder.layers.10.ffn1", "speech_encoder.encoder.layers.2.ffn2"]
    assert layers_of(names_) == {names_[0]: ("ffn1", 10), names_[1]: ("ffn2", 2)}
    mixed = ["speech_encoder.layers.0.ffn", "text_decoder.layers.1.ffn"]
    assert [kind for kind, _ in layers_of(mixed).values()] == ["speech_encoder.layers.*.ffn", "text_decoder.layers.*.ffn"]
    assert layers_of(["alone"]) == {"alone": ("alone", 0)}
    assert layers_of(["x.0.ffn"]) == {"x.0.ffn": ("ffn", 0)}


def test_group_names_stay_short() -> None:
    assert group_name(("aeb", "bem")) == "aeb bem"
    assert group_name(tuple("abcd")) == "a + 3"
    assert INK != SHARED_COLOUR
