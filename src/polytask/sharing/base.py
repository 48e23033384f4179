"""Sharing: an architecture, which is encoders and the way that tasks share them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from polytask.errors import ShapeError

if TYPE_CHECKING:
    from polytask.tasks.task import Task

Features = Mapping[str, Tensor]
Tap = Callable[[dict[str, Tensor]], Mapping[str, Features]]
"""Called once a forward on the tensors where shared computation ends; returns them for each task."""


class _ForEveryTask(Mapping[str, Features]):
    """The same features whichever task asks."""

    def __init__(self, features: Features):
        self._features = features

    def __getitem__(self, task: str) -> Features:
        return self._features

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(())

    def __len__(self) -> int:
        return 0


def identity(features: dict[str, Tensor]) -> Mapping[str, Features]:
    """The tap that changes nothing."""
    return _ForEveryTask(features)


class Sharing(nn.Module, ABC):
    """Encoder(s) and how tasks share them.

    ``setup`` is called once by ``MultiTaskModel``, before any forward; what depends on the tasks
    (gates, towers, private layers) is built there.
    """

    supports_features: ClassVar[bool] = False
    """Whether one common feature tensor exists, so that balancing can happen at the features."""

    def check_tasks(self, tasks: Mapping[str, Task]) -> None:
        """Raise a RecipeError if these are no tasks for it; called when a model is made of both."""

    @abstractmethod
    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Build what depends on the tasks; return each task's feature shape without the rows.

        Args:
            tasks: Names of the tasks.
            example: Inputs of a few rows, or None; needed where an encoder has no ``out_features``.

        Raises:
            NeedsExample: if a shape is unknown and no example is given.
        """

    @abstractmethod
    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """One feature tensor per task in ``tasks``; ``tap`` is called exactly once."""

    def reads(self, task: str) -> tuple[str, ...]:
        """Other tasks whose heads the output of ``task`` is made of, too; their heads then belong to no task alone."""
        return ()

    def outputs(self, raw: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of ``tasks`` from those of their heads and of the heads that they read."""
        return {task: raw[task] for task in tasks}

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Parameters that belong to one task alone."""
        return ()

    def penalties(self) -> dict[str, Tensor]:
        """Penalties of the last forward, unweighted scalars; the recipe weighs them."""
        return {}

    def inspect(self) -> dict[str, Tensor]:
        """What the report draws: gates, stitches, relations."""
        return {}

    def extract(self, task: str) -> nn.Module:
        """A module that maps inputs to one task's features; it holds the same parameters, not copies."""
        return _OneTask(self, task)


class _OneTask(nn.Module):
    """A sharing run for one task."""

    def __init__(self, sharing: Sharing, task: str):
        super().__init__()
        self.sharing, self.task = sharing, task

    def forward(self, inputs: Any) -> Tensor:
        """The task's features."""
        return self.sharing(inputs, (self.task,))[self.task]  # type: ignore[no-any-return]


class NeedsExample(ShapeError):  # noqa: N818 - it is a request
    """A feature shape is unknown until an example has been seen."""


def feature_shape(encoder: nn.Module, example: Any | None) -> tuple[int, ...]:
    """The shape of an encoder's features without the rows: ``out_features``, else from an example.

    Raises:
        NeedsExample: if there is neither.
    """
    declared = getattr(encoder, "out_features", None)
    if isinstance(declared, int):
        return (declared,)
    if isinstance(declared, tuple):
        return declared
    if example is None:
        raise NeedsExample(
            f"The feature shape of {type(encoder).__name__} is unknown: it has no 'out_features'. Pass "
            "MultiTaskModel(..., example=inputs_of_a_few_rows), or let fit build the heads from its first batch."
        )
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            shape = tuple(encoder(example).shape[1:])
    finally:
        encoder.train(was_training)
    return shape
