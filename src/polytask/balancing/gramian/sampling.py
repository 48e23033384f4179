"""Weights that take steps by the gradients of two independent halves of a step's rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polytask.errors import BalancerError


def need_cross(method: str, cross: Tensor | None) -> Tensor:
    """The products of the two halves, float64 on the CPU.

    Raises:
        BalancerError: if there are none.
    """
    if cross is None:
        raise BalancerError(
            f"{method} needs two independent halves of the rows: give 'second' to 'aggregate' or 'backward', or "
            "'cross', the products of the two halves' gradients."
        )
    return cross.detach().to("cpu", torch.float64)


def step_known(weights: Tensor, cross: Tensor, move: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Move the weights of the tasks that both halves have; the others stay.

    Args:
        weights: Of the present tasks, not negative, ``[p]``.
        cross: Products of the two halves, ``[p, p]``; NaN in row and column of a task that one of them lacks.
        move: From weights that sum to one and the products of these tasks to new weights that sum to one.

    Returns:
        Weights ``[p]`` with the same sum.

    Example:
        >>> from polytask.balancing.functional.simplex_projection import simplex_step
        >>> nan = float("nan")
        >>> cross = torch.tensor([[1.0, 0.0, nan], [0.0, 3.0, nan], [nan, nan, nan]])
        >>> step_known(torch.tensor([0.4, 0.4, 0.2]), cross, lambda shares, matrix: simplex_step(shares, matrix, 0.1))
        tensor([0.4400, 0.3600, 0.2000])
    """
    known = cross.diagonal().isfinite()
    total = weights[known].sum()
    moved = weights.clone()
    if not float(total) > 0.0:
        return moved
    moved[known] = total * move(weights[known] / total, cross[known][:, known])
    return moved
