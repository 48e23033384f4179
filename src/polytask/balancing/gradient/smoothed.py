"""CR-MOGM: the weights of another method, smoothed over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.balancing.base import Balancer, GramianWeighting
from polytask.balancing.gradient.checks import check_share
from polytask.balancing.loss.common import present, store
from polytask.errors import BalancerError


class TaskAverage(nn.Module):
    """A running average of one number a task, which starts at the first number.

    Args:
        count: Number of tasks.
        keep: Share of the old average, in [0, 1].

    Attributes:
        values: Shape ``[m]``, float32.
        seen: Which tasks have an average, bool ``[m]``.
    """

    values: Tensor
    seen: Tensor

    def __init__(self, count: int, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.register_buffer("values", torch.zeros(count))
        self.register_buffer("seen", torch.zeros(count, dtype=torch.bool))

    def update(self, owner: Balancer, tasks: Sequence[str], values: Tensor) -> Tensor:
        """Averages of the present tasks ``[p]`` with their new ``values`` ``[p]``; the others stay."""
        seen = present(owner, self.seen, tasks, torch.empty(0, dtype=torch.bool, device=values.device))
        old = present(owner, self.values, tasks, values)
        averages = torch.where(seen, self.keep * old + (1.0 - self.keep) * values, values)
        store(owner, self.values, tasks, averages)
        store(owner, self.seen, tasks, torch.ones_like(seen))
        return averages


def inner_method(name: str, inner: str | Mapping[str, Any] | Balancer) -> Balancer:
    """The balancer that a key, a mapping with a ``name`` and options, or an instance stands for.

    Raises:
        BalancerError: for a mapping without a name, or something else.
        RecipeError: for an unknown name or option.
    """
    if isinstance(inner, Balancer):
        return inner
    settings = {"name": inner} if isinstance(inner, str) else dict(inner) if isinstance(inner, Mapping) else {}
    if "name" not in settings:
        raise BalancerError(
            f"{name}: the inner method is a name, a mapping with a 'name', or a balancer; got {inner!r}."
        )
    made = registry.build("balancers", settings.pop("name"), settings)
    if not isinstance(made, Balancer):
        raise BalancerError(f"{name}: the inner method must be a balancer; got {type(made).__name__}.")
    return made


class CRMOGM(GramianWeighting):
    r"""Weights of another method, averaged over the steps so that noise does not turn them about.

    .. math:: \lambda_t = \alpha \lambda_{t-1} + (1 - \alpha) \hat\lambda_t

    with the inner method's weights :math:`\hat\lambda_t` and :math:`\lambda_1 = \hat\lambda_1`. Absent tasks
    keep their average; a task's first step gives it the inner weight. What zero gradients, a single task and
    the scale do is the inner method's affair.

    Args:
        inner: A Gramian weighting: its key, a mapping with ``name`` and options, or an instance.
        alpha: Share of the old weights, in [0, 1].

    Raises:
        BalancerError: for an ``alpha`` outside [0, 1] or an inner method of another kind.

    Example:
        >>> method = CRMOGM("mgda", alpha=0.5)
        >>> method.setup(["a", "b"])
        >>> gramian = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> method.weigh(gramian, None, ["a", "b"]), method.weigh(gramian.flip(0, 1), None, ["a", "b"])
        (tensor([0.7500, 0.2500], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))

    Reference:
        Zhou et al. 2022, "On the convergence of stochastic multi-objective gradient manipulation and beyond",
        algorithm 1.
    """

    traits: ClassVar[frozenset[str]] = frozenset({"stateful"})

    def __init__(self, inner: str | Mapping[str, Any] | GramianWeighting = "mgda", alpha: float = 0.9) -> None:
        super().__init__()
        made = inner_method("CRMOGM", inner)
        if not isinstance(made, GramianWeighting):
            raise BalancerError(
                f"CRMOGM smooths weights that come from a Gramian; '{type(made).__name__}' is another kind of method. "
                "Use one such as 'mgda' or 'cagrad'."
            )
        self.inner = made
        self.needs_losses = made.needs_losses  # type: ignore[misc] # what the inner method needs is needed here
        self.alpha = check_share("CRMOGM", "alpha", alpha)

    def setup(self, tasks: Sequence[str], kinds: Mapping[str, str] | None = None, seed: int = 0) -> None:
        """Create the state for these tasks, the inner method's as well."""
        super().setup(tasks, kinds, seed)
        self.inner.setup(tasks, kinds, seed)

    def build_state(self, count: int) -> None:
        """No averages yet."""
        self.average = TaskAverage(count, self.alpha)

    def weigh(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """Smoothed weights ``[p]``; renews the averages."""
        return self.average.update(self, tasks, self.inner.weigh(gramian, losses, tasks))

    def objective(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor | None:
        """What the inner method's own Parameters minimise."""
        return self.inner.objective(gramian, losses, tasks)

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Told to the inner method."""
        self.inner.epoch_end(losses)
