"""Balancing inside one's own training loop: ``backward``, ``Node`` and ``balance``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing.base import Balancer, JacobianAggregator, LossWeighting
from polytask.balancing.doors import check_present
from polytask.balancing.engines.choose import engine
from polytask.balancing.engines.core import Options
from polytask.balancing.engines.features import FeatureEngine
from polytask.balancing.engines.gradients import add_gradients
from polytask.balancing.engines.leaves import own_leaves
from polytask.balancing.engines.node import Column, Link, aliases, unreached
from polytask.balancing.engines.sums import Sums
from polytask.balancing.types import Losses, MicroBatch, Reduce, StepReport
from polytask.errors import BalancerError, unknown

PLACES = ("features", "last", "parameters")


class _Found:
    """Shared parameters that the user named, and the others that a walk over the graph finds."""

    def __init__(self, shared: Sequence[nn.Parameter], own: Mapping[str, Sequence[nn.Parameter]]):
        self._shared, self._own = list(shared), own

    def shared_parameters(self) -> list[nn.Parameter]:
        """The named ones."""
        return self._shared

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Leaves of the task's loss that are not shared."""
        return list(self._own.get(task, ()))


def backward(
    losses: Mapping[str, Tensor],
    shared: Iterable[nn.Parameter] = (),
    *,
    balancer: Balancer,
    features: Tensor | Mapping[str, Tensor] | None = None,
    at: str | None = None,
    rescale_to: str = "none",
    reduce: Reduce | None = None,
    second: Mapping[str, Tensor] | None = None,
) -> StepReport:
    """One balanced backward in one's own training loop: fills ``.grad``.

    Parameters that are not shared get the gradient of their own task's loss. With a loss weighting, all get the
    gradient of the weighted sum. The gradients of a method's learned weights land in their ``.grad``: step
    ``balancer.parameters()`` with an optimizer of their own, Adam with rate 0.025 for instance.

    Args:
        losses: A scalar loss with a graph for every task that is present.
        shared: Shared parameters; a loss weighting needs none.
        balancer: A method that is set up (``build``).
        features: For ``at="features"``: where shared computation ends, one tensor or several by name.
        at: ``features``, ``last`` or ``parameters`` (default, or the method's own).
        rescale_to: ``none``, ``mean`` or ``sum``, as in ``engine``.
        reduce: Sums a tensor over processes; ``.grad`` then holds this process's share of the sum.
        second: For a method that needs two independent halves (``modo``): losses of the other half of the rows.
            The update is then made of the mean of the two.

    Returns:
        Losses, weights and the Gramian of the step.

    Raises:
        BalancerError: for losses without a graph, a parameter that no loss reaches, or features that do not lead
            to the losses.

    Example:
        >>> from polytask.balancing.making import build
        >>> trunk, head = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
        >>> out = trunk(torch.ones(4, 3))
        >>> losses = {"a": head(out).square().mean(), "b": out.square().mean()}
        >>> report = backward(losses, trunk.parameters(), balancer=build("mgda", tasks=["a", "b"]))
        >>> sorted(report.weights)
        ['a', 'b']
    """
    tasks = check_present(losses, balancer.tasks)
    others = _check_second(balancer, second)
    if at is not None and at not in PLACES:
        raise BalancerError(unknown("value of 'at':", at, PLACES))
    place = at if at is not None else str(getattr(balancer, "default_at", "parameters"))
    named = _named_features(features, place)
    trained = [p for p in shared if p.requires_grad]
    if isinstance(balancer, LossWeighting):
        parameters = _Found(trained, {})
    else:
        both = [*losses.items(), *(second or {}).items()]
        parameters = _Found(trained, own_leaves(both, trained, named))
    runner = engine(balancer, parameters, at=at, rescale_to=rescale_to, reduce=reduce)
    if isinstance(runner, FeatureEngine):
        return _at_features(runner, losses, tasks, named)
    if second is not None:
        return runner.backward([_half(0, losses, tasks, others), _half(1, second, others, tasks)])
    return runner.backward([MicroBatch(tasks, lambda tap: Losses(losses))])


