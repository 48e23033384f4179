"""Weights that do not look at the losses: equal, given, random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor

from polytask.balancing.base import LossWeighting
from polytask.balancing.loss.common import per_task, present, working
from polytask.errors import BalancerError, unknown


class Equal(LossWeighting):
    r"""The plain sum of the losses: every weight is one.

    Total: :math:`\sum_k L_k`. Zero and negative losses count like any other. An absent task has no weight;
    the weights of the others stay one. There is no state.

    Example:
        >>> method = Equal()
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([2.0, 5.0]), ["a", "b"])
        tensor([1., 1.])

    Reference:
        The scalarisation that every other method is compared with; studied by Xin et al., "Do Current
        Multi-Task Optimization Methods in Deep Learning Even Help?", 2022.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "scale_equivariant", "identity_for_one_task"})
    needs_losses: bool = False
    fixed_weights: ClassVar[bool] = True

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """Ones, shape ``[p]``."""
        return torch.ones_like(working(losses))


class Static(LossWeighting):
    r"""The weights that you give, one a task.

    Total: :math:`\sum_k \lambda_k L_k`. Zero and negative losses count like any other. An absent task has
    no weight; the weights of the others stay as given and are not renormalised.

    Args:
        weights: Numbers from zero up: by task name, or a list in the order of the tasks.

    Raises:
        BalancerError: at ``setup``, if a task is unknown or lacks a weight, or a weight is negative, or all
            are zero.

    Example:
        >>> method = Static({"a": 1.0, "b": 0.25})
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([2.0]), ["b"])
        tensor([0.2500])

    Reference:
        Linear scalarisation; Boyd and Vandenberghe, Convex Optimization, 2004, scalarization
        of vector optimization problems.
    """

    traits: frozenset[str] = frozenset({"scale_equivariant"})
    needs_losses: bool = False
    fixed_weights: ClassVar[bool] = True
    weights: Tensor

    def __init__(self, weights: Mapping[str, float] | Sequence[float]) -> None:
        super().__init__()
        self.given = dict(weights) if isinstance(weights, Mapping) else list(weights)

    def build_state(self, count: int) -> None:
        """Check the weights against the tasks and keep them."""
        values = per_task("static weights", self.given, self.tasks)
        if bool((values < 0).any()) or not bool((values > 0).any()):
            raise BalancerError(
                f"static weights must not be negative, and one at least must be positive; got {self.given}."
            )
        self.register_buffer("weights", values)

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The given weights of ``tasks``, shape ``[p]``."""
        return present(self, self.weights, tasks, working(losses))


def _bernoulli(count: int, generator: Generator) -> Tensor:
    """Fair coins, thrown again until one at least shows heads; shares of the heads."""
    heads = torch.zeros(count, dtype=torch.float64)
    while not bool(heads.any()):
        heads = torch.randint(0, 2, (count,), generator=generator).double()
    return heads / heads.sum()


def _constrained_bernoulli(count: int, generator: Generator) -> Tensor:
    """All weight on one task, each as likely."""
    chosen = torch.randint(0, count, (1,), generator=generator)
    return torch.zeros(count, dtype=torch.float64).index_fill_(0, chosen, 1.0)


def _dirichlet(count: int, generator: Generator) -> Tensor:
    """A uniform draw from the simplex: normalised exponentials."""
    draws = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
    return draws / draws.sum()


def _normal(count: int, generator: Generator) -> Tensor:
    """Softmax of standard normals."""
    return torch.randn(count, dtype=torch.float64, generator=generator).softmax(0)


def _uniform(count: int, generator: Generator) -> Tensor:
    """Softmax of uniforms on (0, 1)."""
    return torch.rand(count, dtype=torch.float64, generator=generator).softmax(0)


DISTRIBUTIONS: dict[str, Callable[[int, Generator], Tensor]] = {
    "normal": _normal,
    "uniform": _uniform,
    "dirichlet": _dirichlet,
    "bernoulli": _bernoulli,
    "constrained_bernoulli": _constrained_bernoulli,
}


class RLW(LossWeighting):
    r"""Random loss weighting: fresh random weights in every step.

    Total: :math:`\sum_k \lambda_k L_k` with :math:`\lambda` drawn from a distribution on the simplex, so
    the weights sum to one (unlike ``equal``, whose weights sum to m: mind the learning rate). Zero and
    negative losses count like any other. With absent tasks the draw is over the present ones.

    Args:
        distribution: ``normal`` and ``uniform``: softmax of independent draws from N(0, 1) or U(0, 1).
            ``dirichlet``: uniform on the simplex. ``bernoulli``: equal shares of a random non-empty set.
            ``constrained_bernoulli``: one random task takes all.

    Raises:
        BalancerError: for an unknown distribution.

    Example:
        >>> method = RLW()
        >>> method.setup(["a", "b"], seed=1)
        >>> round(float(method.weigh(torch.tensor([2.0, 5.0]), ["a", "b"]).sum()), 6)
        1.0

    Reference:
        Lin, Ye, Zhang and Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for
        Multi-Task Learning", TMLR 2022 (arXiv 2111.10603), section on random loss weighting.
    """

    traits: frozenset[str] = frozenset({"random", "scale_equivariant", "identity_for_one_task"})
    needs_losses: bool = False

    def __init__(self, distribution: str = "normal") -> None:
        super().__init__()
        if distribution not in DISTRIBUTIONS:
            raise BalancerError(f"rlw: {unknown('distribution', distribution, DISTRIBUTIONS)}")
        self.distribution = distribution

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """A fresh draw for the present tasks, shape ``[p]``."""
        return DISTRIBUTIONS[self.distribution](len(tasks), self.generator).to(working(losses))
