"""TorchJD's aggregators, weightings and scalarizers as polytask balancers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.base import Balancer, GramianWeighting, JacobianAggregator, LossWeighting
from polytask.errors import BalancerError


class TorchJDGramian(GramianWeighting):
    """A TorchJD weighting that reads the Gramian.

    Args:
        weighting: Maps a Gramian ``[p, p]`` to weights ``[p]``.
    """

    def __init__(self, weighting: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weighting = weighting

    def weigh(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """The weights that TorchJD gives, in float64."""
        return self.weighting(gramian).detach().to(torch.float64)


class TorchJDAggregator(JacobianAggregator):
    """A TorchJD aggregator that reads the whole Jacobian.

    Args:
        aggregator: Maps a Jacobian ``[p, n]`` to a direction ``[n]``.
    """

    def __init__(self, aggregator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.aggregator = aggregator

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """The direction that TorchJD gives."""
        return self.aggregator(jacobian).detach()


class TorchJDLosses(LossWeighting):
    """A TorchJD scalarizer: the weights are the derivatives of its scalar.

    Args:
        scalarizer: Maps losses ``[p]`` to a scalar.
    """

    def __init__(self, scalarizer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scalarizer = scalarizer

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The derivative of the scalar with respect to every loss."""
        with torch.enable_grad():
            leaves = losses.detach().requires_grad_()
            (weights,) = torch.autograd.grad(self.scalarizer(leaves), leaves)
        return weights

    def objective(self, losses: Tensor, tasks: Sequence[str]) -> Tensor | None:
        """The scalar itself, where the scalarizer learns parameters."""
        return self.scalarizer(losses) if any(True for _ in self.parameters()) else None


def from_torchjd(thing: Any) -> Balancer:
    """A TorchJD ``Aggregator``, ``Weighting`` or ``Scalarizer`` as a balancer.

    An aggregator that is defined through the Gramian is run on the Gramian: the Jacobian is not needed then.
    Random TorchJD methods draw from PyTorch's global generator.

    Args:
        thing: The TorchJD object.

    Returns:
        The balancer, not set up yet.

    Raises:
        BalancerError: for another TorchJD object.
    """
    from torchjd import aggregation, scalarization

    if isinstance(thing, aggregation.GramianWeightedAggregator):
        return TorchJDGramian(thing.gramian_weighting)
    if isinstance(thing, aggregation.Aggregator):
        return TorchJDAggregator(thing)
    if isinstance(thing, aggregation.Weighting):
        return TorchJDGramian(thing)
    if isinstance(thing, scalarization.Scalarizer):
        return TorchJDLosses(thing)
    raise BalancerError(
        f"'{type(thing).__name__}' of TorchJD is no Aggregator, Weighting or Scalarizer. Pass one of these."
    )
