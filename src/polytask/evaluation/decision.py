"""A decision for every row, by rules over the predictions of several tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.errors import RecipeError
from polytask.expressions import Expression
from polytask.tasks.task import Task

KINDS = ("binary", "multiclass", "ordinal", "multilabel", "regression", "counts")
"""Kinds of tasks that a rule may read: those that predict one thing a row."""
NUMBERS = ("binary", "regression", "counts")
"""Kinds of tasks whose name alone is a number: the probability, the value, the rate."""
_RULE = re.compile(r"(?P<label>.+?)\s+if\s+(?P<condition>.+?)(?:\s+else\s+(?P<otherwise>.+))?", re.DOTALL)


@dataclass(frozen=True)
class DecisionSettings:
    """A decision for every row.

    Args:
        rules: Such as ``approve if income > 0.8 and risk < 0.1``, in order: the first that holds decides. The name of
            a task is its probability (binary) or value (regression, counts). ``TASK.label`` is what was predicted,
            and ``TASK.SUFFIX`` any further column of its predictions.
        otherwise: What is decided where no rule holds; nothing if left out.
        column: Name of the column that ``predict`` writes.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    rules: tuple[str, ...]
    otherwise: str | None = None
    column: str = "decision"

    def __post_init__(self) -> None:
        if not self.rules:
            raise RecipeError("decision.rules is empty. Write at least one, such as 'approve if income > 0.8'.")


def decision_settings(given: str | Sequence[str] | Mapping[str, Any] | DecisionSettings) -> DecisionSettings:
    """The settings, also where only a rule or a list of rules were given.

    The last of several rules may be ``else LABEL``, and the only or last one may end in it.

    Raises:
        RecipeError: for a rule that is none.

    Example:
        >>> decision_settings("approve if income > 0.8 else decline")
        DecisionSettings(rules=('approve if income > 0.8',), otherwise='decline', column='decision')
    """
    if isinstance(given, DecisionSettings):
        settings = given
    elif isinstance(given, Mapping):
        settings = DecisionSettings(**{**given, "rules": tuple(given.get("rules", ()))})
    else:
        settings = DecisionSettings((given,) if isinstance(given, str) else tuple(given))
    *first, last = settings.rules
    otherwise = None
    if first and last.split()[:1] == ["else"]:
        rules, otherwise = first, last.split(None, 1)[1] if len(last.split(None, 1)) > 1 else ""
    else:
        label, condition, otherwise = _parts(last)
        rules = [*first, f"{label} if {condition}"]
    if otherwise == "" or (otherwise is not None and settings.otherwise is not None):
        raise RecipeError(f"decision: '{last}' and otherwise: {settings.otherwise!r}. Say once what else is decided.")
    for rule in first:
        if _parts(rule)[2] is not None:
            raise RecipeError(f"decision: '{rule}' has an else, but rules follow it. Only the last one may have it.")
    return DecisionSettings(tuple(rules), settings.otherwise if otherwise is None else otherwise, settings.column)


def _parts(rule: str) -> tuple[str, str, str | None]:
    match = _RULE.fullmatch(rule.strip())
    if match is None:
        raise RecipeError(f"decision: '{rule}' is no rule. Write LABEL if CONDITION, such as approve if income > 0.8.")
    return match["label"], match["condition"], match["otherwise"]


