"""Scores first: one table, one sentence per task, the run in numbers."""

from __future__ import annotations

from dataclasses import replace

from polytask.reporting.record import RunRecord, TaskRecord
from polytask.reporting.section import Section, fill, task_anchor
from polytask.reporting.tables import Cell, Column, Table, value_cell
from polytask.reporting.words import (
    duration,
    gain,
    memory,
    metric_label,
    number,
    plural,
    primary_score,
    shown_split,
    summary,
)


def overview(record: RunRecord) -> Section:
    """Tasks and their scores."""
    return Section(
        "scores",
        "Scores",
        fill(
            "overview.html.j2",
            table=scores_table(record),
            sentences=[summary(task) for task in record.tasks],
            facts=_facts(record),
            warnings=record.warnings,
        ),
    )


def scores_table(record: RunRecord) -> Table:
    """One row per task: its primary metric on every split, and the reference values beside it."""
    splits = _splits(record)
    sources = list(dict.fromkeys(source for task in record.tasks for source in task.reference))
    columns = [Column("task", numeric=False), Column("metric", numeric=False)]
    columns += [Column(split) for split in splits]
    columns += [Column(source) for source in sources]
    rows = []
    for index, task in enumerate(record.tasks):
        arrow = "↑" if task.directions.get(task.primary, True) else "↓"
        name = Cell(task.name, link=task_anchor(index), note=task.kind, tone="quiet")
        cells = [name, Cell(f"{metric_label(task.primary)} {arrow}")]
        cells += [value_cell(task.scores.get(split, {}).get(task.primary)) for split in splits]
        cells += [_reference_cell(task, source) for source in sources]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows))


def _splits(record: RunRecord) -> list[str]:
    """All splits that have scores; the one that counts comes first."""
    known = list(dict.fromkeys(split for task in record.tasks for split in task.scores))
    first = [shown_split(record.tasks[0])] if record.tasks else []
    return [split for split in first if split in known] + [split for split in known if split not in first]


def _reference_cell(task: TaskRecord, source: str) -> Cell:
    """A reference value, and below it how ours compares."""
    value, better = value_cell(task.reference.get(source, {}).get(task.primary)), gain(task, source)
    if better is None:
        return value
    size = number(abs(better))
    if size == number(0.0):
        return replace(value, note="ours equal", tone="quiet")
    word, tone = ("better", "good") if better > 0 else ("worse", "bad")
    return replace(value, note=f"ours {size} {word}", tone=tone)


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    """The run in a handful of numbers, each with what it counts."""
    facts = _index_facts(record)
    facts += [(str(len(record.tasks)), "task" if len(record.tasks) == 1 else "tasks, one model")]
    if "train" in record.data.sizes:
        facts.append((f"{record.data.sizes['train']:,}", "training rows"))
    if record.model.parts:
        facts.append((f"{sum(part.parameters for part in record.model.parts):,}", "trained parameters"))
    if record.epochs:
        best = f", best {record.best_epoch}" if record.best_epoch is not None else ""
        done = record.epochs[-1].get("epoch", len(record.epochs))
        facts.append((f"{done:,}", f"{'epoch' if done == 1 else 'epochs'}{best}"))
    if record.timings.seconds is not None:
        facts.append((duration(record.timings.seconds), f"training{_on(record)}"))
    if record.timings.peak_memory_bytes is not None:
        facts.append((memory(record.timings.peak_memory_bytes), "peak memory"))
    undefined = [task.name for task in record.tasks if primary_score(task) is None]
    if undefined:
        facts.append((str(len(undefined)), f"of {plural(len(record.tasks), 'task')} without a score"))
    return facts


def _index_facts(record: RunRecord) -> list[tuple[str, str]]:
    """The composite index on the split that counts."""
    if record.index is None or not record.index.values:
        return []
    split = next((split for split in _splits(record) if split in record.index.values), next(iter(record.index.values)))
    arrow = "↑" if record.index.higher_is_better else "↓"
    return [(number(record.index.values[split]), f"index {arrow} on the {split} rows: {record.index.description}")]


def _on(record: RunRecord) -> str:
    return f" on {record.timings.device}" if record.timings.device else ""
