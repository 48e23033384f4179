"""What every kind of head has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.tasks.task import HeadSpec


class TaskHead(nn.Module, ABC):
    """Maps a task's features to its raw outputs.

    A kind of head is one class and one entry of ``FORMS``; ``HeadSpec.form`` names it. It is built as
    ``cls(spec, shape)``, with the features' shape without the rows.

    Args:
        spec: How it is built.
    """

    reads_inputs: ClassVar[bool] = False
    """Whether ``forward`` is given the model's inputs as well, such as for the lengths of texts."""

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, features: Tensor, inputs: Any = None) -> Tensor:
        """Raw outputs, rows first."""

    def standardise(self, spec: HeadSpec) -> None:
        """Take the shift and scale of ``spec``; the weights stay as they are."""
        self.spec = spec


def run_head(head: nn.Module, features: Tensor, inputs: Any) -> Tensor:
    """A head's raw outputs; the inputs reach only those that read them."""
    return head(features, inputs) if getattr(head, "reads_inputs", False) else head(features)  # type: ignore[no-any-return]


class TaskNetwork(nn.Module):
    """One task's network: inputs to raw outputs.

    Args:
        features: Maps inputs to the task's features.
        head: The task's head.
    """

    def __init__(self, features: nn.Module, head: TaskHead):
        super().__init__()
        self.features, self.head = features, head

    def forward(self, inputs: Any) -> Tensor:
        """The task's raw outputs."""
        return run_head(self.head, self.features(inputs), inputs)


def same_layers(first: HeadSpec, second: HeadSpec) -> bool:
    """Whether heads of two specs have the same layers, so that one can take the other's place."""
    return replace(first, shift=0.0, scale=1.0) == replace(second, shift=0.0, scale=1.0)


def full_precision(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """An affine map in float32 at least, under autocast as well."""
    if torch.is_autocast_enabled(hidden.device.type):
        with torch.autocast(hidden.device.type, enabled=False):
            return full_precision(layer, hidden)
    raw = functional.linear(hidden.to(layer.weight.dtype), layer.weight, layer.bias)
    return raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
