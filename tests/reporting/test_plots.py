import gc
import io
import re

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from polytask.reporting import plots
from polytask.reporting.heat import heat_map
from polytask.reporting.plots import Line, bars, lines, scatter, thinned


def points(svg):
    """The longest path of a drawing, as pairs."""
    paths = re.findall(r'<path d="([^"]*)"', svg)
    return max((re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path) for path in paths), key=len)


def test_long_lines_are_thinned():
    x = np.arange(10_000)
    svg = lines([Line(x, np.random.default_rng(0).normal(size=10_000))], title="noise")
    assert 150 < len(points(svg)) <= 200
    assert len(svg) < 15_000


def test_thinned_keeps_the_ends():
    for size in (0, 1, 2, 199, 200, 201, 12_345):
        kept = thinned(size)
        assert len(kept) <= 200
        if size:
            assert (kept[0], kept[-1]) == (0, size - 1)


def test_a_line_falls_where_its_values_fall():
    drawn = np.array(points(lines([Line(range(50), np.linspace(3, 1, 50))], title="falls")), dtype=float)
    assert (np.diff(drawn[:, 0]) > 0).all()
    assert (np.diff(drawn[:, 1]) > 0).all()  # SVG counts downwards


def test_epochs_are_counted_in_whole_numbers():
    texts = re.findall(r">\s*([\d.]+)\s*</text>", lines([Line([1, 2], [0.5, 0.25])], title="t", x_label="epoch"))
    assert {"1", "2"} <= set(texts)
    assert "1.5" not in texts


def test_gaps_are_left_open():
    svg = lines([Line([0, 1, 2, 3], [1.0, None, float("nan"), 2.0])], title="gaps")
    assert "nan" not in svg.lower()


def test_a_title_is_escaped_and_named_for_screen_readers():
    svg = lines([Line([0, 1], [0, 1], label='a < "b" & $c$')], title='x"><i>')
    assert 'aria-label="x&#34;&gt;&lt;i&gt;"' in svg
    assert "<i>" not in svg
    assert "$c$" in svg


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_raise_no_warning():
    assert "東京" in heat_map(np.eye(2), ("東京", "München"), title="t")


def test_small_heat_maps_are_drawn_with_their_percentages():
    svg = heat_map(np.array([[0.9, 0.1], [np.nan, np.nan]]), ("a", "b"), title="t")
    texts = re.findall(r">\s*([^<>]+?)\s*</text>", svg)
    assert {"90", "10"} <= set(texts)
    assert "data:image" not in svg


def test_large_heat_maps_are_pictures():
    svg = heat_map(np.eye(31), tuple(map(str, range(31))), title="t")
    assert "data:image/png" in svg
    assert len(svg) < 30_000


def test_a_histogram_and_a_scatter_are_drawn():
    assert "var(--c0)" in bars([-1, 0, 1], [3, 4], title="errors")
    many = np.random.default_rng(0).normal(size=5000)
    svg = scatter(many, many, title="t")
    assert 300 < svg.count("<use") <= 430


def test_a_constant_prediction_can_be_drawn():
    assert "<svg" in scatter([1.0, 1.0], [1.0, 1.0], title="t")


@pytest.mark.parametrize("enabled", [True, False])
def test_a_drawing_leaves_garbage_collection_as_it_was(enabled):
    def draw(axes):
        assert not gc.isenabled()
        raise ValueError("not drawn")

    try:
        if not enabled:
            gc.disable()
        with pytest.raises(ValueError, match="not drawn"):
            plots.svg(draw, (2, 2), "t")
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_the_box_is_the_one_that_matplotlib_finds_by_drawing_twice():
    def draw(axes):
        axes.plot([0, 1], [3, 2], label="a line")
        axes.set(title="A title", xlabel="below", yticks=[2, 3], yticklabels=["a name of some length", "b"])
        axes.legend(bbox_to_anchor=(1.01, 1.02), loc="upper left")

    with rc_context(plots._STYLE):
        figure, text = Figure(figsize=(3, 2)), io.StringIO()
        draw(figure.add_subplot())
        figure.savefig(text, format="svg", bbox_inches="tight", pad_inches=0.03)
    sizes = [
        [float(side) for side in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn).groups()]
        for drawn in (text.getvalue(), plots.svg(draw, (3, 2), "t"))
    ]
    assert sizes[0] == pytest.approx(sizes[1], abs=0.1)
