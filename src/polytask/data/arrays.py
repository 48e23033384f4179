"""The Python door: arrays, frames, PyTorch data sets and loaders as sources of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from polytask.data.batch import Batch, map_tensors
from polytask.data.convert import as_input, as_target, single, split_item
from polytask.data.loader import LoaderSource
from polytask.data.preprocess import TablePreprocessor
from polytask.data.source import Source, TensorSource
from polytask.data.table import as_frame
from polytask.data.tags import check_tag_lengths
from polytask.data.target_forms import target_columns
from polytask.data.targets import encode_target, encode_weight
from polytask.errors import DataError, listed, suggestion, unknown
from polytask.tasks.task import Task

Sources = Source | list[Source]


def as_source(
    data: Any,
    tasks: Sequence[Task],
    inputs: Sequence[str] | None = None,
    preprocessor: TablePreprocessor | None = None,
    weight: str | Mapping[str, str] | None = None,
) -> Sources:
    """Make a source, or one for each task, of what a person has.

    Args:
        data: One of

            - a Source, which stays as it is;
            - a mapping of arrays, tensors or lists with rows first: targets under the names of their tasks,
              all else is input. A single input reaches the model as a tensor, several as a dict;
            - a polars or pandas frame, with ``preprocessor``;
            - a map-style Dataset whose items are ``(inputs, targets)``, targets a mapping by task, or
              a mapping like the one above, of one row;
            - a DataLoader that yields a Batch, such a pair or such a mapping, of a batch;
            - a mapping from every task's name to one of those, where tasks have different rows.
        tasks: All tasks. Those that the data have no target for are left out, but one has to remain.
        inputs: Names of the inputs in a mapping; everything that is not a target if left out.
        preprocessor: For frames: fitted on the training rows.
        weight: For frames and mappings of arrays: the column or array with a weight for every row, or one
            for each task.

    Returns:
        A source; a list of them for a mapping by task.

    Raises:
        DataError: if the data are of another kind, have no input or no target, hold NaN or infinite inputs, or
            labels that a task does not know; for an option that does not apply to such data.
        ShapeError: if arrays differ in their number of rows.

    Example:
        >>> from polytask import registry
        >>> task = registry.build("tasks", "binary", {}, name="sold")
        >>> source = as_source({"x": [[1.0, 2.0], [3.0, 4.0]], "sold": [1, None]}, [task])
        >>> source.targets("sold")
        tensor([1., nan])
    """
    if isinstance(data, Mapping) and _by_task(data, tasks):
        return [_one(as_source(data[task.name], [task], inputs, preprocessor, weight), task) for task in tasks]
    if isinstance(data, Mapping):
        return _from_arrays(data, tasks, inputs, _weights(weight, tasks))
    if not isinstance(data, Source | DataLoader | Dataset):
        return _from_frame(data, tasks, preprocessor, _weights(weight, tasks))
    for name, value in (("inputs", inputs), ("preprocessor", preprocessor), ("weight", weight)):
        if value is not None:
            raise DataError(f"{name} is for frames and mappings of arrays, not for {type(data).__name__}.")
    if isinstance(data, Source):
        return data
    if isinstance(data, DataLoader):
        return LoaderSource(data, tasks)
    if isinstance(data, IterableDataset):
        raise DataError("An IterableDataset has no row numbers. Wrap it in a DataLoader, which is read in its order.")
    return DatasetSource(data, tasks)


class DatasetSource(Source):
    """Rows of a map-style PyTorch Dataset, read item by item and collated.

    Args:
        dataset: Its items are ``(inputs, targets)``, targets a mapping by task, or a mapping that holds
            inputs and targets by name.
        tasks: All tasks; those without a target in the first item are left out.

    Raises:
        DataError: if the data set is empty, or its items are of another kind or have no target.
    """

    def __init__(self, dataset: Dataset[Any], tasks: Sequence[Task]):
        if not hasattr(dataset, "__len__"):
            raise DataError(f"{type(dataset).__name__} has no length. Give it __len__, or wrap it in a DataLoader.")
        self._dataset, self._rows = dataset, len(dataset)
        if self._rows == 0:
            raise DataError("The data set has no rows.")
        self._known = {task.name: task for task in tasks}
        found = split_item(dataset[0], self._known)[1]
        self._tasks = [task for task in tasks if task.name in found]
        self.tasks = tuple(task.name for task in self._tasks)

    def __len__(self) -> int:
        return self._rows

    def take(self, rows: Tensor) -> Batch:
        """The rows with these numbers, collated."""
        items = [split_item(self._dataset[row], self._known) for row in rows.tolist()]
        inputs = single(default_collate([item[0] for item in items]))
        for name in self.tasks:
            lacking = [row for row, item in zip(rows.tolist(), items, strict=True) if name not in item[1]]
            if lacking:
                raise DataError(
                    f"Item {lacking[0]} of the data set has no target '{name}', which item 0 has. "
                    "Return None or NaN where a label is missing."
                )
        return Batch(
            map_tensors(inputs, as_input),
            {task.name: as_target([item[1][task.name] for item in items], task) for task in self._tasks},
        )

    def targets(self, task: str) -> Tensor | None:
        """None: reading all targets would read all inputs as well."""
        return None


def _by_task(data: Mapping[str, Any], tasks: Sequence[Task]) -> bool:
    kinds = (Source, Mapping, Dataset, DataLoader, pl.DataFrame, pl.LazyFrame)
    whole = all(isinstance(value, kinds) or type(value).__name__ == "DataFrame" for value in data.values())
    return whole and set(data) == {task.name for task in tasks}


def _one(source: Sources, task: Task) -> Source:
    if isinstance(source, list):
        raise DataError(f"The data of task '{task.name}' are again a mapping by task. Give its rows.")
    return source


def _weights(weight: str | Mapping[str, str] | None, tasks: Sequence[Task]) -> dict[str, str]:
    names = [task.name for task in tasks]
    if isinstance(weight, Mapping):
        for name in weight:
            if name not in names:
                raise DataError(f"weight: {unknown('task', name, names)}")
        return dict(weight)
    return dict.fromkeys(names, weight) if weight is not None else {}


def _from_arrays(
    data: Mapping[str, Any], tasks: Sequence[Task], inputs: Sequence[str] | None, weight: Mapping[str, str]
) -> Source:
    known = {task.name: task for task in tasks}
    for name in (*(inputs or ()), *weight.values()):
        if name not in data:
            raise DataError(f"The data have no '{name}'. They have: {listed(data)}.{suggestion(name, data)}")
    targets = {name: as_target(value, known[name]) for name, value in data.items() if name in known}
    if not targets:
        raise DataError(f"The data have no target for any of the tasks: {listed(known)}. They have: {listed(data)}.")
    others = [name for name in data if name not in known and name not in weight.values()]
    tensors = {name: as_input(data[name]) for name in (others if inputs is None else inputs)}
    if not tensors:
        raise DataError(f"The data have targets only: {listed(data)}. They need an input as well.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            row = int((~tensor.isfinite()).nonzero()[0][0])
            raise DataError(f"Input '{name}' holds NaN or infinite values, the first in row {row}. Fill them first.")
    rows = {
        name: encode_weight(pl.DataFrame({key: _flat(data[key])}), key)
        for name, key in weight.items()
        if name in targets
    }
    return TensorSource(single(tensors), targets, rows)


def _flat(weights: Any) -> Any:
    return weights.tolist() if hasattr(weights, "tolist") else weights


def _from_frame(
    data: Any, tasks: Sequence[Task], preprocessor: TablePreprocessor | None, weight: Mapping[str, str]
) -> Source:
    frame = as_frame(data)
    if preprocessor is None:
        raise DataError("A frame needs a preprocessor: TablePreprocessor.fit(training_frame, inputs).")
    found = [task for task in tasks if all(name in frame.columns for name in target_columns(task))]
    if not found:
        raise DataError(
            f"The frame has no target for any of the tasks: {listed(task.name for task in tasks)}. "
            f"It has: {listed(frame.columns)}."
        )
    check_tag_lengths(frame, preprocessor.schema.texts, found)
    rows = {task.name: encode_weight(frame, weight[task.name]) for task in found if task.name in weight}
    boxes = any(task.target.form == "boxes" for task in found)
    sizes = preprocessor.image_sizes(frame) if boxes else None
    targets = {task.name: encode_target(frame, task, sizes=sizes) for task in found}
    return TensorSource(preprocessor.inputs(frame), targets, rows)
