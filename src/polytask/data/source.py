"""Where rows come from: the one interface that the mixer and the evaluation read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.batch import Batch, map_tensors
from polytask.data.ragged import Padding
from polytask.errors import DataError, ShapeError
from polytask.tasks.task import labelled

PIXELS = 2**22
"""Most numbers of images that are read at a time where nothing is trained: their feature maps are many times larger."""
PADDED = 1 << 14
"""Most entries of a batch of rows with lengths, padding included, where nothing is trained."""
BLUR = 0.1
"""By which share lengths are blurred before rows of about one length are put together."""


class Source(ABC):
    """Rows that carry labels for one group of tasks.

    Attributes:
        tasks: Names of the tasks that these rows can have labels for.
    """

    tasks: tuple[str, ...]
    random_access: ClassVar[bool] = True
    """Whether ``take`` gives any rows at once; a stream gives them in its own order only."""
    lengths: Tensor | None = None
    """How long each row is, int64 ``[rows]``, where a batch is padded to its longest row; None where all are alike."""
    _order_key: tuple[tuple[int, ...], int, int] | None = None
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
        once a pass and no batch is a small remainder. Where rows have lengths, a batch has rows of about one
        length, so that little of it is padding, and the batches of a pass come in the order of a shuffle.

        Args:
            index: Counts batches from the first pass on.
            size: Most rows of a batch, over all processes.
            seed: Whole numbers that tell this source's order from any other.
            rank: This process; it gets every ``world``-th row.
            world: Number of processes.
        """
        count = self.batches(size)
        run, place = divmod(index, count)
        order = self._order(tuple(seed), run, count)
        start, stop = (len(self) * (place + i) // count for i in (0, 1))
        return self.take(order[start + rank : stop : world])

    def readings(self, size: int) -> Iterator[Tensor]:
        """Row numbers at a time, each row once, for a reader that wants all rows and trains nothing.

        Where rows have lengths they come from the shortest to the longest, in batches that padding keeps below
        ``PADDED`` entries. The reader puts results back in order. Images come fewer at a time than asked for where
        more than ``PIXELS`` numbers would lie in memory at once.

        Args:
            size: Most rows at a time.
        """
        if self.lengths is None:
            yield from torch.split(torch.arange(len(self)), min(size, self._fitting()))
            return
        lengths, order = self.lengths.sort(stable=True)
        start = 0
        while start < len(order):
            longest = lengths[start : start + size].clamp_min(1) * torch.arange(1, len(order[start : start + size]) + 1)
            count = max(1, int((longest <= PADDED).sum()))
            yield order[start : start + count]
            start += count

    def _fitting(self) -> int:
        """How many rows have ``PIXELS`` numbers in feature maps; a stream, whose rows come once, is not asked."""
        if not self.random_access:
            return len(self)
        numbers = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += tensor[0].numel() if tensor.dim() > 3 else 0
            return tensor

        map_tensors(self.example, count)
        return max(1, PIXELS // numbers) if numbers else len(self)

    def _order(self, seed: tuple[int, ...], run: int, count: int) -> Tensor:
        key = (seed, run, count)
        if self._order_key != key:
            generator = np.random.default_rng([*seed, run])
            shuffled = generator.permutation(len(self))
            if self.lengths is not None:
                shuffled = self._by_length(shuffled, count, generator)
            self._order_key, self._order_rows = key, torch.from_numpy(shuffled)
        return self._order_rows

    def _by_length(self, rows: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Shuffled rows, brought into ``count`` batches of about one length each, in a shuffled order."""
        assert self.lengths is not None
        # Lengths are blurred, so that a row does not meet the same rows in every pass.
        blurred = self.lengths.numpy()[rows] * generator.uniform(1 - BLUR, 1 + BLUR, len(rows))
        rows = rows[np.argsort(blurred, kind="stable")]
        bounds = [len(rows) * place // count for place in range(count + 1)]
        sizes = np.diff(bounds)
        # Batches of one size change places with one another only: which place has which size is fixed.
        places = np.arange(count)
        for size in np.unique(sizes):
            same = np.nonzero(sizes == size)[0]
            places[same] = generator.permutation(same)
        return np.concatenate([rows[bounds[place] : bounds[place + 1]] for place in places])


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
        self.lengths = None if source.lengths is None else source.lengths[rank::world]

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

    Texts (see ``data/ragged.py``) and targets of their words are cut to the longest row of a batch.

    Args:
        inputs: A tensor or nested dict/list/tuple of tensors, rows first.
        targets: Targets by task, rows first.
        weights: Row weights by task, shape ``[rows]``.

    Raises:
        ShapeError: if the tensors differ in their number of rows.
        DataError: if there are no rows at all.
    """

    def __init__(self, inputs: Any, targets: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None):
        complete = frozenset(name for name, target in targets.items() if bool(labelled(target).all()))
        self._all = Batch(inputs, dict(targets), dict(weights or {}), complete)
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
        self._padding = Padding(inputs, self._all.targets)
        self.lengths = self._padding.lengths

    def __len__(self) -> int:
        return len(self._all)

    @property
    def rows(self) -> Batch:
        """All rows, without a copy."""
        return self._all

    def take(self, rows: Tensor) -> Batch:
        """The rows with these numbers, in this order, as one Batch."""
        found = self._all.map(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))
        if self.lengths is None:
            return found
        inputs = self._padding.cut_inputs(found.inputs, rows)
        return replace(found, inputs=inputs, targets=self._padding.cut_targets(found.targets, rows))

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
