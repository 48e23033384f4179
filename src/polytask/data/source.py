"""Where rows come from: the one interface that the mixer and the evaluation read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from polytask.data.batch import Batch, map_tensors
from polytask.errors import DataError, ShapeError


class Source(ABC):
    """Rows that carry labels for one group of tasks.

    Attributes:
        tasks: Names of the tasks that these rows can have labels for.
    """

    tasks: tuple[str, ...]
    random_access: ClassVar[bool] = True
    """Whether ``take`` gives any rows at once; a stream gives them in its own order only."""
    _order_key: tuple[tuple[int, ...], int] | None = None
    _order_rows: Tensor

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

    @property
    def example(self) -> Any:
        """The inputs of a row or two, for shapes."""
        return self.take(torch.arange(min(2, len(self)))).inputs

    def batches(self, size: int) -> int:
        """How many batches of at most ``size`` rows one pass over the rows takes."""
        return -(-len(self) // size)

    def batch(self, index: int, size: int, seed: Sequence[int], rank: int = 0, world: int = 1) -> Batch:
        """Batch number ``index`` of the endless sequence of shuffled passes.

        The order of the rows in a pass is the permutation seeded by ``(*seed, pass)`` whatever the number
        of processes. A pass is cut into batches whose sizes differ by at most one row, so every row comes
        once a pass and no batch is a small remainder.

        Args:
            index: Counts batches from the first pass on.
            size: Most rows of a batch, over all processes.
            seed: Whole numbers that tell this source's order from any other.
            rank: This process; it gets every ``world``-th row.
            world: Number of processes.
        """
        count = self.batches(size)
        run, place = divmod(index, count)
        order = self._order(tuple(seed), run)
        start, stop = (len(self) * (place + i) // count for i in (0, 1))
        return self.take(order[start + rank : stop : world])

    def _order(self, seed: tuple[int, ...], run: int) -> Tensor:
        key = (seed, run)
        if self._order_key != key:
            shuffled = np.random.default_rng([*seed, run]).permutation(len(self))
            self._order_key, self._order_rows = key, torch.from_numpy(shuffled)
        return self._order_rows


class Share(Source):
    """Every ``world``-th row of a source, for evaluation by several processes.

    Args:
        source: Whose rows; they have to be randomly accessible.
        rank: This process.
        world: Number of processes.
    """

    def __init__(self, source: Source, rank: int, world: int):
        self._source, self._rank, self._world = source, rank, world
        self.tasks = source.tasks

    def __len__(self) -> int:
        return len(range(self._rank, len(self._source), self._world))

    def take(self, rows: Tensor) -> Batch:
        """The rows with these numbers within the share."""
        return self._source.take(rows * self._world + self._rank)

    def targets(self, task: str) -> Tensor | None:
        """The share's targets of one task."""
        whole = self._source.targets(task)
        return None if whole is None else whole[self._rank :: self._world]


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
        map_tensors(inputs, lambda t: sizes.update({f"an input of shape {tuple(t.shape)}": len(t)}) or t)
        for what, size in sizes.items():
            if size != rows:
                raise ShapeError(f"Inputs have {rows} rows but {what} has {size}. All need the same number of rows.")
        if rows == 0:
            raise DataError("There are no rows: the data, or this split of it, is empty.")

    def __len__(self) -> int:
        return len(self._all)

    @property
    def rows(self) -> Batch:
        """All rows, without a copy."""
        return self._all

    def take(self, rows: Tensor) -> Batch:
        """The rows with these numbers, in this order, as one Batch."""
        return self._all.map(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def targets(self, task: str) -> Tensor | None:
        """All targets of one task."""
        return self._all.targets[task]

    def weights(self, task: str) -> Tensor | None:
        """All row weights of one task, or None."""
        return self._all.weights.get(task)

    def to(self, device: Any) -> TensorSource:
        """The same rows on ``device``."""
        moved = self._all.to(device)
        return TensorSource(moved.inputs, moved.targets, moved.weights)
