"""A recipe -> sources, tasks and a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from polytask import registry
from polytask.data.infer import describe_inference, guess_inputs
from polytask.data.preprocess import TablePreprocessor
from polytask.data.schema import TableSchema
from polytask.data.source import TensorSource
from polytask.data.spec import InputSpec
from polytask.data.table import as_text
from polytask.data.target_forms import target_columns
from polytask.data.targets import drop_unlabelled, encode_target, encode_weight, fit_target
from polytask.errors import DataError, RecipeError, suggestion, unknown
from polytask.evaluation import CompositeIndex, Criterion, Decision
from polytask.models import MultiTaskModel
from polytask.recipes.frames import Loaded, Sheet, load_frames
from polytask.recipes.pictures import read_pictures
from polytask.recipes.rows import check_rows
from polytask.recipes.schema import Recipe, named
from polytask.sharing import Sharing
from polytask.tasks.task import Task

# Keys of a task in a recipe that are not options of its type.
TASK_KEYS = ("type", "column", "weight")


@dataclass(frozen=True)
class Column:
    """An input column, for the report: its name, kind, distinct values and missing training values."""

    name: str
    kind: str
    distinct: int
    missing: int


@dataclass(frozen=True)
class Built:
    """What a recipe stands for.

    Args:
        model: The model.
        sources: Sources by part (``train``, ``validation``, ``test``): one where all tasks share rows, else
            one a task; a part without rows has none.
        schema: How the table's columns become inputs.
        columns: The input columns.
        notes: What was inferred and what was left out, a line each.
        skipped: Rows without any label.
        recipe: The recipe with what was inferred filled in.
        index: The composite index, or None.
        decision: The decision rule, or None.
    """

    model: MultiTaskModel
    sources: Mapping[str, tuple[TensorSource, ...]]
    schema: TableSchema
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    skipped: int
    recipe: Recipe
    index: CompositeIndex | None = None
    decision: Decision | None = None


def build(recipe: Recipe) -> Built:
    """Read the data of a recipe and make its model.

    Raises:
        DataError: for a missing file or column, a value that does not parse, a label outside of the classes.
        RecipeError: for an unknown name or option.
    """
    loaded = load_frames(recipe)
    tasks = make_tasks(recipe)
    weights = _weight_columns(recipe, loaded)
    inputs, notes = choose_inputs(recipe, loaded, tasks, set(weights.values()))
    inputs = {name: _as_encoder_reads(name, spec, recipe) for name, spec in inputs.items()}
    check_rows(loaded, inputs, tasks)
    read_pictures(loaded, inputs, tasks)
    trained = [group.training.rows("train") for group in loaded.groups]
    whole = trained[0] if len(trained) == 1 else pl.concat([frame.select(_columns_read(inputs)) for frame in trained])
    preprocessor = TablePreprocessor.fit(whole, inputs)
    if [spec.kind for spec in inputs.values()] in (["image"], ["text"], ["audio"]):
        # An encoder of images, texts or sounds reads those themselves, not a dict with one entry.
        preprocessor = TablePreprocessor(replace(preprocessor.schema, single=True))
    columns = tuple(_column(whole, name, spec.kind) for name, spec in inputs.items())
    for group, frame in zip(loaded.groups, trained, strict=True):
        for name in group.tasks:
            tasks[name] = _at(fit_target(frame, tasks[name]), _columns(recipe.tasks[name]))
    del trained, whole
    sources: dict[str, list[TensorSource]] = {"train": [], "validation": [], "test": []}
    skipped = 0
    for group in loaded.groups:
        while group.sheets:
            # Text is several times the size of its tensors: a sheet goes as soon as it is encoded.
            sheet = group.sheets.pop(0)
            for part, source, lost in _sources(sheet, group.tasks, preprocessor, tasks, weights):
                sources[part].append(source)
                skipped += lost
            if sheet.bad:
                notes = [*notes, f"{sheet.name}: {sheet.told}"]
                warnings.warn(notes[-1], stacklevel=2)
    if skipped:
        notes = [*notes, f"Skipped {skipped:,} rows: they have no label for any task."]
    model = make_model(recipe, preprocessor.schema, list(tasks.values()))
    index, decision = _over_tasks(recipe, model.tasks)
    resolved = replace(recipe, inputs=inputs, preprocessing={})
    parts = {part: tuple(found) for part, found in sources.items()}
    return Built(model, parts, preprocessor.schema, columns, tuple(notes), skipped, resolved, index, decision)


def make_index(recipe: Recipe, tasks: Sequence[Task]) -> CompositeIndex | None:
    """The recipe's composite index over fitted tasks, or None."""
    return None if recipe.index is None else CompositeIndex(recipe.index, {task.name: task for task in tasks})