def _check_second(balancer: Balancer, second: Mapping[str, Tensor] | None) -> tuple[str, ...]:
    """Tasks of the second half, in the balancer's order."""
    name = type(balancer).__name__
    if not balancer.halves:
        if second is not None:
            raise BalancerError(f"'{name}' makes no use of a second half of the rows. Leave second= out.")
        return ()
    if isinstance(balancer, LossWeighting):
        raise BalancerError(
            f"'{name}' computes losses at other parameters, which losses that are there already do not allow. Use it "
            "in 'fit' or a recipe, or give its engine micro-batches."
        )
    if second is None:
        raise BalancerError(
            f"'{name}' needs two independent halves of the rows. Pass the losses of the other half as second=."
        )
    return check_present(second, balancer.tasks)


def _half(number: int, losses: Mapping[str, Tensor], tasks: tuple[str, ...], others: tuple[str, ...]) -> MicroBatch:
    """One half of a step: a task that both have counts half in each."""
    share = {task: 0.5 if task in others else 1.0 for task in tasks}
    shares = {task: share[task] * losses[task] for task in tasks}
    return MicroBatch(tasks, lambda tap: Losses(shares), number, share)


def _named_features(features: Tensor | Mapping[str, Tensor] | None, place: str) -> dict[str, Tensor]:
    if (features is None) != (place != "features"):
        raise BalancerError(
            "at='features' needs features=, the tensor where shared computation ends."
            if features is None
            else f"features= is only used with at='features', but gradients are taken at '{place}'. Leave one out."
        )
    if features is None:
        return {}
    return {"features": features} if isinstance(features, Tensor) else dict(features)


def _at_features(
    runner: FeatureEngine, losses: Mapping[str, Tensor], tasks: tuple[str, ...], features: dict[str, Tensor]
) -> StepReport:
    total, zs = Sums(), list(features.values())
    scaled = runner.scaled(Losses(losses))
    total.add(scaled)
    rows = []
    for task in tasks:
        own = runner.own_parameters(task)
        found = torch.autograd.grad(scaled.tasks[task], [*zs, *own], retain_graph=True, allow_unused=True)
        mine = found[: len(zs)]
        if all(row is None for row in mine):
            raise BalancerError(unreached(tuple(features), [task]))
        rows.append(mine)
        add_gradients(own, found[len(zs) :])
    columns = list(zip(*rows, strict=True))
    used = [place for place, column in enumerate(columns) if any(row is not None for row in column)]
    combined, report = runner.balance([columns[place] for place in used], runner.reduced(total.stack(tasks)), tasks)
    torch.autograd.backward([zs[place] for place in used], combined, inputs=runner.shared)
    return report


