"""Towers: one copy of an encoder for each task, run side by side."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from polytask.errors import ShapeError, listed
from polytask.sharing.base import NeedsExample
from polytask.sharing.experts import dense_chain
from polytask.sharing.layers import per_task
from polytask.sharing.parts import after_begin, in_stages, quietly
from polytask.sharing.separate import reset_parameters


def towers(encoder: nn.Module, tasks: Sequence[str], reset: bool, label: str) -> nn.ModuleDict:
    """The encoder itself for the first task, and a copy for each other one.

    Args:
        encoder: What towers are copies of.
        tasks: Names of the tasks.
        reset: Whether copies draw initial weights of their own.
        label: Who asks, for the warning about modules that cannot do so.
    """
    made = {tasks[0]: encoder}
    kept: list[str] = []
    for task in tasks[1:]:
        made[task] = copy.deepcopy(encoder)
        kept = reset_parameters(made[task]) if reset else []
    if kept:
        warnings.warn(
            f"{label} cannot draw new initial weights for: {listed(kept)}. All tasks start from equal weights there. "
            "Give these modules a reset_parameters(), or say reset=False to start all from the given weights.",
            stacklevel=3,
        )
    return per_task(made)


def stage_channels(encoder: nn.Module, example: Any | None) -> list[tuple[int, int]]:
    """For each stage how many channels its output has, and along which dimension.

    Raises:
        NeedsExample: if it is unknown until an example has been seen.
    """
    return [(shape[dim], dim) for shape, dim in stage_shapes(encoder, example)]


def stage_shapes(encoder: nn.Module, example: Any | None) -> list[tuple[tuple[int, ...], int]]:
    """For each stage the shape of its output, rows first, and the dimension of its channels.

    Without an example, rows are 0 and outputs count as vectors.

    Raises:
        NeedsExample: if it is unknown until an example has been seen.
        ShapeError: if a stage returns something else than a tensor.
    """
    staged = in_stages(encoder)
    if example is None:
        widths = [_last_width(stage) for stage in staged.stages]
        if any(width is None for width in widths):
            raise NeedsExample(
                f"How many channels the stages of {type(encoder).__name__} have is unknown until it runs. Pass "
                "MultiTaskModel(..., example=inputs_of_a_few_rows), or let fit build the model from its first batch."
            )
        return [((0, width or 0), -1) for width in widths]
    shapes: list[tuple[int, ...]] = []

    def run() -> None:
        state = staged.begin(example)
        for number, stage in enumerate(staged.stages):
            state = stage(state)
            if not isinstance(state, Tensor):
                raise ShapeError(
                    f"Stage {number} of {type(encoder).__name__} returns a {type(state).__name__}. Towers are joined "
                    "on tensors: let every stage return one."
                )
            shapes.append(tuple(state.shape))

    quietly(encoder, run)
    dims = staged.channel_dims or tuple(1 if len(shape) > 3 else -1 for shape in shapes)
    return list(zip(shapes, dims, strict=True))


def tail_parameters(encoder: nn.Module, last: int, example: Any | None) -> frozenset[str]:
    """Names of the parameters that are used behind stage ``last`` alone: by later stages and by the end.

    Raises:
        NeedsExample: if only a run can tell which weights belong to the encoder's beginning.
    """
    stages = list(in_stages(encoder).stages)
    early = {id(p) for stage in stages[: last + 1] for p in stage.parameters()}
    own = after_begin(encoder, stages, example) - early
    return frozenset(name for name, p in encoder.named_parameters() if id(p) in own)


def _last_width(stage: nn.Module) -> int | None:
    widths = [layer.out_features for _, layer in dense_chain(stage) or [] if isinstance(layer, nn.Linear)]
    return widths[-1] if widths else None


def along(vector: Tensor, state: Tensor, dim: int) -> Tensor:
    """``[channels]`` shaped so that it multiplies ``state`` along its channels.

    Example:
        >>> import torch
        >>> along(torch.ones(4), torch.zeros(2, 4, 3, 3), 1).shape
        torch.Size([4, 1, 1])
    """
    return vector if dim in (-1, state.dim() - 1) else vector.view(-1, *[1] * (state.dim() - 1 - dim))
