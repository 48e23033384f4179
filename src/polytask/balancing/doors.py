"""Balancing on its own: functions of matrices, and one's own training loop."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.base import Balancer, GramianWeighting, JacobianAggregator, LossWeighting
from polytask.balancing.engines.host import semi_definite
from polytask.balancing.engines.rows import exact_products
from polytask.balancing.making import build
from polytask.errors import BalancerError, unknown


def aggregate(
    jacobian: Tensor,
    balancer: str | Mapping[str, Any] | Balancer,
    *,
    losses: Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """The update direction that a gradient method makes of a Jacobian.

    Args:
        jacobian: One gradient a row, shape ``[m, n]``.
        balancer: A registry key, a mapping with a name, or an instance.
        losses: The tasks' losses, shape ``[m]``, for methods that read them.
        generator: Source of randomness, for methods that draw.
        options: Options of the method, and inputs of one call where the method takes them: ``order``, row numbers
            in the order in which ``pcgrad`` and ``gradvac`` visit them; ``uniform``, numbers ``[n]`` between 0 and 1
            for ``graddrop``; ``second``, the Jacobian of the other half of the rows, for methods that need two: the
            direction is made of the mean of the two.

    Returns:
        Direction, shape ``[n]``, in the Jacobian's dtype.

    Raises:
        BalancerError: for a matrix that cannot be used, or a method that weighs losses.
        RecipeError: for an unknown name or option.

    Example:
        >>> aggregate(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "mgda")
        tensor([0.5000, 0.5000])
    """
    _check_matrix("jacobian", jacobian)
    second = options.pop("second", None)
    method, call = _method(balancer, len(jacobian), generator, options)
    names = method.tasks
    _check_losses(method, losses, len(names))
    if second is not None or method.halves:
        call["cross"] = _crossed(method, jacobian, second)
        jacobian = (jacobian + second) / 2
    scales = method.loss_scales(names)
    if scales is not None:
        jacobian = scales.to(jacobian)[:, None] * jacobian
    if isinstance(method, JacobianAggregator):
        rows = jacobian.to(torch.promote_types(jacobian.dtype, torch.float32))
        with torch.no_grad():
            return method.aggregate(rows, losses, names, **call).to(jacobian.dtype)
    assert isinstance(method, GramianWeighting)
    with torch.no_grad():
        gramian = exact_products(jacobian).cpu()
        known = None if losses is None else losses.detach().to("cpu", torch.float64)
        found = method.weigh((gramian + gramian.T) / 2, known, names, **call)
        # The weighted sum is taken in float64, because gradients that nearly cancel would lose digits.
        return (found.to(jacobian.device, torch.float64) @ jacobian.double()).to(jacobian.dtype)


def weights(
    gramian: Tensor,
    balancer: str | Mapping[str, Any] | Balancer,
    *,
    losses: Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """The weights that a Gramian method makes of the inner products of the tasks' gradients.

    Args:
        gramian: Symmetric and positive semi-definite, shape ``[m, m]``.
        balancer: A registry key, a mapping with a name, or an instance.
        losses: The tasks' losses, shape ``[m]``, for methods that read them.
        generator: Source of randomness, for methods that draw.
        options: Options of the method, and inputs of one call where the method takes them: ``order`` as in
            ``aggregate``; ``cross``, products ``[m, m]`` of the gradients of two halves of the rows.

    Returns:
        Weights, shape ``[m]``, float64 on the CPU.

    Raises:
        BalancerError: for a matrix that is no Gramian, or a method that does not work from one.
        RecipeError: for an unknown name or option.

    Example:
        >>> weights(torch.eye(2), "mgda")
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    checked = _check_gramian(gramian)
    method, call = _method(balancer, len(gramian), generator, options)
    if not isinstance(method, GramianWeighting):
        raise BalancerError(
            f"'{type(method).__name__}' needs the gradients themselves, not only their Gramian. Use 'aggregate'."
        )
    _check_losses(method, losses, len(method.tasks))
    known = None if losses is None else losses.detach().to("cpu", torch.float64)
    scales = method.loss_scales(method.tasks)
    with torch.no_grad():
        if scales is None:
            return method.weigh(checked, known, method.tasks, **call).to(torch.float64)
        scales = scales.to(checked)
        return scales * method.weigh(scales[:, None] * checked * scales, known, method.tasks, **call)


def _crossed(method: Balancer, first: Tensor, second: Any) -> Tensor:
    """Inner products of the rows of two Jacobians, for a method that asks for them."""
    name = type(method).__name__
    if not method.halves:
        raise BalancerError(f"'{name}' makes no use of a second Jacobian. Leave second= out.")
    if not isinstance(second, Tensor):
        raise BalancerError(f"'{name}' needs two independent halves. Pass the other half's Jacobian as second=.")
    if second.shape != first.shape:
        raise BalancerError(
            f"second has shape {list(second.shape)} and the jacobian {list(first.shape)}. Both need the same tasks and "
            "parameters."
        )
    _check_matrix("second jacobian", second)
    return (first.double() @ second.double().T).cpu()


