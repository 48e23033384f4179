"""A transform before a method, as a balancer of one of the three kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polytask import registry
from polytask.balancing.base import Balancer, GramianWeighting, JacobianAggregator, LossWeighting, Relook
from polytask.balancing.engines.host import on_host
from polytask.balancing.engines.rows import exact_products
from polytask.errors import BalancerError

if TYPE_CHECKING:
    from polytask.balancing.transforms import Transform


def before(link: Transform, method: Balancer) -> Balancer:
    """The method with one transform before it.

    Args:
        link: The transform.
        method: A balancer of any kind.

    Returns:
        A balancer, not yet set up.

    Raises:
        BalancerError: if the transform cannot be expressed for this kind of method.
    """
    name = type(method).__name__
    if isinstance(method, LossWeighting) and method.halves:
        raise BalancerError(
            f"{type(link).__name__} cannot stand before '{name}': it tries out the losses themselves. Leave the "
            "transform out."
        )
    if isinstance(method, LossWeighting) and "losses" in link.fits:
        return ChainedLossWeighting(link, method)
    if isinstance(method, GramianWeighting) and "gramian" in link.fits and not link.jacobian_only:
        return ChainedGramianWeighting(link, method)
    if isinstance(method, GramianWeighting | JacobianAggregator) and "jacobian" in link.fits:
        if method.halves:
            raise BalancerError(
                f"{type(link).__name__} cannot stand before '{name}': it works on whole gradients, and '{name}' needs "
                "those of two halves. Leave the transform out."
            )
        return ChainedAggregator(link, method)
    what = "weighs losses and has no gradients" if isinstance(method, LossWeighting) else "has no weights"
    raise BalancerError(f"{type(link).__name__} cannot stand before '{name}': it {what}. Leave the transform out.")


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


class Chained(Balancer):
    """What the three kinds of chain share: set-up, hooks, and what they pass on of the method's nature."""

    def __init__(self, link: Transform, method: Balancer) -> None:
        super().__init__()
        self.link, self.method = link, method
        kept = {"stateful", "random"} & method.traits
        # A chain's nature is that of its links, so it belongs to the instance.
        self.traits = frozenset(kept | ({"stateful"} if link.stateful else set()))
        self.needs_losses = link.needs_losses or method.needs_losses
        self.looks_again = method.looks_again
        self.halves = method.halves
        self.own_rate = method.own_rate
        self.default_at: str = getattr(method, "default_at", "parameters")

    def setup(self, tasks: Sequence[str], kinds: Mapping[str, str] | None = None, seed: int = 0) -> None:
        """Create the state of all links for these tasks."""
        super().setup(tasks, kinds, seed)
        self.method.setup(tasks, kinds, seed)

    def build_state(self, count: int) -> None:
        """The transform's own state."""
        self.link.build(self)

    def loss_scales(self, tasks: Sequence[str]) -> Tensor | None:
        """Those of the method."""
        return self.method.loss_scales(tasks)

    def seen(self, losses: Tensor | None, tasks: Sequence[str]) -> Tensor | None:
        """The losses as the method sees them."""
        return None if losses is None else self.link.losses(losses, self, tasks)

    def _named(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tasks = list(losses)
        if not tasks:
            return {}
        seen = self.link.losses(torch.stack([losses[task] for task in tasks]), self, tasks)
        return dict(zip(tasks, seen.unbind(), strict=True))

    def after_step(self, relook: Relook) -> None:
        """The method's second look, at the losses as it sees them."""
        self.method.after_step(lambda: self._named(relook()))

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Told to all links."""
        self.link.epoch_end(losses)
        numbers = {task: torch.tensor(value, dtype=torch.float64) for task, value in losses.items()}
        self.method.epoch_end({task: float(value) for task, value in self._named(numbers).items()})


class ChainedLossWeighting(Chained, LossWeighting):
    """A transform before a loss weighting."""

    method: LossWeighting

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """Weights ``[p]`` of the losses as they came in."""
        factors = self.link.factors(None, losses, self, tasks)
        weights = self.method.weigh(self.link.losses(losses, self, tasks), tasks)
        return self.link.weights(weights if factors is None else factors * weights, self, tasks)

    def objective(self, losses: Tensor, tasks: Sequence[str]) -> Tensor | None:
        """What the method's own Parameters minimise."""
        return self.method.objective(self.link.losses(losses, self, tasks), tasks)


class ChainedGramianWeighting(Chained, GramianWeighting):
    """A transform before a Gramian weighting."""

    method: GramianWeighting

    def _factors(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor | None:
        factors = self.link.factors(gramian.diagonal(), losses, self, tasks)
        return None if factors is None else factors.to(gramian)

    def weigh(
        self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str], *, cross: Tensor | None = None
    ) -> Tensor:
        """Weights ``[p]`` of the gradients as they came in; ``cross`` goes to a method with halves."""
        factors = self._factors(gramian, losses, tasks)
        scale = torch.ones(len(tasks), dtype=gramian.dtype) if factors is None else factors
        outer = scale[:, None] * scale
        further = {} if cross is None else {"cross": outer * cross}
        weights = scale * self.method.weigh(outer * gramian, self.seen(losses, tasks), tasks, **further)
        weights = self.link.weights(weights, self, tasks)
        terms = weights.abs() @ gramian.diagonal().clamp(min=0.0).sqrt()
        found = weights @ gramian @ weights
        length = self.link.length(found, terms * terms, gramian.sum(), len(tasks))
        return weights if length is None else length * weights

    def objective(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor | None:
        """What the method's own Parameters minimise."""
        factors = self._factors(gramian, losses, tasks)
        inner = gramian if factors is None else factors[:, None] * gramian * factors
        return self.method.objective(inner, self.seen(losses, tasks), tasks)


class ChainedAggregator(Chained, JacobianAggregator):
    """A transform before a method, on whole gradients."""

    def setup(self, tasks: Sequence[str], kinds: Mapping[str, str] | None = None, seed: int = 0) -> None:
        """Create the state of all links for these tasks.

        Raises:
            BalancerError: if the method has weights to learn: an aggregator has no objective to train them by.
        """
        super().setup(tasks, kinds, seed)
        if next(self.method.parameters(), None) is not None:
            raise BalancerError(
                f"{type(self.link).__name__} cannot stand before '{type(self.method).__name__}': on whole gradients "
                "its learned weights would never be trained. Leave the transform out."
            )

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """Direction ``[n]`` from the gradients ``[p, n]`` as they came in."""
        precise = jacobian.to(torch.promote_types(jacobian.dtype, torch.float32))
        rows = self.link.gradients(precise, self, tasks)
        # Norms are squared in float64: those of small float32 gradients would underflow.
        squares = torch.linalg.vector_norm(rows, dim=1).double().square()
        factors = self.link.factors(squares, losses, self, tasks)
        inner = rows if factors is None else factors.to(rows)[:, None] * rows
        direction = self._direct(inner, self.seen(losses, tasks), tasks)
        found, plain = (torch.linalg.vector_norm(row).double().square() for row in (direction, rows.sum(0)))
        length = self.link.length(found, squares.sum(), plain, len(tasks))
        return (direction if length is None else length * direction).to(jacobian.dtype)

    def _direct(self, rows: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        method = self.method
        if isinstance(method, JacobianAggregator):
            return method.aggregate(rows, losses, tasks)
        assert isinstance(method, GramianWeighting)  # ``before`` makes no other
        return method.weigh(*on_host(exact_products(rows), losses), tasks).to(rows) @ rows
