"""What all engines have in common: the step's walk, the method's own optimizer, second looks, state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing.base import Balancer, GramianWeighting
from polytask.balancing.engines.heads import heads_only, plain_tap, rows_of, stacked
from polytask.balancing.engines.host import lost_digits
from polytask.balancing.engines.layers import layer_products, shared_layers
from polytask.balancing.engines.own import own_optimizer, step
from polytask.balancing.engines.replay import RandomState, Replay
from polytask.balancing.engines.rows import exact_products, products
from polytask.balancing.engines.sums import Sums, merged
from polytask.balancing.types import Figures, Losses, MicroBatch, Parameters, Reduce, StepReport
from polytask.errors import BalancerError, unknown

PLACES = ("parameters", "last", "features")
RESCALES = ("none", "mean", "sum")
ACCUMULATES = ("exact", "micro")


@dataclass(frozen=True)
class Options:
    """How an engine runs its method; ``engine`` documents every field."""

    at: str | None
    every: int = 1
    rescale_to: str = "none"
    accumulate: str = "exact"
    reduce: Reduce | None = None
    memory_budget: int = 2**30
    features_ok: bool = True


class BaseEngine(ABC):
    """Fills ``.grad`` from a step's micro-batches; subclasses say how.

    Args:
        balancer: The method, set up for its tasks.
        parameters: Which parameters are shared, and which belong to one task.
        options: How the method is run.
        optimizer: Settings of the optimizer of the method's learned weights.
    """

    def __init__(
        self, balancer: Balancer, parameters: Parameters, options: Options, optimizer: Mapping[str, Any] | None
    ):
        self.balancer, self.parameters, self.options = balancer, parameters, options
        self.own = own_optimizer(balancer, optimizer)
        self.learned = list(balancer.parameters())
        self.shared = [p for p in parameters.shared_parameters() if p.requires_grad]
        module = parameters if isinstance(parameters, nn.Module) else None
        self.replay = Replay(module, [p.device for p in self.shared])
        self._count = 0
        self._kept: tuple[tuple[str, ...], Tensor] | None = None
        self._start: RandomState | None = None
        self._fresh = True

    def backward(self, micro: Sequence[MicroBatch]) -> StepReport:
        """Run the forwards and backwards of one step; add to ``.grad``."""
        if not micro:
            raise BalancerError("A step needs at least one micro-batch; got none. Skip a step without labels.")
        for batch in micro:
            self._check_tasks(batch.tasks)
        if self.balancer.looks_again:
            self._start = self.replay.state()
        if self.options.accumulate == "micro" and len(micro) > 1:
            return merged([self._counted([batch]) for batch in micro])
        return self._counted(micro)

    def _counted(self, micro: Sequence[MicroBatch]) -> StepReport:
        there = {task for batch in micro for task in batch.tasks}
        tasks = tuple(task for task in self.balancer.tasks if task in there)
        due = self._count % self.options.every == 0
        self._fresh = due or self._kept is None or self._kept[0] != tasks
        self._count += 1
        return self.step(micro, tasks)

    @abstractmethod
    def step(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> StepReport:
        """One solve: all micro-batches, the present ``tasks`` in the method's order."""

    def shared_is_fixed(self) -> bool:
        """Whether no shared parameter takes a gradient in this step: a training strategy may fix them for a while."""
        return not any(p.requires_grad for p in self.shared)

    def kept_weights(self, tasks: tuple[str, ...]) -> Tensor | None:
        """The weights of an earlier step where this one reuses them."""
        return None if self._fresh or self._kept is None else self._kept[1]

    def keep(self, tasks: tuple[str, ...], weights: Tensor) -> None:
        """Remember weights for the steps that reuse them."""
        self._kept = (tasks, weights)

    def after_step(self, micro: Sequence[MicroBatch]) -> None:
        """Let the method look again, then step its own optimizer."""
        if self._fresh:
            self.balancer.after_step(lambda: self.look_again(micro))
            self.step_own()

    def look_again(self, micro: Sequence[MicroBatch]) -> dict[str, Tensor]:
        """Losses of the same micro-batches with the present parameters, and no trace of having looked."""
        with torch.no_grad(), self.replay.peek(self._start):
            total = Sums()
            for batch in micro:
                total.add(self.check_losses(batch, batch.forward(plain_tap)))
        tasks = tuple(task for task in self.balancer.tasks if task in total.values)
        return dict(zip(tasks, self.reduced(total.stack(tasks)).unbind(), strict=True))

    @property
    def figures(self) -> Figures:
        """Where conflict figures come from: the step's own Gramian, ``probe``, or nowhere."""
        if len(self.balancer.tasks) < 2:
            return "none"
        if isinstance(self.balancer, GramianWeighting):
            return "own"
        return "features" if self.options.features_ok else "none"

    def probe(self, micro: Sequence[MicroBatch]) -> tuple[tuple[str, ...], Tensor] | None:
        """Inner products of the tasks' gradients of the shared features, for the log.

        Costs a forward and the heads' backwards of one micro-batch, and leaves no trace: random state, module
        buffers and ``.grad`` are as before. With several processes all must call it in the same steps.

        Args:
            micro: The step's micro-batches; the first with two tasks is looked at.

        Returns:
            Names of its tasks and their products ``[p, p]``, float64, summed over processes; None without such
            a micro-batch or features, or where the gradients would exceed the memory budget on some process.
        """
        batch = next((batch for batch in micro if len(batch.tasks) > 1), None)
        if self.figures != "features" or batch is None:
            return None
        tasks = tuple(task for task in self.balancer.tasks if task in batch.tasks)
        with self.replay.peek():
            losses, leaves = heads_only(batch)
        if not leaves:
            return None
        size = 4 * len(tasks) * sum(z.numel() for z in leaves.values())
        stacks = [] if size > self.options.memory_budget else stacked(rows_of(losses, leaves, tasks), leaves)
        found = self._summed(stacks, len(tasks), leaves, products)
        if found is not None and lost_digits(found):
            found = self._summed(stacks, len(tasks), leaves, exact_products)
        return None if found is None else (tasks, found)

    def probe_layers(self, micro: Sequence[MicroBatch]) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
        """Inner products of the tasks' gradients, one matrix for each of the last shared layers, for the log.

        Costs a forward and one backward a task through these layers, and leaves no trace, as ``probe`` does.

        Args:
            micro: The step's micro-batches; the first with two tasks is looked at.

        Returns:
            Names of its tasks and ``[p, p]`` by layer; None without such a micro-batch or layer.
        """
        batch = next((batch for batch in micro if len(batch.tasks) > 1), None)
        if batch is None or not isinstance(self.parameters, nn.Module):
            return None
        tasks = tuple(task for task in self.balancer.tasks if task in batch.tasks)
        budget = self.options.memory_budget // (4 * len(tasks))
        layers = shared_layers(self.parameters, self.shared, budget)
        if not layers:
            return None
        with self.replay.peek():
            return tasks, layer_products(batch, layers, tasks, self.reduced)

    def _summed(
        self, stacks: Sequence[Tensor], count: int, leaves: Mapping[str, Tensor], form: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        """Products ``[count, count]`` over all processes, on the CPU; None if one of them has no stacks."""
        device = next(iter(leaves.values())).device
        total = torch.zeros(count**2 + 1, dtype=torch.float64, device=device)
        total[-1] = float(not stacks)
        for stack in stacks:
            total[:-1] += form(stack.reshape(count, -1)).reshape(-1)
        total = self.reduced(total).cpu()
        return None if total[-1] > 0 else total[:-1].view(count, count)

    def step_own(self) -> None:
        """Step the method's own Parameters along the gradients that ``learn`` left, and drop these."""
        if self.own is not None:
            step(self.own)
            for parameter in self.learned:
                parameter.grad = None

    def learn(self, objective: Tensor | None) -> None:
        """Gradients of the method's own Parameters; ``after_step`` steps them."""
        if objective is not None and self.own is not None:
            self.leave(torch.autograd.grad(objective, self.learned, allow_unused=True))

    def leave(self, gradients: Sequence[Tensor | None]) -> None:
        """Put gradients of the method's own Parameters where ``step_own`` finds them."""
        for parameter, gradient in zip(self.learned, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter)

    def reduced(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        return tensor if self.options.reduce is None else self.options.reduce(tensor)

    def check_losses(self, batch: MicroBatch, losses: Losses) -> Losses:
        """Refuse losses that are not scalars or not those of the micro-batch's tasks; scale them if the method does."""
        for task, loss in losses.tasks.items():
            if loss.dim() != 0:
                raise BalancerError(f"The loss of '{task}' has shape {list(loss.shape)}. Give one number a task.")
        if set(losses.tasks) != set(batch.tasks):
            raise BalancerError(
                f"The micro-batch is for tasks {list(batch.tasks)}, but its losses are for {list(losses.tasks)}."
            )
        return self.scaled(losses)

    def scaled(self, losses: Losses) -> Losses:
        """The losses as the method wants them; their plain values go along."""
        tasks = tuple(losses.tasks)
        factors = self.balancer.loss_scales(tasks)
        if factors is None:
            return losses
        made = {
            task: factor.to(losses.tasks[task]) * losses.tasks[task]
            for task, factor in zip(tasks, factors, strict=True)
        }
        return replace(losses, tasks=made, plain={task: loss.detach() for task, loss in losses.tasks.items()})

    def _check_tasks(self, tasks: Sequence[str]) -> None:
        strange = set(tasks).difference(self.balancer.tasks)
        if strange:
            raise BalancerError(unknown("task", min(strange), self.balancer.tasks))

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Tell the method the epoch's average training losses."""
        self.balancer.epoch_end(losses)

    def describe(self) -> str:
        """One line for the log."""
        parts = [type(self.balancer).__name__, self.place()]
        if self.balancer.halves:
            parts.append("with the rows of every step in two halves")
        if self.options.every > 1:
            parts.append(f"weights renewed every {self.options.every} steps")
        if self.options.rescale_to != "none":
            parts.append(f"updates rescaled to the norm of the {self.options.rescale_to} of the gradients")
        if self.options.accumulate == "micro":
            parts.append("solved for every micro-batch by itself")
        return "Balancing: " + ", ".join(parts) + "."

    @abstractmethod
    def place(self) -> str:
        """Where gradients are taken, in words."""

    def state_dict(self) -> dict[str, object]:
        """Method state, its optimizer, the count of steps and the weights in use."""
        return {
            "balancer": self.balancer.state_dict(),
            "optimizer": None if self.own is None else self.own.state_dict(),
            "count": self._count,
            "kept_tasks": None if self._kept is None else list(self._kept[0]),
            "kept_weights": None if self._kept is None else self._kept[1],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.balancer.load_state_dict(state["balancer"])
        if (self.own is None) != (state["optimizer"] is None):
            raise BalancerError("The saved balancer and this one do not both have an optimizer. Use the same recipe.")
        if self.own is not None:
            self.own.load_state_dict(state["optimizer"])
        self._count = int(state["count"])
        kept = state["kept_tasks"]
        self._kept = None if kept is None else (tuple(kept), state["kept_weights"])
