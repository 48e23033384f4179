"""Everything that a report shows, as plain data that survives a round trip through JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from polytask.errors import DataError
from polytask.files import replacing

Values = Mapping[str, float | None]
"""Numbers by name; None and NaN mean that the number is undefined."""


class _Strict:
    """Tells pydantic that an unknown key is an error."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True)
class TaskRecord(_Strict):
    """One task's part of the report.

    ``figures`` holds what is drawn, as plain lists and numbers. A key that is absent is not drawn:

    - ``confusion``: ``matrix`` ``[k][k]``, rows of the matrix are true classes and columns predicted ones.
    - ``roc``: ``x`` false positive rates, ``y`` true positive rates, ``area``.
    - ``precision_recall``: ``x`` recalls, ``y`` precisions, ``area`` (average precision), ``base`` (share of
      positives).
    - ``calibration``: ``predicted`` mean probability, ``observed`` frequency and ``rows`` of each bin, ``error``.
    - ``errors``: ``edges`` ``[bins + 1]`` and ``counts`` ``[bins]`` of predicted minus true.
    - ``predicted_true``: ``true`` and ``predicted``, a sample of rows.
    - ``pictures``: sample images, a mapping each: ``image`` (PNG in base 64) and its ``size`` ``[h, w]``; either
      ``boxes`` with ``true`` and ``predicted`` lists of ``label``, ``box`` and ``score``, in pixels of an image of the
      size ``within``, or ``masks`` with ``true`` and ``predicted`` PNG images to lay over it.
    - ``labels``: one mapping per label with ``label``, ``support`` and any metrics.

    Args:
        name: The task's name.
        kind: Its kind, such as ``"binary"``.
        primary: The metric that stands for it.
        directions: For every metric, whether higher is better.
        classes: Names of its classes or labels, in order.
        scores: Metrics by split, such as ``{"test": {"auroc": 0.94}}``.
        reference: Values shown beside ours: source of the value -> metric -> value.
        labelled: Rows with a label, by split.
        figures: What is drawn, as described above.
    """

    name: str
    kind: str
    primary: str
    directions: Mapping[str, bool]
    classes: tuple[str, ...] = ()
    scores: Mapping[str, Values] = field(default_factory=dict)
    reference: Mapping[str, Values] = field(default_factory=dict)
    labelled: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnRecord(_Strict):
    """One column of the data.

    Args:
        name: The column's name.
        kind: How it is read, such as ``"number"`` or ``"category"``.
        distinct: Distinct values in the training rows, or None if nobody counted.
        missing: Training rows without a value.
    """

    name: str
    kind: str
    distinct: int | None = None
    missing: int = 0


