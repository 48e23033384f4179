"""Drawings that compare named things: a row each with its interval, and points with names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from polytask.reporting.plots import INK, LINE, MUTED, SERIES, shortened, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 0.26
"""Height of a row in inches."""


@dataclass(frozen=True)
class Row:
    """A named thing with its values.

    Args:
        name: What stands beside it.
        values: Single values, such as one a seed; NaN is left out.
        mean: Their mean.
        low: Lower end of the interval; NaN draws none.
        high: Upper end.
        colour: Index into the page's series colours.
        quiet: Whether it is a reference rather than what is compared.
    """

    name: str
    values: Sequence[float]
    mean: float
    low: float = math.nan
    high: float = math.nan
    colour: int = 0
    quiet: bool = False


def interval_rows(
    rows: Sequence[Row], *, title: str, x_label: str = "", zero: bool = False, width: float = 4.6
) -> Markup:
    """A row for each thing: its values as dots, its mean as a bar from zero or a mark, its interval as a line.

    Args:
        rows: From top to bottom.
        title: Heading.
        x_label: What the values are.
        zero: Whether bars start at a line at zero; else the mean is a mark.
        width: Of the drawing, in inches.

    Example:
        >>> str(interval_rows([Row("a", [1.0, 3.0], 2.0, 0.0, 4.0)], title="Gain", zero=True))[:12]
        '<svg viewBox'
    """

    def draw(axes: Axes) -> None:
        for at, row in enumerate(rows):
            colour = MUTED if row.quiet else SERIES[row.colour % len(SERIES)]
            if not math.isnan(row.mean):
                _row(axes, at, row, colour, zero)
        if zero:
            axes.axvline(0, color=INK, linewidth=1)
        axes.set(title=title, xlabel=x_label, ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [shortened(row.name, 34) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=5)

    return svg(draw, (width, 0.75 + ROW * len(rows)), title)


def _row(axes: Axes, at: int, row: Row, colour: str, zero: bool) -> None:
    if zero:
        axes.barh(at, row.mean, height=0.62, color=colour, alpha=0.45)
    else:
        axes.plot([row.mean, row.mean], [at - 0.3, at + 0.3], color=colour, linewidth=2.4)
    if not math.isnan(row.low):
        axes.plot([row.low, row.high], [at, at], color=INK, linewidth=1.1)
    axes.plot(row.values, [at] * len(row.values), "o", color=colour, markersize=3.2, markeredgewidth=0, alpha=0.85)


@dataclass(frozen=True)
class Point:
    """A named point.

    Args:
        name: What stands beside it.
        x: Position along the horizontal axis.
        y: Position along the vertical axis.
        marked: Whether it belongs to the front.
        quiet: Whether it is a reference.
    """

    name: str
    x: float
    y: float
    marked: bool = False
    quiet: bool = False


def named_points(
    points: Sequence[Point], *, title: str, x_label: str, y_label: str, log_x: bool = False, joined: bool = False
) -> Markup:
    """Points with numbers, and the numbers' names beside the drawing; those of a front are filled.

    Args:
        points: The points; those that are not finite are left out.
        title: Heading.
        x_label: What lies along the horizontal axis.
        y_label: What lies along the vertical axis.
        log_x: Whether equal ratios are equally far apart along the horizontal axis.
        joined: Whether a line joins the points of the front, which is right where the two axes are all there is.
    """
    shown = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]

    def draw(axes: Axes) -> None:
        front = sorted((point.x, point.y) for point in shown if point.marked)
        if joined and len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=LINE, linewidth=1.4, zorder=1)
        for number, point in enumerate(shown, 1):
            colour = MUTED if point.quiet else SERIES[0]
            style: dict[str, Any] = {"color": colour, "markersize": 6.5, "linestyle": "", "zorder": 2}
            fill: dict[str, Any] = {} if point.marked else {"markerfacecolor": "none"}
            axes.plot([point.x], [point.y], "o", label=f"{number}  {shortened(point.name, 30)}", **style, **fill)
            axes.annotate(str(number), (point.x, point.y), (5, 4), textcoords="offset points", fontsize=8, color=INK)
        if log_x:
            log_axis(axes)
        else:
            axes.locator_params(axis="x", nbins=5)
        axes.margins(0.09)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if shown:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), handlelength=1, handletextpad=0.4)

    return svg(draw, (3.6, max(3.0, 0.2 * len(shown) + 0.6)), title)


def log_axis(axes: Axes) -> None:
    """A logarithmic horizontal axis whose numbers are plain: the page draws no mathematics."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
