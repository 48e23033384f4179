"""Running a model over sources: outputs, targets and scores of every task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polytask.data.batch import Batch, joined_rows, map_tensors
from polytask.data.source import Source
from polytask.errors import DataError, listed
from polytask.evaluation.scores import Scores
from polytask.tasks.metrics import Derived, mean_defined
from polytask.tasks.task import Metric, Task, labelled

Gather = Callable[[Any], list[Any]]
"""Maps a process's value to the values of all processes, in order."""
Compute = Callable[..., Any]


@dataclass(frozen=True)
class TaskOutputs:
    """What a model says about a task's labelled rows, and what is true.

    Args:
        raw: What the task keeps of its raw outputs (``Task.kept``) ``[rows, ...]``, on the CPU.
        score: What metrics read (``Task.score``), ``[rows, ...]``.
        target: Targets ``[rows, ...]``.
        weight: Row weights ``[rows]``, or None.
    """

    raw: Tensor
    score: NDArray[np.float64]
    target: NDArray[Any]
    weight: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.target)


@dataclass
class _Part:
    """Labelled rows of one task, batch by batch."""

    raw: list[Tensor] = field(default_factory=list)
    target: list[Tensor] = field(default_factory=list)
    weight: list[Tensor | None] = field(default_factory=list)
    place: list[Tensor] = field(default_factory=list)

    def add(self, raw: Tensor, target: Tensor, weight: Tensor | None, place: Tensor) -> None:
        """Take rows in, with their places among all rows of the task."""
        self.raw.append(raw)
        self.target.append(target)
        self.weight.append(weight)
        self.place.append(place)

    def joined(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """All rows on the CPU, in one transfer, in the order of their places."""
        weight = None
        if any(w is not None for w in self.weight):
            weight = torch.cat([_ones(t) if w is None else w.double().cpu() for w, t in self._weights()])
        raw, target = joined_rows(self.raw).cpu(), joined_rows([target.cpu() for target in self.target])
        place = torch.cat(self.place)
        if bool((place.diff() < 0).any()):
            # A source with lengths gives its short rows first.
            order = place.argsort()
            raw, target, weight = raw[order], target[order], None if weight is None else weight[order]
        return raw, target, weight

    def _weights(self) -> Iterator[tuple[Tensor | None, Tensor]]:
        return zip(self.weight, self.target, strict=True)


def _ones(target: Tensor) -> Tensor:
    return torch.ones(len(target), dtype=torch.float64)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; give every part its own mode back afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def collect(
    model: nn.Module,
    sources: Sequence[Source],
    tasks: Mapping[str, Task] | None = None,
    *,
    batch_size: int = 4096,
    device: torch.device | str | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    gather: Gather | None = None,
) -> dict[str, TaskOutputs]:
    """Run a model over sources and keep the outputs of labelled rows.

    Every source's rows go through the model once, for the tasks that the source has labels for. A task of
    several sources gets the rows of all.

    Args:
        model: Called as ``model(inputs, task_names)``, it gives raw outputs by task.
        sources: Labelled rows.
        tasks: Tasks by name; None takes ``model.tasks``. Tasks without a source are left out.
        batch_size: Rows at a time.
        device: Where to compute; None takes that of the model's parameters.
        autocast: Makes the context of a forward.
        gather: With several processes that hold different rows: joins them, so that every process gets the
            outputs of all rows. None if every process holds all rows.

    Returns:
        Outputs by task; a task without a single labelled row has none.

    Raises:
        DataError: if no source has labels for any of the tasks, or an output does not fit its rows.
    """
    known = cast(Mapping[str, Task], model.tasks) if tasks is None else tasks
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    parts: dict[str, _Part] = {}
    with evaluation_mode(model), torch.inference_mode():
        first = 0
        for source in sources:
            wanted = tuple(name for name in known if name in source.tasks)
            for rows in source.readings(batch_size) if wanted else ():
                batch = source.take(rows)
                with autocast():
                    raw = model(map_tensors(batch.inputs, lambda tensor: tensor.to(device)), wanted)
                for name in wanted:
                    _keep(parts, known[name], raw[name], batch, first + rows)
            first += len(source)
        found = {name: part.joined() for name, part in parts.items()}
    offered = {name for source in sources for name in source.tasks}
    if not offered & set(known):
        raise DataError(
            f"The data have labels for: {listed(sorted(offered)) or 'no task'}. None of the tasks is among them: "
            f"{listed(known)}."
        )
    if gather is not None:
        found = _gathered(found, gather)
    return {name: _outputs(known[name], *found[name]) for name in known if name in found}


def _keep(parts: dict[str, _Part], task: Task, raw: Tensor, batch: Batch, place: Tensor) -> None:
    target, weight = batch.targets[task.name], batch.weights.get(task.name)
    if len(raw) != len(target):
        raise DataError(f"The model gave {len(raw)} outputs for '{task.name}' but the batch has {len(target)} rows.")
    known = labelled(target)
    if not known.all():
        rows = known.nonzero().squeeze(1)
        raw = raw.index_select(0, rows.to(raw.device))
        target = target.index_select(0, rows)
        weight = None if weight is None else weight.index_select(0, rows)
        place = place.index_select(0, rows.cpu())
    if len(target):
        parts.setdefault(task.name, _Part()).add(task.kept(raw), target, weight, place)


def _gathered(
    found: Mapping[str, tuple[Tensor, Tensor, Tensor | None]], gather: Gather
) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    everywhere: list[Mapping[str, tuple[Tensor, Tensor, Tensor | None]]] = gather(dict(found))
    parts: dict[str, _Part] = {}
    for share in everywhere:
        for name, (raw, target, weight) in share.items():
            part = parts.setdefault(name, _Part())
            start = sum(map(len, part.place))
            part.add(raw, target, weight, torch.arange(start, start + len(target)))
    return {name: part.joined() for name, part in parts.items()}


def _outputs(task: Task, raw: Tensor, target: Tensor, weight: Tensor | None) -> TaskOutputs:
    # NumPy has no bfloat16, and metrics count in float64 anyway.
    plain = target.double() if target.is_floating_point() else target
    return TaskOutputs(raw, task.score(raw), plain.numpy(), None if weight is None else weight.numpy())


def score_outputs(task: Task, outputs: TaskOutputs | None) -> tuple[dict[str, float], dict[str, int]]:
    """A task's metrics, and how many classes or labels their averages left out.

    All metrics are NaN without labelled rows, with no weight at all, or if a score is not finite.

    Args:
        task: The task.
        outputs: Its outputs, or None without labelled rows.

    Returns:
        Metrics by name, and counts of what was left out by name where there was something.
    """
    if outputs is None or _broken(task, outputs) or _weight(outputs) == 0:
        return dict.fromkeys(task.metrics, math.nan), {}
    left_out: dict[str, int] = {}
    values, made = {}, dict[Compute, Any]()
    for name, metric in task.metrics.items():
        values[name], lost = _value(metric, outputs, made)
        if lost:
            left_out[name] = lost
    return values, left_out


def _broken(task: Task, outputs: TaskOutputs) -> bool:
    # Where rows have different lengths, NaN is padding.
    padded = task.keep is not None
    return not np.isfinite(outputs.score).all() and not (padded and not np.isinf(outputs.score).any())


def _weight(outputs: TaskOutputs) -> float:
    return float(len(outputs) if outputs.weight is None else outputs.weight.sum())


def _value(metric: Metric, outputs: TaskOutputs, made: dict[Compute, Any]) -> tuple[float, int]:
    if metric.parts is None:
        return float(_computed(metric.compute, outputs, made)), 0
    parts = _computed(metric.parts, outputs, made)
    return mean_defined(parts), int(np.isnan(parts).sum())


def _computed(compute: Compute, outputs: TaskOutputs, made: dict[Compute, Any]) -> Any:
    """What a metric computes; what it shares with others is in ``made`` afterwards."""
    arrays = (outputs.score, outputs.target, outputs.weight)
    if not isinstance(compute, Derived):
        return compute(*arrays)
    if compute.base not in made:
        made[compute.base] = compute.base(*arrays)
    return compute.figure(made[compute.base])


def evaluate(
    model: nn.Module,
    sources: Sequence[Source],
    tasks: Mapping[str, Task] | None = None,
    *,
    batch_size: int = 4096,
    device: torch.device | str | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    gather: Gather | None = None,
) -> Scores:
    """Score a model on sources; arguments are those of ``collect``.

    Returns:
        Scores of the tasks that a source has; undefined metrics are NaN.

    Raises:
        DataError: if no source has labels for any of the tasks.
    """
    known = cast(Mapping[str, Task], model.tasks) if tasks is None else tasks
    found = collect(model, sources, known, batch_size=batch_size, device=device, autocast=autocast, gather=gather)
    offered = {name for source in sources for name in source.tasks}
    scored = {name: score_outputs(task, found.get(name)) for name, task in known.items() if name in offered}
    return Scores(
        {name: values for name, (values, _) in scored.items()},
        {name: len(found[name]) if name in found else 0 for name in scored},
        {name: lost for name, (_, lost) in scored.items() if lost},
    )
