"""What the engines of gradient methods have in common: from a Gramian on the device to weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing.base import Balancer, GramianWeighting
from polytask.balancing.engines.core import BaseEngine, Options
from polytask.balancing.engines.heads import forward_for_each, plain_tap
from polytask.balancing.engines.host import (
    check_finite,
    lost_digits,
    on_host,
    semi_definite,
    symmetrised,
    update_norm,
)
from polytask.balancing.engines.jacobian import add_gradient
from polytask.balancing.engines.losses import backward_weighted
from polytask.balancing.engines.sums import Sums, joined
from polytask.balancing.functional.gramian import all_finite
from polytask.balancing.types import Losses, MicroBatch, Parameters, StepReport
from polytask.errors import BalancerError


class GradientEngine(BaseEngine):
    """Solves the m x m problem of a step; subclasses take the gradients.

    In a step whose shared parameters are all fixed there is nothing to solve: every task's own parameters get its
    plain gradient, as in any other step, and the method's state and count of steps rest.
    """

    def __init__(
        self, balancer: Balancer, parameters: Parameters, options: Options, optimizer: Mapping[str, Any] | None
    ):
        super().__init__(balancer, parameters, options, optimizer)
        self._owned: dict[str, list[nn.Parameter]] = {}

    def _counted(self, micro: Sequence[MicroBatch]) -> StepReport:
        if not self.shared_is_fixed():
            return super()._counted(micro)
        self._fresh = False
        total = Sums()
        for batch in micro:
            losses = self.check_losses(batch, batch.forward(plain_tap))
            total.add(losses)
            root = joined(losses.tasks, tuple(losses.tasks))
            backward_weighted(losses, root, torch.ones_like(root))
        tasks = tuple(task for task in self.balancer.tasks if task in total.values)
        return report(tasks, self.reduced(total.stack(tasks)), None)

    def decide(
        self,
        gramian: Tensor,
        losses: Tensor | None,
        tasks: tuple[str, ...],
        again: Callable[[], Tensor],
        culprit: Callable[[int], str] | None = None,
        cross: Tensor | None = None,
    ) -> tuple[Tensor, StepReport]:
        """Weights from the Gramian, with one transfer from the device.

        Args:
            gramian: Of the present tasks, summed over processes, ``[p, p]``.
            losses: Of the present tasks, summed over processes, ``[p]``; None if they are unknown.
            tasks: Their names.
            again: Forms the Gramian in float64, for gradients that float32 squares cannot hold.
            culprit: Names a parameter whose gradient is not finite, for the error.
            cross: For a method with ``halves``: products of the first half's gradients with the second's.

        Returns:
            Weights ``[p]``, float64 on the CPU, and the step's report.
        """
        assert isinstance(self.balancer, GramianWeighting)
        products, values = on_host(gramian, losses)
        rounded = gramian.dtype != torch.float64
        if rounded and lost_digits(products):
            products, rounded = on_host(again())[0], False
        check_finite(products, tasks, culprit)
        products = symmetrised(products)
        if rounded:
            products = semi_definite(products)
        further = {} if cross is None else {"cross": cross}
        with torch.no_grad():
            weights = self.balancer.weigh(products, values, tasks, **further).detach().to("cpu", torch.float64)
        check_weights(type(self.balancer).__name__, weights, tasks)
        if self.options.rescale_to != "none":
            weights = weights * scale(products, weights, self.options.rescale_to)
        if self.own is not None:
            with torch.enable_grad():  # this may run inside of a backward, where gradients are off
                self.learn(self.balancer.objective(products, values, tasks))
        self.keep(tasks, weights)
        return weights, self.told(tasks, values, weights, products)

    def told(
        self, tasks: tuple[str, ...], losses: Tensor | None, weights: Tensor, gramian: Tensor | None = None
    ) -> StepReport:
        """The step's report; its weights are those of the plain losses."""
        found, scales = report(tasks, losses, weights, gramian), self.balancer.loss_scales(tasks)
        if scales is None:
            return found
        return replace(found, weights=_named(tasks, weights * scales.to(weights)))

    def named(self, *found: nn.Parameter | None) -> str:
        """The first shared parameter found, for an error: by its name if the model is a module, else by its place."""
        parameter = next((p for p in found if p is not None), None)
        if parameter is None:
            return "its square"
        known = self.parameters.named_parameters() if isinstance(self.parameters, nn.Module) else ()
        name = next((f"'{name}'" for name, p in known if p is parameter), None)
        place = next((k for k, p in enumerate(self.shared) if p is parameter), None)
        return f"{name or f'shared parameter number {place}'} of shape {list(parameter.shape)}"

    def own_parameters(self, task: str) -> list[nn.Parameter]:
        """Trained parameters of one task alone."""
        if task not in self._owned:
            owned = getattr(self.parameters, "owned_parameters", None)
            if owned is None:
                return [p for p in self.parameters.task_parameters(task) if p.requires_grad]
            self._owned[task] = list(owned(task))  # those that are fixed for now, too, so it can be asked once
        return [p for p in self._owned[task] if p.requires_grad]

    def world(self) -> Tensor:
        """Number of processes, a tensor."""
        return self.reduced(torch.ones((), device=self.shared[0].device))

    def weighted_pass(
        self, micro: Sequence[MicroBatch], tasks: tuple[str, ...], weights: Tensor, own: bool = True
    ) -> Tensor:
        """Forwards and backwards with weights that are known; returns the losses ``[p]``."""
        total = Sums()
        for batch in micro:
            losses = self.check_losses(batch, forward_for_each(batch))
            total.add(losses)
            self.weighted_backward(losses, tasks, weights, own)
        return self.reduced(total.stack(tasks))

    def weighted_backward(self, losses: Losses, tasks: tuple[str, ...], weights: Tensor, own: bool = True) -> None:
        """Own parameters get their task's gradient (unless they have it), the shared ones one weighted backward."""
        for task in losses.tasks if own else ():
            mine = self.own_parameters(task)
            if mine:
                add_gradients(mine, gradients(losses.tasks[task], mine, keep_graph=True))
        found = {task: loss for task, loss in losses.tasks.items() if loss.requires_grad}
        seeds = [weights[tasks.index(task)].to(loss) for task, loss in found.items()]
        if found:
            live = [p for p in self.shared if p.requires_grad]
            torch.autograd.backward(list(found.values()), seeds, inputs=live, retain_graph=losses.penalty is not None)
        backward_penalty(losses)


