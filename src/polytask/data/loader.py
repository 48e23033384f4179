"""A PyTorch DataLoader as a source: its batches, in its order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from polytask.data.batch import Batch
from polytask.data.convert import as_batch
from polytask.data.source import Source
from polytask.errors import DataError
from polytask.tasks.task import Task


class LoaderSource(Source):
    """The batches of a DataLoader.

    Training takes the loader's own batches, one after the other: its batch size, its order and its
    shuffling count, and those of the recipe do not. Several processes share each batch, every process
    taking its part of the rows. Going on from a checkpoint skips the batches that were read before, with a
    warning, since a loader's shuffling cannot be wound back.

    ``take`` reads single rows from the loader's data set, with the loader's ``collate_fn``; of an
    IterableDataset it can only read rows in their order from the first on, as evaluation does.

    Args:
        loader: Yields a Batch, ``(inputs, targets by task)``, or a mapping of inputs and targets by name.
        tasks: All tasks; those that the first batch has no target for are left out.

    Raises:
        DataError: if the loader is empty or its length is unknown, or it yields something else.
    """

    random_access: ClassVar[bool] = False

    def __init__(self, loader: DataLoader[Any], tasks: Sequence[Task]):
        self._loader, self._all = loader, tuple(tasks)
        try:
            self._batches = len(loader)
            self._count = len(loader.dataset)  # type: ignore[arg-type]
        except TypeError:
            raise DataError(
                f"The length of {type(loader.dataset).__name__} is unknown. Give the data set __len__, the number of "
                "its rows."
            ) from None
        if self._batches == 0:
            raise DataError("The DataLoader yields no batch: its data set is empty, or smaller than a batch it drops.")
        self._iterator: Iterator[Any] | None = None
        self._next = 0
        self._stream: Iterator[Batch] | None = None
        self._left: Batch | None = None
        self._read = 0
        self.tasks = tuple(self._rows_of(torch.arange(1)).targets)
        self._stream = None

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> int:
        """The loader's number of batches, whatever ``size`` says."""
        return self._batches

    def batch(self, index: int, size: int, seed: Sequence[int], rank: int = 0, world: int = 1) -> Batch:
        """Batch number ``index`` of the loader, which is read again and again; ``size`` and ``seed`` are its own."""
        if index < self._next:
            self._iterator, self._next = None, 0
        if index > self._next:
            warnings.warn(
                f"Skipping {index - self._next} batches of a DataLoader to go on where training stopped; "
                "its shuffling is not that of the first run."
            )
        item = None
        while self._next <= index:
            item = self._following()
            self._next += 1
        batch = as_batch(item, self._all)
        return batch.map(lambda tensor: tensor[rank::world]) if world > 1 else batch

    def take(self, rows: Tensor) -> Batch:
        """The rows with these numbers; of an IterableDataset only in their order, from the first on."""
        return self._rows_of(rows)

    def targets(self, task: str) -> Tensor | None:
        """None: reading all targets would read all inputs as well."""
        return None

    def _following(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._loader)
        item = next(self._iterator, None)
        if item is None:
            self._iterator = iter(self._loader)
            item = next(self._iterator, None)
            if item is None:
                raise DataError("The DataLoader yields no batch any more, so the next pass cannot start.")
        return item

    def _rows_of(self, rows: Tensor) -> Batch:
        if isinstance(self._loader.dataset, IterableDataset):
            return self._streamed(rows)
        collate = self._loader.collate_fn
        return as_batch(collate([self._loader.dataset[row] for row in rows.tolist()]), self._all)

    def _streamed(self, rows: Tensor) -> Batch:
        start, count = int(rows[0]), len(rows)
        if start == 0:
            self._stream = (as_batch(item, self._all) for item in self._loader)
            self._left, self._read = None, 0
        if self._stream is None or start != self._read or not bool((rows == torch.arange(start, start + count)).all()):
            raise DataError(
                "An IterableDataset can only be read row after row from the first on. Use a map-style Dataset (with "
                "__getitem__) where rows are drawn in another order."
            )
        while self._left is None or len(self._left) < count:
            more = next(self._stream, None)
            if more is None:
                held = start + (0 if self._left is None else len(self._left))
                raise DataError(f"The IterableDataset says it has {self._count} rows, but it ends after {held}.")
            self._left = more if self._left is None else _joined(self._left, more)
        taken, self._left = self._left.map(lambda t: t[:count]), self._left.map(lambda t: t[count:])
        self._read += count
        return taken


def _joined(first: Batch, second: Batch) -> Batch:
    parts = iter(_tensors(second))
    return first.map(lambda tensor: torch.cat([tensor, next(parts)]))


def _tensors(batch: Batch) -> list[Tensor]:
    """The batch's tensors, in the order in which ``Batch.map`` visits them."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map(note)
    return found
