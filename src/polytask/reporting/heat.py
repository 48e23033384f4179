"""Matrices as cells of colour, with their numbers where they are few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from polytask.reporting.plots import SERIES, shortened, svg
from polytask.reporting.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_VECTOR_CELLS = 30
MAX_CELL_TEXTS = 20
MAX_NUMBERED_COLUMNS = 12
MAX_TICKS = 24
# A picture inside an SVG cannot follow the page; these colours read on white and on black.
_PICTURE_COLOURS = np.array([(0.30, 0.52, 0.86), (0.87, 0.49, 0.16)])
_STRONGEST = 0.72


def heat_map(shares: NDArray[np.float64], names: Sequence[str], *, title: str) -> Markup:
    """Shares from 0 to 1 between true classes (down) and predicted ones (across).

    Args:
        shares: ``[k, k]``; a row of NaN is a class without rows.
        names: Class names, ``[k]``.
        title: Heading.
    """
    k = len(names)
    cell = 0.42 if k <= MAX_CELL_TEXTS else max(0.11, 8.4 / k)
    side = max(1.6, cell * k)
    size = 9.0 if k <= MAX_CELL_TEXTS else max(5.0, 72 * side / k * 0.78)
    shown = np.nan_to_num(shares)

    def draw(axes: Axes) -> None:
        # A square root, so that rare confusions are seen at all.
        _cells(axes, np.sqrt(shown))
        if k <= MAX_CELL_TEXTS:
            _shares(axes, shown, size * (0.95 if k <= 12 else 0.8))
        labels = [shortened(name) for name in names]
        # Upright below the cells unless every name fits into the width of one.
        upright = max(map(len, labels)) > 7 * cell / 0.42
        axes.set_xticks(range(k), labels, rotation=90 if upright else 0, fontsize=min(size, 9))
        axes.set_yticks(range(k), labels, fontsize=min(size, 9))
        _finish(axes, shown.shape, ("true", "predicted"), title)

    return svg(draw, (side, side), title)


def matrix(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    axes: tuple[str, str],
    centre: float = 0.0,
) -> Markup:
    """Numbers as colours: blue above the centre, orange below it, and stronger the further they are from it.

    Args:
        values: ``[rows, columns]``; NaN leaves a cell empty.
        rows: Names of the rows, from top to bottom.
        columns: Names of the columns.
        title: Heading.
        axes: What the rows and the columns stand for.
        centre: The number without a colour.

    Example:
        >>> drawn = matrix(np.array([[0.9, 0.1]]), ["a"], ["1", "2"], title="gates", axes=("task", "expert"))
        >>> "0.90" in drawn, "0.10" in drawn
        (True, True)
    """
    count, width = values.shape
    away = np.nan_to_num(values - centre)
    largest = float(np.abs(away).max(initial=0.0)) or 1.0
    numbered = width <= MAX_NUMBERED_COLUMNS and count <= MAX_CELL_TEXTS
    inches = (max(1.6, min(0.52 * width, 7.0)), max(0.7, min(0.42 * count, 8.4)))

    def draw(on: Axes) -> None:
        _cells(on, away / largest)
        if numbered:
            for row, column in np.argwhere(np.isfinite(values)):
                on.text(column, row, short(values[row, column], largest), ha="center", va="center", fontsize=8.5)
        row_labels, column_labels = ([shortened(name) for name in of] for of in (rows, columns))
        upright = max(map(len, column_labels)) > 6
        across, down = _ticks(width), _ticks(count)
        on.set_xticks(across, [column_labels[i] for i in across], rotation=90 if upright else 0)
        on.set_yticks(down, [row_labels[i] for i in down])
        _finish(on, values.shape, axes, title)

    return svg(draw, inches, title)


def short(value: float, largest: float) -> str:
    """A number of a matrix in a few letters: two decimals where the largest number has them.

    Example:
        >>> short(0.9123, 0.9123), short(-0.001, 0.9123), short(2e-5, 3e-5)
        ('0.91', '0.00', '2e-05')
    """
    return f"{round(float(value), 2) + 0.0:.2f}" if 0.1 <= largest < 100 else number(float(value))


def _ticks(count: int) -> list[int]:
    """Places that get a name: all of them if they are few."""
    return list(range(0, count, -(-count // MAX_TICKS)))


def _finish(axes: Axes, shape: tuple[int, ...], labels: tuple[str, str], title: str) -> None:
    axes.tick_params(length=0)
    axes.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5), ylabel=labels[0], xlabel=labels[1], title=title)
    axes.grid(visible=False)


def _cells(axes: Axes, strength: NDArray[np.float64]) -> None:
    """Cells of colour from strengths in [-1, 1]."""
    if max(strength.shape) > MAX_VECTOR_CELLS:
        picture = np.empty((*strength.shape, 4))
        picture[..., :3] = _PICTURE_COLOURS[(strength < 0).astype(int)]
        picture[..., 3] = _STRONGEST * np.abs(strength)
        square = strength.shape[0] == strength.shape[1]
        axes.imshow(picture, interpolation="nearest", aspect="equal" if square else "auto")
        return
    from matplotlib.patches import Rectangle

    for row, column in np.argwhere(strength != 0):
        share = float(strength[row, column])
        corner, alpha = (column - 0.48, row - 0.48), _STRONGEST * abs(share)
        axes.add_patch(Rectangle(corner, 0.96, 0.96, facecolor=SERIES[int(share < 0)], alpha=alpha, linewidth=0))


def _shares(axes: Axes, shown: NDArray[np.float64], size: float) -> None:
    for row, column in np.argwhere(shown >= 0.005):
        text = f"{100 * shown[row, column]:.0f}"
        weight = "bold" if row == column else "normal"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, fontweight=weight)
