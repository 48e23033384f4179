"""What a confusion matrix says: rates per class, averages, the worst confusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.evaluation.confusion import AVERAGES, Confusion
from polytask.reporting.tables import Cell, Column, Table, mapping_table
from polytask.reporting.words import number, percent

LONG = 20
WORST = 10
_RATES = {
    "tpr": "recall: rows of the class that were found",
    "tnr": "rows of other classes that were not taken for this one",
    "ppv": "precision: predictions of the class that are right",
    "npv": "predictions of other classes that are right",
    "fpr": "rows of other classes that were taken for this one",
    "f1": "harmonic mean of precision and recall",
}


@dataclass(frozen=True)
class ClassesView:
    """A confusion matrix as the page shows it.

    Args:
        names: Class names, ``[k]``.
        shares: Row-normalised matrix ``[k, k]``; NaN for a class without rows.
        rates: One row per class.
        averages: Micro, macro and weighted averages.
        worst: The most frequent confusions, or None if there is none.
        sentence: The most frequent confusion in words.
    """

    names: tuple[str, ...]
    shares: NDArray[np.float64]
    rates: Table
    averages: Table
    worst: Table | None
    sentence: str


def classes_view(matrix: NDArray[np.float64], classes: tuple[str, ...]) -> ClassesView:
    """What to show of a confusion matrix.

    Args:
        matrix: Counts ``[k, k]``; rows are true classes, columns predicted ones.
        classes: Names of the classes; numbers stand in where there are none.
    """
    names = classes if len(classes) == len(matrix) else tuple(str(index) for index in range(len(matrix)))
    found = Confusion(matrix, names)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = matrix / found.support[:, None]
    pairs = _worst(matrix, shares, names)
    return ClassesView(
        names=names,
        shares=shares,
        rates=_rates_table(found),
        averages=_averages_table(found),
        worst=_worst_table(pairs) if pairs else None,
        sentence=_sentence(pairs),
    )


def _rates_table(found: Confusion) -> Table:
    rows = found.per_class()
    columns = (
        Column("class", numeric=False),
        *(Column(name.upper(), help=text) for name, text in _RATES.items()),
        Column("support", help="rows of the class"),
    )
    cells = mapping_table(rows, ("class", *_RATES, "support"), shares=("tpr", "ppv", "f1")).rows
    counted = tuple((*row[:-1], Cell(_count(float(of["support"])))) for row, of in zip(cells, rows, strict=True))
    return Table(columns, counted, caption=f"{len(rows)} classes", folded=len(rows) > LONG)


def _averages_table(found: Confusion) -> Table:
    rows: list[dict[str, Any]] = [{"average": kind, **found.average(kind)} for kind in AVERAGES]
    names = ("average", "precision", "recall", "f1")
    return mapping_table(rows, names, shares=names[1:])


Pair = tuple[str, str, float, float]


def _worst(matrix: NDArray[np.float64], shares: NDArray[np.float64], names: tuple[str, ...]) -> list[Pair]:
    """True class, predicted class, rows, share of the true class: the confusions with the most rows."""
    wrong = matrix * (1 - np.eye(len(matrix)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:WORST]
    places = [tuple(map(int, np.unravel_index(place, matrix.shape))) for place in order]
    return [(names[i], names[j], float(wrong[i, j]), float(shares[i, j])) for i, j in places if wrong[i, j] > 0]


def _worst_table(pairs: list[Pair]) -> Table:
    columns = (
        Column("true", numeric=False),
        Column("predicted", numeric=False),
        Column("rows"),
        Column("share of the true class"),
    )
    rows = tuple((Cell(a), Cell(b), Cell(_count(n)), Cell(percent(share), bar=share)) for a, b, n, share in pairs)
    return Table(columns, rows)


def _sentence(pairs: list[Pair]) -> str:
    if not pairs:
        return "No row was given a wrong class."
    true, predicted, rows, share = pairs[0]
    return (
        f"The most frequent error takes “{true}” for “{predicted}”: {_count(rows)} rows, "
        f"{percent(share)} of that class."
    )


def _count(rows: float) -> str:
    """A number of rows; weighted rows need not add up to a whole number."""
    return f"{round(rows):,}" if float(rows).is_integer() else number(rows)