def check_weights(method: str, weights: Tensor, tasks: Sequence[str]) -> None:
    """Raise a BalancerError for weights of a wrong shape or that are not finite."""
    if weights.shape != (len(tasks),):
        raise BalancerError(
            f"'{method}' returned weights of shape {list(weights.shape)} for {len(tasks)} present tasks. "
            "Return one weight a task."
        )
    if not all_finite(weights.numpy()):
        found = dict(zip(tasks, weights.tolist(), strict=True))
        raise BalancerError(f"'{method}' returned weights that are not finite: {found}.")


def scale(gramian: Tensor, weights: Tensor, rescale_to: str) -> float:
    """What the weights are multiplied by so that the update has the norm of the mean or sum of the gradients.

    An update that is zero up to rounding stays: a Pareto stationary point has no direction.
    """
    norm = update_norm(gramian, weights)
    longest = float((weights.abs() * gramian.diagonal().clamp_min(0).sqrt()).sum())
    if norm <= 1e-7 * longest:
        return 1.0
    ones = torch.ones_like(weights)
    return update_norm(gramian, ones / len(ones) if rescale_to == "mean" else ones) / norm


def report(
    tasks: Sequence[str], losses: Tensor | None, weights: Tensor | None, gramian: Tensor | None = None
) -> StepReport:
    """A step's report from vectors in the order of ``tasks``."""
    extras: dict[str, Tensor] = {}
    if gramian is not None and weights is not None:
        extras["update_norm"] = torch.tensor(update_norm(gramian, weights), dtype=torch.float64)
    return StepReport(_named(tasks, losses), _named(tasks, weights), gramian, extras)


def _named(tasks: Sequence[str], values: Tensor | None) -> dict[str, Tensor]:
    return {} if values is None else dict(zip(tasks, values.unbind(), strict=True))


def gradients(loss: Tensor, parameters: Sequence[Tensor], keep_graph: bool) -> list[Tensor | None]:
    """Gradients of one loss; None for a parameter that it does not depend on, or that is fixed."""
    live = [p for p in parameters if p.requires_grad]
    if not loss.requires_grad or not live:
        return [None] * len(parameters)
    found = torch.autograd.grad(loss, live, retain_graph=keep_graph, allow_unused=True)
    if len(live) == len(parameters):
        return list(found)
    by_number = dict(zip(map(id, live), found, strict=True))
    return [by_number.get(id(p)) for p in parameters]


def add_gradients(parameters: Sequence[nn.Parameter], found: Sequence[Tensor | None]) -> None:
    """Put gradients into ``.grad``; None leaves it alone."""
    for parameter, gradient in zip(parameters, found, strict=True):
        if gradient is not None:
            add_gradient(parameter, gradient)


def backward_penalty(losses: Losses) -> None:
    """The penalty's ordinary backward, outside of balancing."""
    if losses.penalty is not None and losses.penalty.requires_grad:
        torch.autograd.backward(losses.penalty)