def _method(
    balancer: Any, count: int, generator: torch.Generator | None, options: dict[str, Any]
) -> tuple[Balancer, dict[str, Any]]:
    """The method, and the inputs that go to its call and not to its constructor."""
    call: dict[str, Any] = {key: options.pop(key) for key in ("order", "uniform", "cross") if key in options}
    tasks = balancer.tasks if isinstance(balancer, Balancer) and balancer.tasks else [str(k) for k in range(count)]
    if len(tasks) != count:
        raise BalancerError(f"The balancer was set up for {len(tasks)} tasks, but the matrix has {count} rows.")
    kind = _kind(balancer)
    takes = _inputs_of(kind) if kind is not None else frozenset()
    into_constructor = {key: call.pop(key) for key in list(call) if key not in takes}
    if isinstance(into_constructor.get("order"), Tensor):
        into_constructor["order"] = into_constructor["order"].tolist()
    method = build(balancer, tasks=tasks, **options, **into_constructor)
    if isinstance(method, LossWeighting):
        raise BalancerError(
            f"'{type(method).__name__}' weighs losses and takes no gradients. Use a gradient method such as 'cagrad'."
        )
    if generator is not None:
        method.generator = generator
    return method, call


def _kind(balancer: Any) -> type | None:
    from polytask import registry

    if isinstance(balancer, Mapping):
        balancer = balancer.get("name", "")
    found = registry.get("balancers", balancer) if isinstance(balancer, str) else type(balancer)
    return found if isinstance(found, type) and issubclass(found, Balancer) else None


@functools.cache
def _inputs_of(kind: type) -> frozenset[str]:
    """Names of what a call of the method takes."""
    called: Callable[..., Any] = getattr(kind, "aggregate", None) or kind.weigh  # type: ignore[attr-defined]
    return frozenset(inspect.signature(called).parameters)


def _check_matrix(what: str, matrix: Tensor) -> None:
    if matrix.dim() != 2 or 0 in matrix.shape:
        raise BalancerError(
            f"The {what} has shape {list(matrix.shape)}. Give a matrix with one row a task and at least one entry."
        )
    if not matrix.is_floating_point():
        raise BalancerError(f"The {what} has dtype {matrix.dtype}. Give floating-point numbers.")
    finite = matrix.isfinite().all(1)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise BalancerError(f"The {what} has numbers that are not finite in rows {rows}. Check the losses.")


def _check_gramian(gramian: Tensor) -> Tensor:
    """The symmetric part, float64 on the CPU, of a matrix that is a Gramian up to rounding."""
    _check_matrix("gramian", gramian)
    if gramian.shape[0] != gramian.shape[1]:
        raise BalancerError(f"A Gramian is square; got shape {list(gramian.shape)}. Is it a Jacobian? Use 'aggregate'.")
    matrix = gramian.detach().to("cpu", torch.float64)
    size = float(matrix.abs().max())
    # Sums of many products round to more than one unit in the last place.
    rounding = size * len(matrix) * 1e3 * torch.finfo(gramian.dtype).eps
    gap = float((matrix - matrix.T).abs().max())
    if gap > rounding:
        raise BalancerError(f"A Gramian is symmetric, but entries differ from their mirror images by up to {gap:.3g}.")
    matrix = (matrix + matrix.T) / 2
    least = float(torch.linalg.eigvalsh(matrix / size).min()) * size if size else 0.0
    if least < -rounding:
        raise BalancerError(
            f"A Gramian has no negative eigenvalue, but the smallest one is {least:.3g} (largest entry {size:.3g}). "
            "Pass J @ J.T."
        )
    return semi_definite(matrix)


def _check_losses(method: Balancer, losses: Tensor | None, count: int) -> None:
    if losses is None:
        if method.needs_losses:
            raise BalancerError(f"'{type(method).__name__}' reads the losses. Pass losses=, one number a task.")
    elif losses.shape != (count,):
        raise BalancerError(f"losses has shape {list(losses.shape)}; give one number for each of the {count} tasks.")


def check_present(losses: Mapping[str, Tensor], tasks: Sequence[str]) -> tuple[str, ...]:
    """Present tasks in the balancer's order; refuse unknown names, none at all, and losses that are no scalars."""
    if not losses:
        raise BalancerError("There is no loss. Pass a dict of task names and scalar losses.")
    for task, loss in losses.items():
        if task not in tasks:
            raise BalancerError(unknown("task", task, tasks))
        if loss.dim() != 0:
            raise BalancerError(f"The loss of '{task}' has shape {list(loss.shape)}. Give one number a task.")
        if not loss.requires_grad:
            raise BalancerError(f"The loss of '{task}' has no graph. Compute it outside of torch.no_grad.")
    return tuple(task for task in tasks if task in losses)
