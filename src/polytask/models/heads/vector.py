"""The head of tasks with one output a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polytask.errors import ShapeError
from polytask.fused import full_precision, is_hooked
from polytask.models.heads.base import TaskHead
from polytask.sharing.layers import dense_stages, vector_from
from polytask.tasks.task import HeadSpec


class Head(TaskHead):
    r"""Private layers, then one affine map: raw output :math:`= s \cdot (W h(z) + b) + \mu`.

    The affine map is computed in float32 under autocast as well. ``shift`` (:math:`\mu`) and ``scale``
    (:math:`s`) are buffers; they exist only where they are not 0 and 1.

    Args:
        spec: The widths, and what the target is standardised by.
        shape: The features' shape without the rows: ``(d,)``, a feature map ``(c, h, w)``, which is averaged over
            its positions, or ``(ANY, d)`` of a text, of which the first position is read.

    Raises:
        ShapeError: for other feature shapes, or a shift or scale that does not fit the outputs.

    Example:
        >>> Head(HeadSpec(outputs=3), (8,))(torch.zeros(5, 8)).shape
        torch.Size([5, 3])
        >>> Head(HeadSpec(), (8, 4, 4))(torch.zeros(5, 8, 4, 4)).shape
        torch.Size([5])
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(self, spec: HeadSpec, shape: tuple[int, ...]):
        super().__init__(spec)
        pooled, width = vector_from(shape)
        hidden = dense_stages(width, spec.hidden, dropout=spec.dropout)
        self.layers = nn.Sequential(*pooled, *hidden)
        self.output = nn.Linear([width, *spec.hidden][-1], 1 if spec.outputs is None else spec.outputs)
        self.register_buffer("shift", None)
        self.register_buffer("scale", None)
        self.standardise(spec)

    def standardise(self, spec: HeadSpec) -> None:
        """Take the shift and scale of ``spec``; the weights stay as they are."""
        device = self.output.weight.device
        self.shift = standardising_buffer("shift", spec.shift, 0.0, spec.outputs, device)
        self.scale = standardising_buffer("scale", spec.scale, 1.0, spec.outputs, device)
        super().standardise(spec)

    def forward(self, features: Tensor, inputs: Any = None) -> Tensor:
        """Raw outputs ``[rows, outputs]``, or ``[rows]`` if ``outputs`` is None."""
        return self.finished(full_precision(self.output, self.layers(features)))

    @property
    def affine(self) -> tuple[nn.Linear, str] | None:
        """The affine map and the name of the pool before it, if there are no private layers."""
        if type(self) is not Head or self.spec.hidden or any(map(is_hooked, self.layers)):
            return None
        return self.output, next((str(part.pool) for part in self.layers), "none")

    def finished(self, raw: Tensor) -> Tensor:
        """Scaled, shifted, and without the last dimension if ``outputs`` is None."""
        if self.scale is not None:
            raw = raw * self.scale
        if self.shift is not None:
            raw = raw + self.shift
        return raw.squeeze(-1) if self.spec.outputs is None else raw


def standardising_buffer(
    name: str, value: tuple[float, ...] | float, neutral: float, outputs: int | None, device: torch.device
) -> Tensor | None:
    """A head's shift or scale as a tensor; None where it changes nothing.

    Raises:
        ShapeError: unless there is one number, or one an output.
    """
    numbers = tuple(value) if isinstance(value, tuple | list) else (float(value),)
    if len(numbers) not in (1, outputs or 1):
        raise ShapeError(f"The head has {outputs or 1} outputs but its {name} has {len(numbers)} numbers.")
    if all(number == neutral for number in numbers):
        return None
    return torch.tensor(numbers, dtype=torch.float32, device=device)