class Node:
    """The balance node for one's own loop: one ordinary backward balances the tasks at the features.

    Call it on the features, feed each head with what it returns for the head's task, then call ``backward``
    with the losses. Tasks without a loss leave the solve.

    Args:
        balancer: A gradient method that is set up (``build``).
        tasks: Names of the tasks; the balancer's if None.
        reduce: Sums a tensor over processes.

    Raises:
        BalancerError: for a loss weighting, or a method that cannot work at the features.

    Example:
        >>> from polytask.balancing.making import build
        >>> trunk = torch.nn.Linear(3, 2)
        >>> node = Node(build("mgda", tasks=["a", "b"]))
        >>> zs = node(trunk(torch.ones(4, 3)))
        >>> report = node.backward({"a": zs["a"].square().mean(), "b": zs["b"].sum()})
        >>> trunk.weight.grad.shape
        torch.Size([2, 3])
    """

    def __init__(self, balancer: Balancer, tasks: Sequence[str] | None = None, reduce: Reduce | None = None):
        if isinstance(balancer, LossWeighting):
            raise BalancerError(
                f"'{type(balancer).__name__}' weighs losses, so no node is needed. Use 'backward' with the losses."
            )
        if balancer.halves:
            raise BalancerError(
                f"'{type(balancer).__name__}' compares two halves of the rows, whose features have nothing in common. "
                "Use 'backward' with second=."
            )
        for task in tasks or ():
            if task not in balancer.tasks:
                raise BalancerError(unknown("task", task, balancer.tasks))
        if isinstance(balancer, JacobianAggregator) and ("stateful" in balancer.traits or reduce is not None):
            raise BalancerError(f"'{type(balancer).__name__}' cannot work at the features. Use 'backward'.")
        self.tasks = tuple(task for task in balancer.tasks if tasks is None or task in tasks)
        self.engine = FeatureEngine(balancer, _Found([], {}), Options("features", reduce=reduce), None)
        self._losses: Mapping[str, Tensor] | None = None
        self._link: Link | None = None
        self._report: StepReport | None = None

    def __call__(self, features: Tensor | Mapping[str, Tensor]) -> dict[str, Any]:
        """Aliases of the features, one for every task (a dict of them if ``features`` is one)."""
        single = isinstance(features, Tensor)
        named = {"features": features} if isinstance(features, Tensor) else dict(features)
        self._link = Link(self.tasks, tuple(named), self._combine)
        handed = aliases(named, self._link)
        return {task: mine["features"] if single else mine for task, mine in handed.items()}

    def backward(self, losses: Mapping[str, Tensor], penalty: Tensor | None = None) -> StepReport:
        """One ordinary backward of the plain sum of losses; the node weighs what goes into the trunk.

        Args:
            losses: A scalar loss for every task that is present.
            penalty: Added outside of balancing.

        Returns:
            Losses, weights and the Gramian of the step.

        Raises:
            BalancerError: if the node was not called before, or no loss depends on it.
        """
        if self._link is None:
            raise BalancerError("Call the node on the features first, and feed the heads with what it returns.")
        self._link.present = check_present(losses, self.tasks)
        self._losses, self._report = losses, None
        scaled = self.engine.scaled(Losses(losses)).tasks
        torch.autograd.backward([*scaled.values(), *([] if penalty is None else [penalty])])
        self._losses, self._link = None, None
        if self._report is None:
            raise BalancerError(unreached(("features",), tuple(losses)))
        return self._report

    def _combine(self, columns: list[Column]) -> list[Tensor]:
        assert self._link is not None
        present = self._link.present
        values = None
        if self._losses is not None:
            total = Sums()
            total.add(Losses(self._losses))
            values = self.engine.reduced(total.stack(present))
        combined, self._report = self.engine.balance(columns, values, present)
        return combined


def balance(features: Tensor, count: int, balancer: Balancer) -> list[Tensor]:
    """Aliases of the features; any ordinary backward through them is balanced.

    Args:
        features: Where shared computation ends.
        count: How many tasks there are; every alias has to lead to a loss.
        balancer: A gradient method that is set up for ``count`` tasks and reads no losses.

    Returns:
        ``count`` aliases, in the order of the balancer's tasks.

    Raises:
        BalancerError: for a method that reads losses, or another number of tasks.

    Example:
        >>> from polytask.balancing.making import build
        >>> z = torch.ones(2, 3, requires_grad=True)
        >>> a, b = balance(z * 1.0, 2, build("mgda", tasks=["a", "b"]))
        >>> (a.sum() + (2 * b).sum()).backward()
        >>> z.grad[0]
        tensor([1., 1., 1.])
    """
    if len(balancer.tasks) != count:
        raise BalancerError(f"The balancer was set up for {len(balancer.tasks)} tasks, but {count} aliases are asked.")
    if balancer.needs_losses:
        raise BalancerError(
            f"'{type(balancer).__name__}' reads the losses, which a bare backward does not tell. Use 'Node'."
        )
    return list(Node(balancer)(features).values())
