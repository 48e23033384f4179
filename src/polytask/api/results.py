"""What a finished run leaves: scores, bundle, record and report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytask.api.figures import figures
from polytask.api.outcomes import decided, outcomes
from polytask.api.pictures import pictures
from polytask.api.rundir import METRICS, RunDirectory
from polytask.data.schema import TableSchema
from polytask.data.source import Source
from polytask.evaluation import CompositeIndex, Decision, Scores, TaskOutputs, collect, score_outputs
from polytask.models import MultiTaskModel
from polytask.reporting import (
    ColumnRecord,
    DataSummary,
    DecisionRecord,
    IndexRecord,
    ModelPart,
    ModelSummary,
    RunRecord,
    SharingRecord,
    TaskRecord,
    Timings,
)
from polytask.reporting.report import write_report
from polytask.serving import write_bundle
from polytask.tasks.task import labelled
from polytask.training.fit import Run
from polytask.training.runtime import Runtime
from polytask.training.settings import TrainingSettings


@dataclass(frozen=True)
class Context:
    """What results need to know beside the run.

    Args:
        title: Heading of the report.
        recipe: The resolved recipe as plain data; the settings for a run from Python.
        sources: Sources by part.
        schema: How a table's columns became inputs, or None.
        columns: The input columns.
        notes: What was inferred.
        skipped: Rows without any label.
        reference: Values to show beside ours: task -> label -> metric -> value.
        index: The composite index, or None.
        decision: The decision rule, or None.
    """

    title: str
    recipe: Mapping[str, Any]
    sources: Mapping[str, Sequence[Source]]
    schema: TableSchema | None = None
    columns: tuple[ColumnRecord, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: int = 0
    reference: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    index: CompositeIndex | None = None
    decision: Decision | None = None


def finish(directory: RunDirectory, run: Run, settings: TrainingSettings, context: Context) -> dict[str, Scores]:
    """Score every part once, and write metrics, bundle, record and report.

    The test rows are read here for the first time.
    """
    runtime = Runtime(settings.device, str(settings.precision))
    outputs = {
        part: _outputs(run.model, sources, settings, runtime)
        for part, sources in context.sources.items()
        if part != "train" and sources
    }
    scores = {part: _scores(run.model, context.sources[part], found) for part, found in outputs.items()}
    if context.index is not None:
        for found in scores.values():
            found.index = context.index(found)
    if runtime.is_main:
        directory.write_json(METRICS, _metrics(scores))
        example = context.sources["train"][0].example
        write_bundle(
            run.model,
            directory.path / "bundle",
            example=example,
            schema=context.schema,
            recipe=dict(context.recipe),
            index=context.index.settings if context.index else None,
            decision=context.decision.settings if context.decision else None,
        )
        record = _record(directory, run, context, outputs, scores, settings, runtime)
        record.save(directory.path / "report.json")
        write_report(record, directory.path / "report.html")
    # Whoever comes back from here finds the files.
    runtime.barrier()
    return scores


def _metrics(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """What metrics.json holds: metrics by part, and the index by part where there is one."""
    plain: dict[str, Any] = {part: found.to_dict() for part, found in scores.items()}
    index = {part: _finite(found.index) for part, found in scores.items() if found.index is not None}
    return plain | ({"index": index} if index else {})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _outputs(
    model: MultiTaskModel, sources: Sequence[Source], settings: TrainingSettings, runtime: Runtime
) -> dict[str, TaskOutputs]:
    shares, gather = runtime.share_out(sources)
    return collect(
        model,
        shares,
        batch_size=settings.evaluation_batch_size,
        device=runtime.device,
        autocast=runtime.autocast,
        gather=gather,
    )


def _scores(model: MultiTaskModel, sources: Sequence[Source], outputs: Mapping[str, TaskOutputs]) -> Scores:
    offered = [name for name in model.tasks if any(name in source.tasks for source in sources)]
    scored = {name: score_outputs(model.tasks[name], outputs.get(name)) for name in offered}
    counts = {name: len(outputs[name]) if name in outputs else 0 for name in offered}
    return Scores({name: of for name, (of, _) in scored.items()}, counts, {n: lost for n, (_, lost) in scored.items()})


def _record(
    directory: RunDirectory,
    run: Run,
    context: Context,
    outputs: Mapping[str, Mapping[str, TaskOutputs]],
    scores: Mapping[str, Scores],
    settings: TrainingSettings,
    runtime: Runtime,
) -> RunRecord:
    facts = directory.facts()
    shown = "test" if "test" in outputs else "validation" if "validation" in outputs else None
    evaluated = runtime.share_out(context.sources[shown])[0] if shown else ()
    return RunRecord(
        title=context.title,
        recipe=context.recipe,
        versions=facts["versions"],
        seed=settings.seed,
        command=facts["command"],
        tasks=tuple(
            _task_record(run, name, context, outputs.get(shown or "", {}), scores, evaluated)
            for name in run.model.tasks
        ),
        epochs=tuple(run.history),
        balancing=tuple(directory.balancing_rows()),
        balancer=run.notes[0] if run.notes else "",
        best_epoch=run.best_epoch,
        stop_reason=run.stop_reason or "",
        data=DataSummary(
            sizes={part: sum(map(len, sources)) for part, sources in context.sources.items() if sources},
            columns=context.columns,
            skipped=context.skipped,
            notes=context.notes,
        ),
        model=_model_summary(run.model),
        sharing=tuple(SharingRecord(**entry) for entry in run.sharing),
        timings=_timings(run, runtime),
        warnings=tuple(run.notes[1:]),
        index=_index_record(context.index, scores),
        decision=_decision_record(run.model, context, shown, settings, runtime),
    )


def _index_record(index: CompositeIndex | None, scores: Mapping[str, Scores]) -> IndexRecord | None:
    if index is None:
        return None
    values = {part: found.index for part, found in scores.items() if found.index is not None}
    return IndexRecord(index.describe(), index.higher_is_better, values)


def _decision_record(
    model: MultiTaskModel, context: Context, shown: str | None, settings: TrainingSettings, runtime: Runtime
) -> DecisionRecord | None:
    if context.decision is None or shown is None:
        return None
    # All rows of the part, on this one process: a decision reads several tasks of one row, labelled or not.
    found = decided(
        model,
        context.sources[shown],
        context.decision,
        batch_size=settings.evaluation_batch_size,
        device=runtime.device,
        autocast=runtime.autocast,
    )
    rules = context.decision.settings.rules
    return DecisionRecord(rules, context.decision.settings.otherwise, shown, **outcomes(context.decision, found))


def _task_record(
    run: Run,
    name: str,
    context: Context,
    outputs: Mapping[str, TaskOutputs],
    scores: Mapping[str, Scores],
    shown: Sequence[Source],
) -> TaskRecord:
    task = run.model.tasks[name]
    found = outputs.get(name)
    return TaskRecord(
        name=name,
        kind=task.kind,
        primary=task.primary,
        directions={key: metric.higher_is_better for key, metric in task.metrics.items()},
        classes=tuple(task.target.classes or ()),
        scores={part: dict(of[name]) for part, of in scores.items() if name in of},
        reference=context.reference.get(name, {}),
        labelled={"train": _labelled(context.sources["train"], name)}
        | {part: of.counts[name] for part, of in scores.items() if name in of},
        figures=figures(task, found) | pictures(task, found, shown) if found is not None else {},
    )


def _labelled(sources: Sequence[Source], task: str) -> int:
    """Training rows with a label; 0 for data that are read row by row."""
    targets = [source.targets(task) for source in sources if task in source.tasks]
    return sum(int(labelled(values).sum()) for values in targets if values is not None)


def _model_summary(model: MultiTaskModel) -> ModelSummary:
    parts = tuple(ModelPart(part.name, part.owner, part.parameters) for part in model.summary())
    encoder = type(getattr(model.sharing, "encoder", model.sharing)).__name__
    return ModelSummary(parts, f"{encoder} with sharing '{type(model.sharing).__name__}'")


def _timings(run: Run, runtime: Runtime) -> Timings:
    rows = run.timings
    seconds = sum(row["seconds"] for row in rows)
    return Timings(
        seconds=seconds,
        rows_per_second=sum(row["rows_per_second"] * row["seconds"] for row in rows) / seconds if seconds else None,
        peak_memory_bytes=max((row["peak_memory_bytes"] for row in rows), default=None),
        device=str(runtime.device),
    )