class Decision:
    """Decides for rows from the raw outputs of the tasks.

    Args:
        given: Rules or settings.
        tasks: The tasks by name, with their classes known.

    Attributes:
        needs: Names of the tasks whose outputs it reads.

    Raises:
        RecipeError: for a rule that is none, an unknown task or output, or a column name that a prediction has.

    Example:
        >>> import torch
        >>> from polytask.tasks import binary, regression
        >>> tasks = {"pays": binary("pays"), "size": regression("size")}
        >>> decide = Decision("approve if pays > 0.8 and size < 3 else decline", tasks)
        >>> list(decide({"pays": torch.tensor([2.0, 2.0, -1.0]), "size": torch.tensor([1.0, 4.0, 1.0])}))
        ['approve', 'decline', 'decline']
    """

    def __init__(self, given: str | Sequence[str] | Mapping[str, Any] | DecisionSettings, tasks: Mapping[str, Task]):
        self.settings = decision_settings(given)
        self._tasks = dict(tasks)
        outputs = {name: _outputs(task) for name, task in tasks.items()}
        known = {key: texts for of in outputs.values() for key, texts in of.items()}
        texts = {key: classes for key, classes in known.items() if classes is not None}
        self._rules: list[tuple[str, Expression]] = []
        for rule in self.settings.rules:
            label, condition, _ = _parts(rule)
            self._rules.append((label, Expression(condition, known, "decision", texts)))
        used = {name for _, expression in self._rules for name in expression.names}
        self._used = {key: (task, key) for task, of in outputs.items() for key in of if key in used}
        self.needs = tuple(task for task, of in outputs.items() if used & set(of))
        if not self.needs:
            raise RecipeError("decision: the rules read no task. Name one, such as 'approve if income > 0.8'.")
        taken = {f"{name}_{suffix}" for name, task in tasks.items() for suffix in _example(task) if suffix} | set(tasks)
        if self.settings.column in taken:
            raise RecipeError(f"decision.column is '{self.settings.column}', which a task's prediction has. Rename it.")

    @property
    def labels(self) -> tuple[str, ...]:
        """What may be decided, in order."""
        found = dict.fromkeys(label for label, _ in self._rules)
        return tuple(found | ({self.settings.otherwise: None} if self.settings.otherwise is not None else {}))

    def __call__(self, raw: Mapping[str, Tensor]) -> NDArray[Any]:
        """The decision of every row; None where no rule holds and nothing else is said, or an output is undefined.

        Args:
            raw: For each task of ``needs`` its raw outputs ``[rows, ...]``.

        Returns:
            Labels ``[rows]``, as objects.
        """
        values = {key: value for task in self.needs for key, value in self._values(task, raw[task])}
        rows = len(next(iter(raw.values())))
        decided = np.full(rows, self.settings.otherwise, dtype=object)
        for label, expression in reversed(self._rules):
            holds = np.broadcast_to(np.asarray(expression(values), dtype=bool), rows)
            decided[holds] = label
        for value in values.values():
            if value.dtype.kind == "f":
                decided[np.isnan(value)] = None
        return decided

    def _values(self, name: str, raw: Tensor) -> Iterator[tuple[str, NDArray[Any]]]:
        columns = self._tasks[name].decode(raw)
        for key, (task, _) in self._used.items():
            if task == name:
                yield key, np.asarray(columns[_column(self._tasks[name], key.removeprefix(name).removeprefix("."))])


def _example(task: Task) -> dict[str, NDArray[Any]]:
    """The columns of a task's predictions, for a row of zeros; none for kinds without one prediction a row."""
    if task.kind not in KINDS:
        return {}
    return task.decode(torch.zeros(1) if task.head.outputs is None else torch.zeros(1, task.head.outputs))


def _outputs(task: Task) -> dict[str, tuple[str, ...] | None]:
    """Names that a rule may use for a task: None for a number, and for a text the classes that it can be."""
    columns = _example(task)
    found: dict[str, tuple[str, ...] | None] = {f"{task.name}.{suffix}": None for suffix in columns if suffix}
    if "" in columns:
        is_text = columns[""].dtype == object
        # A row's labels are joined to one text, of which there are too many to list.
        classes = tuple(task.target.classes or ()) if task.kind != "multilabel" else ()
        found[f"{task.name}.label"] = classes if is_text else None
        if task.kind in NUMBERS:
            found[task.name] = None
    return found


def _column(task: Task, suffix: str) -> str:
    """The suffix of the predictions' column that a name of a rule stands for."""
    if suffix == "label":
        return ""
    if suffix:
        return suffix
    return "probability" if task.kind == "binary" else ""