def _over_tasks(recipe: Recipe, tasks: Mapping[str, Task]) -> tuple[CompositeIndex | None, Decision | None]:
    """Index and decision of a recipe; a mistake in them, or in what selects, is found before anything trains."""
    index = make_index(recipe, list(tasks.values()))
    if recipe.training.select != "last":
        Criterion(recipe.training.select, tasks, index)
    return index, Decision(recipe.decision, tasks) if recipe.decision is not None else None


def make_tasks(recipe: Recipe) -> dict[str, Task]:
    """The recipe's tasks, before they have seen data."""
    heads = dict(recipe.model.heads)
    tasks = {}
    for name, settings in recipe.tasks.items():
        options = {key: value for key, value in settings.items() if key not in TASK_KEYS}
        try:
            task = registry.build("tasks", str(settings["type"]), {**heads, **options}, name=name)
        except RecipeError as error:
            raise RecipeError(f"tasks.{name}: {error}") from None
        tasks[name] = _at(task, _columns(settings))
    return tasks


def _columns(settings: Mapping[str, Any]) -> tuple[str, ...]:
    column = settings.get("column", ())
    return (column,) if isinstance(column, str) else tuple(column)


def _at(task: Task, columns: tuple[str, ...]) -> Task:
    """The task with its target in these columns of the table."""
    return replace(task, target=replace(task.target, columns=columns)) if columns else task


def _weight_columns(recipe: Recipe, loaded: Loaded) -> dict[str, str]:
    """The column of row weights of each task that has one."""
    found: dict[str, str] = {}
    for group in loaded.groups:
        if isinstance(group.weight, Mapping):
            for task in group.weight:
                if task not in recipe.tasks:
                    raise RecipeError(f"data.weight: {unknown('task', task, recipe.tasks)}")
            found |= {task: group.weight[task] for task in group.tasks if task in group.weight}
        elif group.weight is not None:
            found |= dict.fromkeys(group.tasks, group.weight)
    return found | {name: str(task["weight"]) for name, task in recipe.tasks.items() if "weight" in task}


def choose_inputs(
    recipe: Recipe, loaded: Loaded, tasks: Mapping[str, Task], weights: set[str]
) -> tuple[dict[str, InputSpec], list[str]]:
    """How each input column is read: as stated, as the data set says, or as inferred.

    Raises:
        RecipeError: if a target is named as an input: the model would read the answer.
        DataError: if no column is left.
    """
    targets = {column for task in tasks.values() for column in target_columns(task)}
    frame = loaded.groups[0].training.rows("train")
    defaults = _defaults(recipe)
    if recipe.inputs is not None:
        for name in _columns_read(recipe.inputs):
            if name in targets:
                raise RecipeError(f"inputs.{name} is the target of a task; the model would read the answer.")
            if name not in frame.columns:
                raise DataError(f"inputs.{name}: the table has no such column.{suggestion(name, frame.columns)}")
        return {name: _spec(said, defaults) for name, said in recipe.inputs.items()}, []
    if loaded.inputs is not None:
        chosen = {name: kind for name, kind in loaded.inputs.items() if name not in targets | weights}
        return {name: _spec(said, defaults) for name, said in chosen.items()}, []
    guesses = guess_inputs(frame, exclude=targets | weights | loaded.split_columns)
    found = {guess.column: guess.kind for guess in guesses if guess.kind}
    if not found:
        raise DataError("No column is left as an input. Name some: inputs: {age: number, job: category}.")
    return {name: InputSpec(kind, **defaults) for name, kind in found.items()}, describe_inference(guesses)


