"""What passes between a training step and a balancing engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from polytask.balancing.base import Balancer

Tap = Callable[[dict[str, Tensor]], Mapping[str, Mapping[str, Tensor]]]
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes; the identity on one process."""
Figures = Literal["own", "features", "none"]
"""Where conflict figures come from: the Gramian of the step itself, a probe at the features, or nowhere."""


@dataclass(frozen=True)
class Losses:
    """What one forward gives.

    Args:
        tasks: For each task present, this micro-batch's share of its loss: the sum of its labelled rows'
            losses over the step's count of them, over all micro-batches and processes. Adding the shares
            up gives the mean loss of the step.
        penalty: What is added outside of balancing (regularisers), or None.
        plain: The same losses, detached, before a method scaled them; None if none did.
    """

    tasks: Mapping[str, Tensor]
    penalty: Tensor | None = None
    plain: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class MicroBatch:
    """One part of a step: calling ``forward`` runs the model on its rows.

    Args:
        tasks: Tasks with at least one labelled row here on some process.
        forward: ``forward(tap)`` runs trunk and heads with that tap and returns the losses. May be
            called again; every call builds a new graph.
        half: 0 or 1: to which half of the step's rows it belongs, for methods that need two.
        fractions: Of each task's labels in the whole step, the share that lies in that half; 1 if not named.
    """

    tasks: tuple[str, ...]
    forward: Callable[[Tap], Losses]
    half: int = 0
    fractions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepReport:
    """What a step did, as detached tensors: reading them is the only host sync.

    Args:
        losses: The step's mean loss per present task (over all processes).
        weights: The weight of each present task's gradient, where the method has weights.
        gramian: Inner products of the present tasks' gradients ``[m, m]`` where they were formed.
        extras: Further scalars for the history, such as the norm of the update.
    """

    losses: dict[str, Tensor]
    weights: dict[str, Tensor] = field(default_factory=dict)
    gramian: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


class Parameters(Protocol):
    """Which parameters are shared, and which belong to one task (a model knows)."""

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that more than one task uses."""
        ...

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Parameters of one task alone, its head included."""
        ...


class Engine(Protocol):
    """Fills ``.grad`` from a step's micro-batches.

    After ``backward`` every ``.grad`` holds this process's share: the training loop sums ``.grad`` over
    processes once, clips, and steps the optimizer; then it calls ``after_step``.
    """

    @property
    def balancer(self) -> Balancer:
        """The method that is run."""
        ...

    @property
    def figures(self) -> Figures:
        """Where conflict figures come from."""
        ...

    def probe(self, micro: Sequence[MicroBatch]) -> tuple[tuple[str, ...], Tensor] | None:
        """Tasks and the inner products of their gradients of the features, before ``backward``; leaves no trace."""
        ...

    def probe_layers(self, micro: Sequence[MicroBatch]) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
        """Tasks and the inner products of their gradients by shared layer, before ``backward``; leaves no trace."""
        ...

    def backward(self, micro: Sequence[MicroBatch]) -> StepReport:
        """Run the forwards and backwards of one step; ``.grad`` was None before."""
        ...

    def after_step(self, micro: Sequence[MicroBatch]) -> None:
        """Step the balancer's own optimizer; second looks happen here."""
        ...

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Tell the method the epoch's average training loss per task."""
        ...

    def describe(self) -> str:
        """One line for the log: which method, where its gradients are taken, how often."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Everything that a resume needs: method state, its optimizer, counters, generators."""
        ...

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what ``state_dict`` returned."""
        ...
