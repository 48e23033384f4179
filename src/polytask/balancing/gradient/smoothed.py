"""CR-MOGM: the weights of another method, smoothed over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polytask.balancing.base import GramianWeighting
from polytask.balancing.chained import ChainedGramianWeighting, inner_method
from polytask.balancing.gradient.checks import check_share
from polytask.balancing.transforms import EmaWeights
from polytask.errors import BalancerError


class CRMOGM(ChainedGramianWeighting):
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
        >>> import torch
        >>> method = CRMOGM("mgda", alpha=0.5)
        >>> method.setup(["a", "b"])
        >>> gramian = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> method.weigh(gramian, None, ["a", "b"]), method.weigh(gramian.flip(0, 1), None, ["a", "b"])
        (tensor([0.7500, 0.2500], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))

    Reference:
        Zhou et al. 2022, "On the convergence of stochastic multi-objective gradient manipulation and beyond",
        the CR-MOGM algorithm.
    """

    traits: frozenset[str] = frozenset({"stateful"})

    def __init__(self, inner: str | Mapping[str, Any] | GramianWeighting = "mgda", alpha: float = 0.9) -> None:
        made = inner_method("CRMOGM", inner)
        if not isinstance(made, GramianWeighting):
            raise BalancerError(
                f"CRMOGM smooths weights that come from a Gramian; '{type(made).__name__}' is another kind of method. "
                "Use one such as 'mgda' or 'cagrad'."
            )
        super().__init__(EmaWeights(check_share("CRMOGM", "alpha", alpha)), made)
