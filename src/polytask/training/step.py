"""One step: from the mixer's batches to micro-batches whose losses can be balanced."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.types import Losses, MicroBatch, Tap
from polytask.data.batch import Batch, first_tensor, map_tensors
from polytask.data.mixing import Part
from polytask.errors import DataError, unknown
from polytask.models import MultiTaskModel
from polytask.tasks.task import labelled, mean_loss
from polytask.training.augment import Augment
from polytask.training.optim import parameter_penalty
from polytask.training.partial import Anchor
from polytask.training.runtime import Runtime
from polytask.training.settings import PenaltySettings


@dataclass(frozen=True)
class Labelled:
    """A task's labelled rows of one micro-batch, selected before the loss sees them.

    Multiplying by a mask afterwards would let a NaN through: its gradient is NaN times zero.

    Args:
        targets: Targets of the labelled rows.
        rows: Their numbers in the micro-batch, or None if all rows are labelled.
        weights: Their row weights, or None.
    """

    targets: Tensor
    rows: Tensor | None
    weights: Tensor | None


class StepBuilder:
    """Cuts a step into micro-batches and counts labels over the whole of it.

    Args:
        model: The model that the micro-batches will run.
        runtime: Device, precision and processes.
        accumulate: Micro-batches a batch is cut into.
        penalties: Weights of parameter and sharing penalties.
        input_noise: Deviation of the noise on floating inputs.
        seed: Of that noise.
        halves: Whether to cut the rows into two halves that know which they are.
        anchor: A further penalty of the weights, or None.

    Attributes:
        augment: Changes the images of a batch, or None.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        runtime: Runtime,
        accumulate: int = 1,
        penalties: PenaltySettings | None = None,
        input_noise: float = 0.0,
        seed: int = 0,
        halves: bool = False,
        anchor: Anchor | None = None,
    ):
        self.model, self.runtime, self.accumulate, self.anchor = model, runtime, accumulate, anchor
        self.penalties = penalties or PenaltySettings()
        self.input_noise = input_noise
        self.halves = 2 if halves else 1
        self.generator = torch.Generator().manual_seed(seed + 104729 * runtime.rank)
        self.augment: Augment | None = None
        self._order = {name: position for position, name in enumerate(model.tasks)}

    def build(self, parts: Iterable[Part], tasks: Collection[str] | None = None) -> list[MicroBatch]:
        """The micro-batches of one step; tasks without any label in the step are left out.

        Args:
            parts: The step's batches.
            tasks: The only tasks whose labels count; all if None.

        Raises:
            DataError: if a batch has targets for a task that the model lacks.
        """
        batches = [part.batch for part in parts]
        if tasks is not None:
            batches = [_only(batch, tasks) for batch in batches if any(task in tasks for task in batch.targets)]
        pieces = [piece for batch in batches for piece in self._cut(batch)]
        selected = [self._select(piece) for piece, _ in pieces]
        totals, fractions, rows = self._totals(selected, [half for _, half in pieces], sum(len(p) for p, _ in pieces))
        micro: list[MicroBatch] = []
        for (piece, half), labels in zip(pieces, selected, strict=True):
            present = {task: label for task, label in labels.items() if fractions[half][task] > 0}
            if present:
                forward = self._forward(piece.inputs, present, totals, len(piece) / rows, first=not micro)
                micro.append(MicroBatch(tuple(present), forward, half, fractions[half] if self.halves == 2 else {}))
        return micro

    def _cut(self, batch: Batch) -> Iterator[tuple[Batch, int]]:
        """Pieces of the batch, and which half of the step each belongs to."""
        for name in batch.targets:
            if name not in self._order:
                raise DataError(f"The batch has targets for a task that the model lacks. {self._unknown(name)}")
        if self.augment is not None:
            # Before labels are counted, because boxes may leave an image.
            moved = replace(batch, inputs=self._move(batch.inputs))
            batch = self.augment(moved)
        # Several processes need the same number of micro-batches, even if a share is empty on one of them.
        pieces = self.halves * self.accumulate
        count = pieces if self.runtime.world > 1 else max(1, min(pieces, len(batch)))
        bounds = [len(batch) * i // count for i in range(count + 1)]
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            piece = batch if count == 1 else batch.map(lambda t, a=start, b=stop: t[a:b])  # type: ignore[misc]
            yield self._on_device(piece), self.halves * number // count

    def _unknown(self, name: str) -> str:
        return unknown("task", name, self._order)

    def _on_device(self, batch: Batch) -> Batch:
        """Inputs on the device, with noise; targets stay on the CPU until their rows are selected."""
        inputs = batch.inputs
        if self.input_noise:
            inputs = map_tensors(inputs, self._noisy)
        return replace(batch, inputs=self._move(inputs))

    def _noisy(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=self.generator, dtype=tensor.dtype)
        return tensor + self.input_noise * noise.to(tensor.device)

    def _move(self, value: Any) -> Any:
        device = self.runtime.device
        if device.type == "cpu":
            first = first_tensor(value)
            return value if first is None or first.is_cpu else map_tensors(value, lambda t: t.to(device))

        def moved(tensor: Tensor) -> Tensor:
            # A copy from pinned memory does not make the host wait.
            pinned = tensor.pin_memory() if device.type == "cuda" and tensor.is_cpu else tensor
            return pinned.to(device, non_blocking=True)

        return map_tensors(value, moved)

    def _select(self, batch: Batch) -> dict[str, Labelled]:
        found = {}
        for task in sorted(batch.targets, key=self._order.__getitem__):
            targets, weights = batch.targets[task], batch.weights.get(task)
            known = None if task in batch.complete or _all_labelled(targets) else labelled(targets)
            if known is None or known.all():
                found[task] = Labelled(targets, None, weights)
            else:
                rows = known.nonzero().squeeze(1)
                chosen = None if weights is None else weights.index_select(0, rows)
                found[task] = Labelled(targets.index_select(0, rows), rows, chosen)
        return found

    def _totals(
        self, selected: list[dict[str, Labelled]], halves: list[int], rows: int
    ) -> tuple[dict[str, float], list[dict[str, float]], float]:
        """Labels (or their weights) of every task over the whole step, each half's share, and rows: one call."""
        width = len(self._order)
        counts = [0.0] * (self.halves * width) + [float(rows)]
        for labels, half in zip(selected, halves, strict=True):
            for task, label in labels.items():
                counts[half * width + self._order[task]] += self._count(task, label)
        if self.runtime.world > 1:
            counts = self.runtime.sum(torch.tensor(counts, dtype=torch.float64)).tolist()
        *found, all_rows = counts
        parts = [{t: found[half * width + k] for t, k in self._order.items()} for half in range(self.halves)]
        totals = {task: sum(part[task] for part in parts) for task in self._order}
        shares = [{task: part[task] / (totals[task] or 1.0) for task in totals} for part in parts]
        return totals, shares, all_rows

    def _count(self, task: str, label: Labelled) -> float:
        """What a task's labelled rows count together: rows, their weights, or the units that they hold."""
        units = self.model.tasks[task].units
        if units is None:
            return label.targets.shape[0] if label.weights is None else label.weights.sum(dtype=torch.float64).item()
        of_rows = units(label.targets).double()
        return (of_rows.sum() if label.weights is None else of_rows @ label.weights.double()).item()

    def _forward(
        self, inputs: Any, labels: Mapping[str, Labelled], totals: Mapping[str, float], part: float, first: bool
    ) -> Callable[[Tap], Losses]:
        moved = {task: Labelled(*self._move([x.targets, x.rows, x.weights])) for task, x in labels.items()}

        def forward(tap: Tap) -> Losses:
            with self.runtime.autocast():
                outputs = self.model(inputs, tuple(moved), tap=tap)
            shares = {task: self._share(task, outputs[task], label, totals[task]) for task, label in moved.items()}
            return Losses(shares, self._penalty(part, first))

        return forward

    def _share(self, task: str, raw: Tensor, label: Labelled, total: float) -> Tensor:
        chosen = raw if label.rows is None else raw.index_select(0, label.rows)
        loss = self.model.tasks[task].loss
        if label.weights is None and label.targets.shape[0] == total:
            return mean_loss(loss, chosen, label.targets)
        losses = loss(chosen, label.targets)
        return (losses if label.weights is None else losses * label.weights).sum() / total

    def _penalty(self, part: float, first: bool) -> Tensor | None:
        """Penalties of a forward weigh as its part of the step's rows; those of the weights come once a step.

        The latter are divided by the number of processes, because ``.grad`` is summed over them.
        """
        settings, world = self.penalties, self.runtime.world
        # A forward without rows has no part, and its means over rows are undefined.
        of_forward = self.model.sharing.penalties() if part else {}
        terms = [settings.sharing.get(name, 1.0) * part * value for name, value in of_forward.items()]
        of_weights = [parameter_penalty(settings, self.model.parameters())] if first else []
        if first and self.anchor is not None:
            of_weights.append(self.anchor.penalty())
        terms += [term / world for term in of_weights if term is not None]
        return torch.stack(terms).sum() if terms else None


def _only(batch: Batch, tasks: Collection[str]) -> Batch:
    return replace(
        batch,
        targets={task: values for task, values in batch.targets.items() if task in tasks},
        weights={task: values for task, values in batch.weights.items() if task in tasks},
    )


def _all_labelled(targets: Tensor) -> bool:
    """Whether every entry is a label for certain; one pass over them, where ``labelled`` takes several."""
    if not targets.numel():
        return True
    return not math.isnan(targets.sum().item()) if targets.is_floating_point() else targets.min().item() >= 0