@dataclass(frozen=True)
class DataSummary(_Strict):
    """What the data are.

    Args:
        sizes: Rows by split.
        columns: The input columns, in order; empty if the data are not a table.
        skipped: Rows left out because they could not be read.
        notes: What was inferred from the data, one line each.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    columns: tuple[ColumnRecord, ...] = ()
    skipped: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelPart(_Strict):
    """Parameters with one owner.

    Args:
        name: Such as ``"encoder"`` or ``"head"``.
        owner: ``"shared"``, or the name of the one task that they belong to.
        parameters: How many numbers are trained.
    """

    name: str
    owner: str
    parameters: int


@dataclass(frozen=True)
class ModelSummary(_Strict):
    """What the model is made of.

    Args:
        parts: Its parts, in order.
        description: One line about the architecture.
    """

    parts: tuple[ModelPart, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class SharingRecord(_Strict):
    """How one matrix of the sharing went over training: gates, stitches, relations, parents or attention.

    Args:
        name: What the sharing calls it, such as ``"gates"`` or ``"stitch 1"``.
        axes: What rows and columns stand for, such as ``("task", "expert")``.
        rows: Names of the rows.
        columns: Names of the columns; fewer than there are in a matrix too large to keep.
        size: Rows and columns that the sharing has.
        epochs: The epochs looked at.
        values: For each of these a matrix ``[rows, columns]``; None where there was no number.
    """

    name: str
    axes: tuple[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    size: tuple[int, int]
    epochs: tuple[int, ...]
    values: tuple[tuple[tuple[float | None, ...], ...], ...]


@dataclass(frozen=True)
class IndexRecord(_Strict):
    """The composite index.

    Args:
        description: What it is, such as its expression.
        higher_is_better: Its direction.
        values: Its value by split.
    """

    description: str
    higher_is_better: bool
    values: Values


@dataclass(frozen=True)
class OutcomeRecord(_Strict):
    """What was true of the rows of each decision, for one task.

    Args:
        task: The task.
        shares: Whether numbers are shares of classes or labels; else they are means of true values.
        columns: Names of the classes or labels, or of the values.
        labelled: For each decision its rows with a label.
        values: For each decision one number a column; None without a labelled row.
    """

    task: str
    shares: bool
    columns: tuple[str, ...]
    labelled: tuple[int, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class DecisionRecord(_Strict):
    """What a decision rule decided for the rows of one split.

    Args:
        rules: The rules, in order.
        otherwise: What is decided where none holds, or None.
        split: Whose rows.
        labels: The decisions, in order; the empty one is no decision.
        rows: How many rows got each.
        outcomes: What was true of these rows, by task.
    """

    rules: tuple[str, ...]
    otherwise: str | None
    split: str
    labels: tuple[str, ...]
    rows: tuple[int, ...]
    outcomes: tuple[OutcomeRecord, ...] = ()


@dataclass(frozen=True)
class Timings(_Strict):
    """What the run cost.

    Args:
        seconds: Training time, validation included.
        rows_per_second: Training rows a second.
        peak_memory_bytes: Most memory in use.
        device: Where it ran.
    """

    seconds: float | None = None
    rows_per_second: float | None = None
    peak_memory_bytes: int | None = None
    device: str = ""


@dataclass(frozen=True)
class RunRecord(_Strict):
    """A run, as its report shows it.

    Args:
        title: Heading of the report.
        recipe: The resolved recipe.
        versions: Version by package.
        seed: Seed of the run.
        command: What to type to repeat it.
        tasks: The tasks, in order.
        epochs: History rows of scope "epoch": ``epoch``, ``step``, ``loss.TASK``, ``TASK.METRIC``, ``lr``.
        balancing: History rows of scope "step": ``step``, ``weight.TASK``, ``cosine.TASK.TASK``,
            ``conflict_rate``, ``update_norm``; any of them may be absent.
        balancer: One line that says how the tasks were balanced.
        best_epoch: The epoch whose weights were kept, or None for the last.
        stop_reason: Why the run ended early, or empty.
        data: What the data are.
        model: What the model is made of.
        sharing: What the sharing showed of itself over training; empty if it has nothing to show.
        timings: What the run cost.
        warnings: What a reader must know, one line each.
        index: The composite index, or None; its course is the column ``index`` of ``epochs``.
        decision: What the decision rule decided, or None.

    Example:
        >>> task = TaskRecord("income", "binary", "auroc", {"auroc": True}, scores={"test": {"auroc": 0.94}})
        >>> record = RunRecord("Census", recipe={}, versions={}, seed=0, command="polytask fit x.yaml", tasks=(task,))
        >>> RunRecord.from_dict(record.to_dict()) == record
        True
    """

    title: str
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    seed: int
    command: str
    tasks: tuple[TaskRecord, ...]
    epochs: tuple[Mapping[str, Any], ...] = ()
    balancing: tuple[Mapping[str, Any], ...] = ()
    balancer: str = ""
    best_epoch: int | None = None
    stop_reason: str = ""
    data: DataSummary = field(default_factory=DataSummary)
    model: ModelSummary = field(default_factory=ModelSummary)
    sharing: tuple[SharingRecord, ...] = ()
    timings: Timings = field(default_factory=Timings)
    warnings: tuple[str, ...] = ()
    index: IndexRecord | None = None
    decision: DecisionRecord | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types only; numbers that are not finite become None."""
        plain: dict[str, Any] = _plain(self)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunRecord:
        """The record that ``to_dict`` was called on.

        Raises:
            DataError: if a part is missing, unknown or of the wrong type; the message names each.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_python(dict(data))
        except ValidationError as error:
            found = "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}" for problem in error.errors()[:5]
            )
            raise DataError(f"This is not the record of a run: {found}. Write it again with RunRecord.save.") from error

    def save(self, path: Path | str) -> None:
        """Write the record as JSON, whole or not at all."""
        with replacing(Path(path)) as unfinished:
            text = json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)
            unfinished.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> RunRecord:
        """The record in a file that ``save`` wrote.

        Raises:
            DataError: if the file holds something else.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"'{path}' is not JSON: {error}. Write it again with RunRecord.save.") from error
        if not isinstance(data, dict):
            raise DataError(f"'{path}' holds a {type(data).__name__}, not the record of a run.")
        return cls.from_dict(data)


def _plain(value: Any) -> Any:
    """Records, mappings, sequences and numbers as JSON has them."""
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)
