"""One step: from the mixer's batches to micro-batches whose losses can be balanced."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.types import Losses, MicroBatch, Tap
from polytask.data.batch import Batch, map_tensors
from polytask.data.mixing import Part
from polytask.errors import DataError, unknown
from polytask.models import MultiTaskModel
from polytask.tasks.task import labelled
from polytask.training.augment import Augment
from polytask.training.optim import parameter_penalty
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
    ):
        self.model, self.runtime, self.accumulate = model, runtime, accumulate
        self.penalties = penalties or PenaltySettings()
        self.input_noise = input_noise
        self.generator = torch.Generator().manual_seed(seed + 104729 * runtime.rank)
        self.augment: Augment | None = None
        self._order = {name: position for position, name in enumerate(model.tasks)}

    def build(self, parts: Iterable[Part]) -> list[MicroBatch]:
        """The micro-batches of one step; tasks without any label in the step are left out.

        Raises:
            DataError: if a batch has targets for a task that the model lacks.
        """
        pieces = [piece for part in parts for piece in self._cut(part.batch)]
        selected = [self._select(piece) for piece in pieces]
        totals, rows = self._totals(selected, sum(map(len, pieces)))
        micro: list[MicroBatch] = []
        for piece, labels in zip(pieces, selected, strict=True):
            tasks = tuple(task for task in labels if totals[task] > 0)
            if tasks:
                present = {task: labels[task] for task in tasks}
                forward = self._forward(piece.inputs, present, totals, len(piece) / rows, first=not micro)
                micro.append(MicroBatch(tasks, forward))
        return micro

    def _cut(self, batch: Batch) -> Iterator[Batch]:
        for name in batch.targets:
            if name not in self._order:
                raise DataError(f"The batch has targets for a task that the model lacks. {self._unknown(name)}")
        if self.augment is not None:
            # Before labels are counted, because boxes may leave an image.
            moved = Batch(self._move(batch.inputs), batch.targets, batch.weights)
            batch = self.augment(moved)
        # Several processes need the same number of micro-batches, even if a share is empty on one of them.
        count = self.accumulate if self.runtime.world > 1 else max(1, min(self.accumulate, len(batch)))
        bounds = [len(batch) * i // count for i in range(count + 1)]
        for start, stop in itertools.pairwise(bounds):
            yield self._on_device(batch if count == 1 else batch.map(lambda t, a=start, b=stop: t[a:b]))  # type: ignore[misc]

    def _unknown(self, name: str) -> str:
        return unknown("task", name, self._order)

    def _on_device(self, batch: Batch) -> Batch:
        """Inputs on the device, with noise; targets stay on the CPU until their rows are selected."""
        inputs = batch.inputs
        if self.input_noise:
            inputs = map_tensors(inputs, self._noisy)
        return Batch(self._move(inputs), batch.targets, batch.weights)

    def _noisy(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=self.generator, dtype=tensor.dtype)
        return tensor + self.input_noise * noise.to(tensor.device)

    def _move(self, value: Any) -> Any:
        device = self.runtime.device
        if device.type == "cpu":
            return map_tensors(value, lambda t: t if t.device == device else t.to(device))

        def moved(tensor: Tensor) -> Tensor:
            # A copy from pinned memory does not make the host wait.
            pinned = tensor.pin_memory() if device.type == "cuda" and tensor.is_cpu else tensor
            return pinned.to(device, non_blocking=True)

        return map_tensors(value, moved)

    def _select(self, batch: Batch) -> dict[str, Labelled]:
        found = {}
        for task in sorted(batch.targets, key=self._order.__getitem__):
            targets, weights = batch.targets[task], batch.weights.get(task)
            known = labelled(targets)
            if known.all():
                found[task] = Labelled(targets, None, weights)
            else:
                rows = known.nonzero().squeeze(1)
                chosen = None if weights is None else weights.index_select(0, rows)
                found[task] = Labelled(targets.index_select(0, rows), rows, chosen)
        return found

    def _totals(self, selected: list[dict[str, Labelled]], rows: int) -> tuple[dict[str, float], float]:
        """Labels (or their weights) of every task, and rows, over the whole step: one call over processes."""
        counts = torch.zeros(len(self._order) + 1, dtype=torch.float64)
        counts[-1] = rows
        for labels in selected:
            for task, label in labels.items():
                counts[self._order[task]] += self._count(task, label)
        *totals, all_rows = self.runtime.sum(counts).tolist()
        return {task: totals[position] for task, position in self._order.items()}, all_rows

    def _count(self, task: str, label: Labelled) -> Tensor | float:
        """What a task's labelled rows count together: rows, their weights, or the units that they hold."""
        units = self.model.tasks[task].units
        if units is None:
            return len(label.targets) if label.weights is None else label.weights.sum(dtype=torch.float64)
        of_rows = units(label.targets).double()
        return of_rows.sum() if label.weights is None else of_rows @ label.weights.double()

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
        losses = self.model.tasks[task].loss(chosen, label.targets)
        if label.weights is not None:
            losses = losses * label.weights
        return losses.sum() / total

    def _penalty(self, part: float, first: bool) -> Tensor | None:
        """Penalties of a forward weigh as its part of the step's rows; those of the weights come once a step.

        The latter are divided by the number of processes, because ``.grad`` is summed over them.
        """
        settings, world = self.penalties, self.runtime.world
        # A forward without rows has no part, and its means over rows are undefined.
        of_forward = self.model.sharing.penalties() if part else {}
        terms = [settings.sharing.get(name, 1.0) * part * value for name, value in of_forward.items()]
        of_weights = parameter_penalty(settings, self.model.parameters()) if first else None
        if of_weights is not None:
            terms.append(of_weights / world)
        return torch.stack(terms).sum() if terms else None
