"""What the model is made of: shared and task-specific parameters."""

from __future__ import annotations

from polytask.reporting.record import RunRecord
from polytask.reporting.section import Section, fill
from polytask.reporting.tables import Cell, Column, Table
from polytask.reporting.words import percent, plural

LONG = 30


def model(record: RunRecord) -> Section | None:
    """Parameters by part and owner, if they were counted."""
    parts = record.model.parts
    if not parts:
        return None
    total = sum(part.parameters for part in parts)
    shared = sum(part.parameters for part in parts if part.owner == "shared")
    columns = (
        Column("part", numeric=False),
        Column("belongs to", numeric=False),
        Column("parameters"),
        Column("share"),
    )
    rows = []
    for part in parts:
        share = part.parameters / total if total else 0.0
        owner = Cell("all tasks" if part.owner == "shared" else part.owner, tone="quiet")
        rows.append((Cell(part.name), owner, Cell(f"{part.parameters:,}"), Cell(percent(share), bar=share)))
    sentence = (
        f"{percent(shared / total if total else None)} of the {plural(total, 'trained parameter')} are shared "
        f"({shared:,}); {total - shared:,} belong to one task alone."
    )
    table = Table(columns, tuple(rows), folded=len(rows) > LONG, caption=f"{len(rows)} parts")
    share = shared / total if total else 0.0
    html = fill("model.html.j2", model=record.model, sentence=sentence, shared=share, table=table)
    return Section("model", "Model", html)
