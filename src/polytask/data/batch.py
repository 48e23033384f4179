"""What one task group's rows look like on their way to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from polytask.errors import ShapeError

_NONE: Mapping[str, Tensor] = MappingProxyType({})


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to every tensor of a nested dict, list or tuple; leave the rest as it is.

    Example:
        >>> map_tensors({"a": torch.ones(2), "n": 3}, lambda t: t * 2)
        {'a': tensor([2., 2.]), 'n': 3}
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def joined_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors one after the other along their rows; where their other sizes differ, the smaller ones are padded.

    Padding stands for what is missing: NaN in floating tensors, -1 in others.

    Raises:
        ShapeError: if they differ in their number of dimensions.

    Example:
        >>> joined_rows([torch.tensor([[1, 2]]), torch.tensor([[3]])])
        tensor([[ 1,  2],
                [ 3, -1]])
    """
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) == 1:
        return torch.cat(list(tensors))
    if len({len(shape) for shape in shapes}) > 1:
        raise ShapeError(f"Rows of different kinds cannot be joined; without the rows their shapes are {shapes}.")
    rows, first = sum(len(tensor) for tensor in tensors), tensors[0]
    sizes = [max(sides) for sides in zip(*shapes, strict=True)]
    whole = first.new_full((rows, *sizes), float("nan") if first.is_floating_point() else -1)
    start = 0
    for tensor in tensors:
        whole[(slice(start, start + len(tensor)), *(slice(side) for side in tensor.shape[1:]))] = tensor
        start += len(tensor)
    return whole


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in a nested dict, list or tuple, or None."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for item in items if (found := first_tensor(item)) is not None), None)


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of the same rows.

    A missing label is NaN in a floating target and a negative number in an integer one; it is masked
    from the task's loss, metrics and balancing.

    Args:
        inputs: A tensor, or a nested dict/list/tuple of tensors, with rows first.
        targets: For each task a tensor with rows first.
        weights: For each task that has them, a weight for every row, shape ``[rows]``.
        complete: Tasks of which every row is known to have a label, so that nobody has to look for missing ones.

    Example:
        >>> batch = Batch(torch.zeros(2, 3), {"income": torch.tensor([1.0, float("nan")])})
        >>> len(batch)
        2
    """

    inputs: Any
    targets: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] = field(default_factory=lambda: _NONE)
    complete: frozenset[str] = frozenset()

    def __len__(self) -> int:
        tensor = first_tensor(self.inputs)
        if tensor is None:
            raise ShapeError("Batch.inputs holds no tensor, so its number of rows is unknown.")
        return tensor.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on ``device``."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed, such as by selecting rows."""
        return Batch(
            map_tensors(self.inputs, change),
            {name: change(target) for name, target in self.targets.items()},
            {name: change(weight) for name, weight in self.weights.items()},
            self.complete,
        )
