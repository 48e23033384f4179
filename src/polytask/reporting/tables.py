"""Tables as data: what the template draws, without any markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polytask.reporting.words import metric_label, number


@dataclass(frozen=True)
class Column:
    """A column's heading.

    Args:
        label: What it says.
        numeric: Whether its cells are numbers, which line up on the right.
        help: What a pointer held over it shows.
    """

    label: str
    numeric: bool = True
    help: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: What it says; escaped by the template.
        tone: ``"good"``, ``"bad"``, ``"quiet"`` or empty; of the note if there is one.
        bar: Length of a bar behind the text, from 0 to 1, or None for no bar.
        link: Anchor on the page that the text leads to, or empty.
        note: What stands below the text in small letters, or empty.
    """

    text: str
    tone: str = ""
    bar: float | None = None
    link: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Headings and rows.

    Args:
        columns: The headings.
        rows: The cells, row by row.
        caption: One line above the table.
        folded: Whether it starts closed, because it is long.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    folded: bool = False


def value_cell(value: float | None, *, share: bool = False) -> Cell:
    """A number; with a bar behind it where it is a share from 0 to 1.

    Example:
        >>> value_cell(0.5, share=True)
        Cell(text='0.5000', tone='', bar=0.5, link='', note='')
        >>> value_cell(None)
        Cell(text='–', tone='quiet', bar=None, link='', note='')
    """
    if value is None or not math.isfinite(value):
        return Cell(number(None), tone="quiet")
    return Cell(number(value), bar=min(max(float(value), 0.0), 1.0) if share else None)


def mapping_table(
    rows: Sequence[Mapping[str, float | int | str | None]], names: Sequence[str], *, shares: Sequence[str] = (),
    caption: str = "", folded: bool = False,
) -> Table:  # fmt: skip
    """A table of rows with the same keys; text in the first column, numbers in the others.

    Args:
        rows: The rows; an absent key is shown as a dash.
        names: Keys, in the order of the columns.
        shares: Keys whose values lie between 0 and 1 and get a bar.
        caption: One line above the table.
        folded: Whether it starts closed.
    """
    columns = tuple(Column(metric_label(name), numeric=index > 0) for index, name in enumerate(names))
    cells = tuple(tuple(_cell(row.get(name), name in shares) for name in names) for row in rows)
    return Table(columns, cells, caption, folded)


def _cell(value: float | int | str | None, share: bool) -> Cell:
    return Cell(value) if isinstance(value, str) else value_cell(value, share=share)
