"""Where rows come from: the one interface that the mixer and the evaluation read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from polytask.data.batch import Batch, first_tensor, map_tensors
from polytask.errors import DataError, ShapeError


class Source(ABC):
    """Rows that carry labels for one group of tasks.

    Attributes:
        tasks: Names of the tasks that these rows can have labels for.
    """

    tasks: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @abstractmethod
    def take(self, rows: Tensor) -> Batch:
        """The rows with these numbers (int64, shape ``[rows]``), in this order."""

    @abstractmethod
    def targets(self, task: str) -> Tensor | None:
        """All targets of one task, or None where reading them all would be too costly."""

    def weights(self, task: str) -> Tensor | None:
        """All row weights of one task, or None if every row counts the same."""
        return None


class TensorSource(Source):
    """Rows that lie in memory as tensors: a batch is one indexing, never a row-by-row collation.

    Args:
        inputs: A tensor or nested dict/list/tuple of tensors, rows first.
        targets: Targets by task, rows first.
        weights: Row weights by task, shape ``[rows]``.

    Raises:
        ShapeError: if the tensors differ in their number of rows.
        DataError: if there are no rows at all.
    """

    def __init__(self, inputs: Any, targets: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None):
        self._all = Batch(inputs, dict(targets), dict(weights or {}))
        self.tasks = tuple(targets)
        rows = len(self._all)
        sizes = {f"target '{name}'": len(t) for name, t in self._all.targets.items()}
        sizes |= {f"weights of '{name}'": len(t) for name, t in self._all.weights.items()}
        map_tensors(inputs, lambda t: sizes.setdefault(f"an input of shape {tuple(t.shape)}", len(t)) and t or t)
        for what, size in sizes.items():
            if size != rows:
                raise ShapeError(f"Inputs have {rows} rows but {what} has {size}. All need the same number of rows.")
        if rows == 0:
            raise DataError("There are no rows: the data, or this split of it, is empty.")

    def __len__(self) -> int:
        return len(self._all)

    def take(self, rows: Tensor) -> Batch:
        """The rows with these numbers, in this order, as one Batch."""
        return self._all.map(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def targets(self, task: str) -> Tensor | None:
        """All targets of one task."""
        return self._all.targets[task]

    def weights(self, task: str) -> Tensor | None:
        """All row weights of one task, or None."""
        return self._all.weights.get(task)

    @property
    def example(self) -> Any:
        """The inputs of the first two rows."""
        return map_tensors(self._all.inputs, lambda tensor: tensor[:2])

    def to(self, device: Any) -> TensorSource:
        """The same rows on ``device``."""
        moved = self._all.to(device)
        return TensorSource(moved.inputs, moved.targets, moved.weights)


__all__ = ["Source", "TensorSource", "first_tensor"]
