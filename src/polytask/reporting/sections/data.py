"""What the data are: sizes, labels, columns."""

from __future__ import annotations

from polytask.reporting.record import RunRecord
from polytask.reporting.section import Section, fill
from polytask.reporting.tables import Cell, Column, Table, value_cell
from polytask.reporting.words import number, percent

LONG = 20


def data(record: RunRecord) -> Section | None:
    """Sizes and columns, if they are known."""
    summary = record.data
    if not (summary.sizes or summary.columns or summary.notes):
        return None
    html = fill("data.html.j2", data=summary, labels=labels_table(record), columns=columns_table(record))
    return Section("data", "Data", html)


def labels_table(record: RunRecord) -> Table:
    """Rows of every split, and how many of them have a label for each task."""
    sizes = record.data.sizes
    columns = (Column("", numeric=False), *(Column(split) for split in sizes))
    rows = [(Cell("rows"), *(Cell(f"{size:,}") for size in sizes.values()))]
    for task in record.tasks:
        counts = [(task.labelled.get(split), size) for split, size in sizes.items()]
        rows.append((Cell(f"labelled for {task.name}"), *(_labelled(count, size) for count, size in counts)))
    return Table(columns, tuple(rows))


def _labelled(count: int | None, size: int) -> Cell:
    if count is None:
        return Cell(number(None), tone="quiet")
    share = f" ({percent(count / size)})" if size and count != size else ""
    return Cell(f"{count:,}{share}")


def columns_table(record: RunRecord) -> Table | None:
    """The input columns; missing values as a share of the training rows."""
    columns = record.data.columns
    if not columns:
        return None
    size = record.data.sizes.get("train")
    heads = (
        Column("column", numeric=False),
        Column("read as", numeric=False),
        Column("distinct values"),
        Column("missing"),
        Column("share missing"),
    )
    rows = []
    for column in columns:
        share = column.missing / size if size else None
        missing = Cell(percent(share), bar=share, tone="" if column.missing else "quiet")
        rows.append((
            Cell(column.name),
            Cell(column.kind, tone="quiet"),
            value_cell(column.distinct),
            Cell(f"{column.missing:,}", tone="" if column.missing else "quiet"),
            missing,
        ))  # fmt: skip
    return Table(heads, tuple(rows), caption=f"{len(columns):,} input columns", folded=len(columns) > LONG)
