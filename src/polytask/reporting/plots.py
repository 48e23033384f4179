"""Small SVG drawings whose colours follow the page, so that they read in light and in dark."""

from __future__ import annotations

import gc
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 200
LABEL_LENGTH = 26
# Half an epoch between two marks of an axis would be odd.
COUNTED = ("epoch", "step")

# Matplotlib knows no CSS variables: it draws in colours that nothing else has, which are exchanged afterwards.
INK, MUTED, LINE = "#010101", "#010102", "#010103"
SERIES = tuple(f"#0101{index:02x}" for index in range(16, 24))
_VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"} | {
    colour: f"var(--c{index})" for index, colour in enumerate(SERIES)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "polytask",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        x: Positions.
        y: Values; None and NaN leave a gap.
        label: Its name in the legend, or empty.
        colour: Index into the page's series colours.
        dashed: Whether it is a reference rather than a measurement.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    label: str = ""
    colour: int = 0
    dashed: bool = False


def lines(
    series: Sequence[Line],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    mark: float | None = None,
    limits: tuple[float, float] | None = None,
    square: bool = False,
) -> Markup:
    """Lines over a common axis.

    Args:
        series: The lines; long ones are thinned to 200 points.
        title: Heading, also what a screen reader says.
        x_label: What lies along the horizontal axis.
        y_label: What lies along the vertical axis.
        mark: A position on the horizontal axis to point out, such as the best epoch.
        limits: Ends of both axes, or None to fit the data.
        square: Whether the plot is as high as it is wide.

    Example:
        >>> str(lines([Line([0, 1], [0.2, 0.4])], title="Loss"))[:12]
        '<svg viewBox'
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        for line in series:
            _line(axes, line)
        if mark is not None:
            axes.axvline(mark, color=MUTED, linewidth=1, dashes=(3, 3))
        if limits is not None:
            pad = 0.02 * (limits[1] - limits[0])
            axes.set(xlim=(limits[0] - pad, limits[1] + pad), ylim=(limits[0] - pad, limits[1] + pad))
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if x_label in COUNTED:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
        if any(line.label for line in series):
            # Many lines leave no free corner.
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
            axes.legend(**(below if len(series) > 2 else {}))

    return svg(draw, (3.6, 3.5) if square else (4.6, 2.6), title)


def _line(axes: Axes, line: Line) -> None:
    x = np.asarray(line.x, dtype=float)
    y = np.array([np.nan if value is None else value for value in line.y], dtype=float)
    keep = thinned(len(x))
    colour = MUTED if line.dashed else SERIES[line.colour % len(SERIES)]
    style = {"dashes": (4, 3), "linewidth": 1.1} if line.dashed else {"marker": "o" if len(x) <= 30 else ""}
    axes.plot(x[keep], y[keep], color=colour, label=line.label or "_", markersize=3.5, **style)


def thinned(size: int, limit: int = MAX_POINTS) -> NDArray[np.int64]:
    """At most ``limit`` evenly spread indices into ``size`` points; first and last are among them.

    Example:
        >>> thinned(5).tolist(), thinned(1000, limit=3).tolist()
        ([0, 1, 2, 3, 4], [0, 500, 999])
    """
    return np.unique(np.linspace(0, max(size - 1, 0), min(size, limit)).round().astype(np.int64))


def bars(edges: Sequence[float], counts: Sequence[float], *, title: str, x_label: str = "") -> Markup:
    """A histogram with its bins already counted.

    Args:
        edges: Ends of the bins, ``[bins + 1]``.
        counts: Rows in each bin, ``[bins]``.
        title: Heading.
        x_label: What is counted.
    """

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=SERIES[0], alpha=0.75)
        if edges[0] < 0 < edges[-1]:
            axes.axvline(0, color=INK, linewidth=1, dashes=(3, 3))
        axes.set(title=title, xlabel=x_label, ylabel="rows")

    return svg(draw, (4.4, 2.9), title)


def scatter(true: Sequence[float], predicted: Sequence[float], *, title: str) -> Markup:
    """Predicted against true values, with the line where they are equal.

    Args:
        true: Targets; at most 400 rows are drawn.
        predicted: Predictions of the same rows.
        title: Heading.
    """
    keep = thinned(len(true), 400)
    x, y = np.asarray(true, dtype=float)[keep], np.asarray(predicted, dtype=float)[keep]

    def draw(axes: Axes) -> None:
        axes.plot(x, y, "o", color=SERIES[0], alpha=0.35, markersize=3, markeredgewidth=0)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color=MUTED, dashes=(4, 3), linewidth=1.1)
        axes.set(title=title, xlabel="true", ylabel="predicted")

    return svg(draw, (3.6, 3.5), title)


def shortened(name: str, length: int = LABEL_LENGTH) -> str:
    """A name that fits beside a plot.

    Example:
        >>> shortened("Professional specialty", length=13)
        'Professional…'
    """
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def svg(draw: Callable[[Axes], None], inches: tuple[float, float], title: str) -> Markup:
    """What ``draw`` leaves on fresh axes, as inline SVG.

    Args:
        draw: Draws on the axes; INK, MUTED, LINE and SERIES are the colours that follow the page.
        inches: Width and height of the figure.
        title: What a screen reader says.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings(), uncollected():
        # Names may be in any script: the reader's browser has the letters, whether or not this machine does.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # With the resolution of SVG from the start. For bbox_inches="tight", Matplotlib would lay out all once more.
        figure = Figure(figsize=inches, dpi=72)
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, bbox_inches=figure.get_tightbbox().padded(0.03))
    return _inlined(text.getvalue(), title)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without a look for garbage.

    Matplotlib makes so many objects, as it is loaded and in every drawing, that Python would look through all there
    are, and PyTorch has many.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _inlined(svg: str, title: str) -> Markup:
    """Without prologue, metadata, fixed size and unused names; with the page's colours."""
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width, height = (float(side) for side in box.groups()) if box else (360.0, 240.0)
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    # Hundredths of a point are finer than any screen.
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    body = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", body)
    body = re.sub(r"\n\s*", " ", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    head = f'<svg viewBox="0 0 {width:.1f} {height:.1f}" style="max-width:{width * 1.25:.0f}px" role="img" '
    return Markup(f'{head}aria-label="{escape(title)}">{body}')
