"""What the decision rule decided, and what was true of the rows."""

from __future__ import annotations

from polytask.reporting.record import DecisionRecord, OutcomeRecord, RunRecord
from polytask.reporting.section import Section, fill
from polytask.reporting.tables import Cell, Column, Table, value_cell
from polytask.reporting.words import percent, plural

NOTHING = "no decision"


def decision(record: RunRecord) -> Section | None:
    """Rows of each decision, and outcomes by decision."""
    found = record.decision
    if found is None:
        return None
    rules = [*found.rules, *([f"else {found.otherwise}"] if found.otherwise is not None else [])]
    tables = [_counts(found), *(_outcome(found, outcome) for outcome in found.outcomes)]
    html = fill("decision.html.j2", rules=rules, rows=plural(sum(found.rows), f"{found.split} row"), tables=tables)
    return Section("decision", "Decision", html)


def _counts(found: DecisionRecord) -> Table:
    total = sum(found.rows)
    cells = []
    for label, count in zip(found.labels, found.rows, strict=True):
        share = count / total if total else 0.0
        cells.append((Cell(label or NOTHING), Cell(f"{count:,}"), Cell(percent(share), bar=share)))
    return Table((Column("decision", numeric=False), Column("rows"), Column("share")), tuple(cells))


def _outcome(found: DecisionRecord, outcome: OutcomeRecord) -> Table:
    columns = (Column("decision", numeric=False), Column("labelled rows"), *map(Column, outcome.columns))
    rows = []
    for label, count, values in zip(found.labels, outcome.labelled, outcome.values, strict=True):
        cells = [Cell(percent(value), bar=value) if outcome.shares else value_cell(value) for value in values]
        rows.append((Cell(label or NOTHING), Cell(f"{count:,}"), *cells))
    what = "share of each true class" if outcome.shares else "mean of the true values"
    return Table(columns, tuple(rows), caption=f"{outcome.task}: {what}")