def _spec(said: str | Mapping[str, Any] | InputSpec, defaults: Mapping[str, Any]) -> InputSpec:
    """How a column is read that says its kind alone, its kind and options, or everything."""
    if isinstance(said, InputSpec):
        return said
    return InputSpec(said, **defaults) if isinstance(said, str) else InputSpec(**{**defaults, **said})


def _columns_read(inputs: Mapping[str, str | InputSpec]) -> list[str]:
    """Names of the columns that inputs are read from: their own, and the second texts of pairs."""
    pairs = [spec.pair for spec in inputs.values() if isinstance(spec, InputSpec) and spec.pair]
    return list(dict.fromkeys([*inputs, *pairs]))


def _as_encoder_reads(column: str, spec: InputSpec, recipe: Recipe) -> InputSpec:
    """Where a column says nothing of tokenizer, size or extractor it gets what the encoder needs, if that knows."""
    name, options = named(recipe.model.encoder, "tabular", "model.encoder")
    completed = getattr(registry.get("encoders", name), "completed", None)
    return spec if completed is None else completed(options, spec, column)


def _defaults(recipe: Recipe) -> dict[str, Any]:
    options = dict(recipe.preprocessing)
    if "kind" in options:
        raise RecipeError("preprocessing.kind: each column has its own kind; name it in inputs.")
    registry.check_options("preprocessing", InputSpec, options, {"kind": None})
    return options


def _column(frame: pl.DataFrame, name: str, kind: str) -> Column:
    series = frame.get_column(name)
    if kind in ("image", "audio"):
        return Column(name, kind, series.len(), series.null_count())
    if isinstance(series.dtype, pl.List):
        series = series.list.join(" ")
    text = as_text(series)
    return Column(name, kind, text.drop_nulls().n_unique(), text.null_count())


def _sources(
    sheet: Sheet,
    names: Sequence[str],
    preprocessor: TablePreprocessor,
    tasks: Mapping[str, Task],
    weights: Mapping[str, str],
) -> Iterator[tuple[str, TensorSource, int]]:
    """The parts of a sheet, each with its source and the number of rows without any label."""

    def encoded() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        targets = {name: encode_target(sheet.frame, tasks[name], sizes=sheet.sizes) for name in names}
        return targets, {name: encode_weight(sheet.frame, weights[name]) for name in names if name in weights}

    targets, of_rows = sheet.read(encoded)
    whole = sheet.read(lambda: TensorSource(preprocessor.inputs(sheet.frame), targets, of_rows))
    for part, chosen in sheet.parts.items():
        rows = torch.arange(len(whole)) if chosen is None else torch.from_numpy(chosen)
        known, _ = drop_unlabelled({name: target[rows] for name, target in targets.items()})
        if len(known) == len(whole):
            yield part, whole, 0
            continue
        kept = whole.take(rows[known])
        yield part, TensorSource(kept.inputs, kept.targets, kept.weights), len(rows) - len(known)


def make_model(recipe: Recipe, schema: TableSchema, tasks: Sequence[Task]) -> MultiTaskModel:
    """The recipe's model; its heads are built when the tasks have been fitted.

    Its initial weights come from PyTorch's global generator: seed it first.
    """
    name, options = named(recipe.model.encoder, "tabular", "model.encoder")
    encoder: nn.Module = registry.build("encoders", name, options, schema=schema)
    if registry.mark_of(encoder) is None:
        registry.mark(encoder, name, options)
    sharing_name, sharing_options = named(recipe.model.sharing, "hard", "model.sharing")
    sharing: Sharing = registry.build("sharings", sharing_name, sharing_options, encoder=encoder)
    return MultiTaskModel(sharing, tasks)
