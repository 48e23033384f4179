"""What every kind of head has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from polytask.fused import fused_linear, is_hooked
from polytask.tasks.task import HeadSpec

FEWEST_FUSED = 8
"""Linear heads that run as one product: of fewer the time is hardly felt, and each rounds as it does alone."""


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

    @property
    def affine(self) -> tuple[nn.Linear, str] | None:
        """The layer that is all of the head before ``finished``, and what it pools (``fused_linear``); else None."""
        return None

    def finished(self, raw: Tensor) -> Tensor:
        """Raw outputs of the head from those of ``affine``."""
        return raw

    @abstractmethod
    def forward(self, features: Tensor, inputs: Any = None) -> Tensor:
        """Raw outputs, rows first."""

    def standardise(self, spec: HeadSpec) -> None:
        """Take the shift and scale of ``spec``; the weights stay as they are."""
        self.spec = spec


def run_head(head: nn.Module, features: Tensor, inputs: Any) -> Tensor:
    """A head's raw outputs; the inputs reach only those that read them."""
    return head(features, inputs) if getattr(head, "reads_inputs", False) else head(features)  # type: ignore[no-any-return]


def run_heads(heads: Mapping[str, nn.Module], features: Mapping[str, Tensor], inputs: Any) -> dict[str, Tensor]:
    """Raw outputs by task; while a model is trained, eight linear heads and more of the same features run as one.

    Args:
        heads: By task.
        features: Of every one of these tasks.
        inputs: The model's.
    """
    linear: dict[str, tuple[TaskHead, nn.Linear, str]] = {}
    for task, head in heads.items() if len(heads) >= FEWEST_FUSED else ():
        if isinstance(head, TaskHead) and not is_hooked(head) and (affine := head.affine) is not None:
            linear[task] = head, *affine
    pools = {pool for _, _, pool in linear.values()}
    if len(linear) < FEWEST_FUSED or len(pools) > 1:
        return {task: run_head(head, features[task], inputs) for task, head in heads.items()}
    made = fused_linear([features[task] for task in linear], [layer for _, layer, _ in linear.values()], pools.pop())
    found = {task: head.finished(raw) for (task, (head, _, _)), raw in zip(linear.items(), made, strict=True)}
    return {task: found[task] if task in found else run_head(heads[task], features[task], inputs) for task in heads}


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
