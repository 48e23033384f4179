"""What the solved Gramian weightings have in common: conversion, one task, and the warning."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.balancing.base import GramianWeighting
from polytask.balancing.functional.gramian import Array, Solved, all_finite
from polytask.balancing.warn import BalancerWarning
from polytask.errors import BalancerError, unknown

_MEANINGS = {
    "stationary": "no solution at these Pareto stationary gradients; took the shortest vector in their hull",
    "zero_row": "no solution with a gradient of zero; solved it for the other tasks",
    "inexact": "its optimality conditions could not be met to 1e-9 (form the Gramian in float64); took the best point",
    "cancelled": "no solution where the directions of the gradients cancel; took no update from them",
    "infeasible": "its constraints contradict each other; dropped them",
}


class SolvedWeighting(GramianWeighting):
    """A Gramian weighting that calls one solver of ``functional``.

    With a single task present there is nothing to balance and its weight is one, whatever the method.
    A fallback of the solver (its docstring states which) gives a BalancerWarning once an instance.
    """

    traits: frozenset[str] = frozenset({"identity_for_one_task", "permutation_equivariant"})

    @abstractmethod
    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights of at least two tasks, from a finite Gramian ``[p, p]`` and losses ``[p]``."""

    def weigh(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """The weight of each present task's gradient.

        Args:
            gramian: Inner products of the present tasks' gradients, float64 on the CPU, ``[p, p]``.
            losses: Detached losses ``[p]``, or None if they are not known.
            tasks: Names of the present tasks.

        Returns:
            Weights ``[p]``, float64.

        Raises:
            BalancerError: if an inner product is not finite.
        """
        if len(tasks) == 1:
            return torch.ones(1, dtype=torch.float64)
        products = gramian.detach().to("cpu", torch.float64).numpy()
        if not all_finite(products):
            broken = [task for task, row in zip(tasks, products, strict=True) if not np.isfinite(row).any()]
            raise BalancerError(
                f"{type(self).__name__} was given gradients with products that are not finite "
                f"(tasks: {', '.join(broken or tasks)}). Lower the learning rate, clip, or check the losses."
            )
        known = None if losses is None else losses.detach().to("cpu", torch.float64).numpy()
        solved = self.solve(products, known, tasks)
        if solved.status != "solved":
            self._warn(solved.status)
        return torch.from_numpy(np.ascontiguousarray(solved.weights))

    def _warn(self, status: str) -> None:
        meaning = _MEANINGS[status]
        self.fallbacks[meaning] = self.fallbacks.get(meaning, 0) + 1
        if self.fallbacks[meaning] == 1:
            warnings.warn(f"{type(self).__name__}: {meaning}.", BalancerWarning, stacklevel=3)


def check_choice(method: str, option: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a BalancerError if ``value`` is not one of ``choices``."""
    if value not in choices:
        raise BalancerError(f"{method}: {unknown(option, value, choices)}")


def check_number(method: str, option: str, value: float, low: float, strict: bool = False) -> float:
    """The value as a float; a BalancerError unless it is finite and at least (above, if ``strict``) ``low``."""
    fine = isinstance(value, int | float) and np.isfinite(value) and (value > low if strict else value >= low)
    if not fine:
        raise BalancerError(
            f"{method}: {option} must be a number {'above' if strict else 'of at least'} {low:g}; got {value!r}."
        )
    return float(value)
