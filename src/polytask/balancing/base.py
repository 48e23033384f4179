"""The three kinds of balancer, so that what a method needs and returns is never guessed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from polytask.errors import BalancerError, unknown

Relook = Callable[[], Mapping[str, Tensor]]
"""Computes the losses of the step's batch again, after the update: no gradient, no redrawn dropout
masks, no BatchNorm statistics moved."""


class Trial(Protocol):
    """The two halves of a step's rows, 0 and 1, at the present parameters or moved away from them.

    Looking leaves no trace: parameters, random state and module buffers are as before.
    """

    def present(self, half: int) -> tuple[str, ...]:
        """Tasks with labels in that half."""
        ...

    def losses(self, half: int, shift: Sequence[Tensor] | None = None) -> Tensor:
        """Mean losses of the half's tasks with the parameters moved by ``shift``, in the order of ``present``."""
        ...

    def gradient(self, half: int, weights: Tensor, shift: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Gradient of the half's weighted losses, one tensor for every trained parameter of these tasks."""
        ...


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

    traits: frozenset[str] = frozenset()
    """Properties that the conformance tests hold a method to: ``non_conflicting``,
    ``permutation_equivariant``, ``scale_equivariant`` (update scales with the gradients),
    ``scale_invariant`` (weights times gradients do not), ``pareto_fixed_points``,
    ``identity_for_one_task``, ``stateful``, ``random``."""
    needs_losses: bool = False
    """Whether it reads loss values (a Gramian or Jacobian method may not)."""
    looks_again: bool = False
    """Whether ``after_step`` uses ``relook``."""
    fixed_weights: ClassVar[bool] = False
    """Whether the weights are the same in every step, so that the monitor need not watch them."""
    halves: bool = False
    """Whether it needs two independent halves of the step's rows. The ``weigh`` of a Gramian method then takes a
    keyword ``cross``; a loss weighting may look at each half in ``look_ahead``."""
    own_rate: float = 0.025
    """Step size of Adam for its learned weights, unless the user names an optimizer's own."""

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

    def loss_scales(self, tasks: Sequence[str]) -> Tensor | None:
        """What each task's loss is multiplied by before any gradient is taken, ``[p]``; None for nothing.

        The gradients that the method is given are then those of the scaled losses, and so are the ones that
        reach the parameters of single tasks. Loss values stay as they are.
        """
        return None

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

    needs_losses: bool = True
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

    def own_gradients(self, losses: Tensor, weights: Tensor, tasks: Sequence[str]) -> list[Tensor] | None:
        """Gradients of ``objective``, where a method has them in closed form: a graph of ten small tensors costs more.

        Args:
            losses: As ``weigh`` was given them.
            weights: What ``weigh`` returned for them.
            tasks: Names of the present tasks.

        Returns:
            One for every Parameter, zero for absent tasks; None to have them from ``objective`` by backpropagation.
        """
        return None

    def look_ahead(self, trial: Trial, tasks: Sequence[str]) -> Tensor | None:
        """Called before the weights of a step, if ``halves``: try out what they would do.

        Args:
            trial: Losses and gradients of the two halves, here or elsewhere in the space of the parameters.
            tasks: Names of the present tasks.

        Returns:
            What the method's own Parameters minimise; they are stepped at once. None for no step.
        """
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

        A method with ``halves`` also takes ``cross``: inner products of the gradients of the first half of the
        rows with those of the second, ``[p, p]``, not symmetric. Row and column of a task without labels in both
        halves are NaN.

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
