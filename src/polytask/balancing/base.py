"""The three kinds of balancer, so that what a method needs and returns is never guessed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polytask.errors import BalancerError, unknown

Relook = Callable[[], Mapping[str, Tensor]]
"""Computes the losses of the step's batch again, after the update: no gradient, no redrawn dropout
masks, no BatchNorm statistics moved."""

RESERVED = ("at", "every", "rescale_to", "optimizer", "accumulate")
"""Recipe keys that belong to the engine: no method may use one as an option name."""


class Balancer(nn.Module, ABC):
    """What the three kinds have in common: task names, a seeded generator, two hooks.

    Learned weights are Parameters (they get an optimizer of their own), running averages are buffers;
    both hold one entry a task in the order of ``tasks``. ``setup`` is called once before use.

    Attributes:
        tasks: Names in the order of the state; empty before ``setup``.
        generator: The only source of randomness, on the CPU; its state is part of ``state_dict``.
        fallbacks: In how many steps a documented fallback was taken, by its reason in words.
    """

    traits: ClassVar[frozenset[str]] = frozenset()
    """Properties that the conformance tests hold a method to: ``non_conflicting``,
    ``permutation_equivariant``, ``scale_equivariant`` (update scales with the gradients),
    ``scale_invariant`` (weights times gradients do not), ``pareto_fixed_points``,
    ``identity_for_one_task``, ``stateful``, ``random``."""
    needs_losses: ClassVar[bool] = False
    """Whether it reads loss values (a Gramian or Jacobian method may not)."""
    looks_again: ClassVar[bool] = False
    """Whether ``after_step`` uses ``relook``."""
    fixed_weights: ClassVar[bool] = False
    """Whether the weights are the same in every step, so that the monitor need not watch them."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: tuple[str, ...] = ()
        self.kinds: dict[str, str] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.fallbacks: dict[str, int] = {}

    def setup(self, tasks: Sequence[str], kinds: Mapping[str, str] | None = None, seed: int = 0) -> None:
        """Create the state for these tasks.

        Args:
            tasks: All task names.
            kinds: Task kinds by name (``"regression"``, ``"classification"`` or a task type's key).
            seed: Of the generator.
        """
        if len(set(tasks)) != len(tasks) or not tasks:
            raise BalancerError(f"A balancer needs at least one task and no name twice; got {list(tasks)}.")
        self.tasks = tuple(tasks)
        self.kinds = dict(kinds or {})
        self.generator.manual_seed(seed)
        self.build_state(len(tasks))

    def build_state(self, count: int) -> None:
        """Create Parameters and buffers with one entry for each of ``count`` tasks."""

    def index(self, tasks: Sequence[str]) -> Tensor:
        """Positions of ``tasks`` in the state, int64."""
        for task in tasks:
            if task not in self.tasks:
                raise BalancerError(unknown("task", task, self.tasks))
        return torch.tensor([self.tasks.index(task) for task in tasks])

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Called with the epoch's average training loss of every task that had one."""

    def after_step(self, relook: Relook) -> None:
        """Called after the optimizer's step."""

    def get_extra_state(self) -> dict[str, Any]:
        """Task names and the generator's state."""
        return {"tasks": list(self.tasks), "generator": self.generator.get_state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the generator; refuse the state of other tasks."""
        if tuple(state["tasks"]) != self.tasks:
            raise BalancerError(f"The saved state is for tasks {state['tasks']}, not for {list(self.tasks)}.")
        self.generator.set_state(state["generator"])


class LossWeighting(Balancer):
    """Weights from the losses alone: one ordinary backward of the weighted sum."""

    needs_losses: ClassVar[bool] = True
    """A weighting whose weights ignore the losses says False: it needs no first look at several micro-batches."""

    @abstractmethod
    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The weight of each present task's loss.

        Args:
            losses: Detached losses of the present tasks over the whole step, shape ``[p]``.
            tasks: Their names; an absent task is simply not among them.

        Returns:
            Weights, shape ``[p]``: the gradient of the method's total with respect to the losses.
        """

    def objective(self, losses: Tensor, tasks: Sequence[str]) -> Tensor | None:
        """What the method's own Parameters minimise, given detached losses ``[p]``; None if it has none."""
        return None


class GramianWeighting(Balancer):
    """Weights from the Gramian of the tasks' gradients (and the losses, where a method uses them)."""

    @abstractmethod
    def weigh(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """The weight of each present task's gradient.

        Args:
            gramian: Inner products of the present tasks' gradients, float64 on the CPU, ``[p, p]``.
            losses: Detached losses ``[p]``, or None if they are not known.
            tasks: Names of the present tasks.

        Returns:
            Weights ``[p]``, float64; the update is their weighted sum of gradients.
        """

    def objective(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor | None:
        """What the method's own Parameters minimise; None if it has none."""
        return None


class JacobianAggregator(Balancer):
    """A direction from the whole Jacobian."""

    @abstractmethod
    def aggregate(self, jacobian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """The update direction.

        Args:
            jacobian: One row a present task, shape ``[p, n]``.
            losses: Detached losses ``[p]``, or None if they are not known.
            tasks: Names of the present tasks.

        Returns:
            Direction ``[n]``: what goes into ``.grad``.
        """
