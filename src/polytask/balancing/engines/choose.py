"""The engine that runs a balancer: which one, where, and how often."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from polytask.balancing.base import Balancer, GramianWeighting, JacobianAggregator, LossWeighting
from polytask.balancing.engines.core import ACCUMULATES, PLACES, RESCALES, BaseEngine, Options
from polytask.balancing.engines.features import FeatureEngine
from polytask.balancing.engines.losses import LossEngine
from polytask.balancing.engines.parameters import parameter_engine
from polytask.balancing.engines.parts import PartEngine
from polytask.balancing.engines.sharded import refuse_sharded
from polytask.balancing.types import Engine, Parameters, Reduce
from polytask.errors import BalancerError, unknown


def engine(
    balancer: Balancer,
    parameters: Parameters,
    *,
    at: str | None = None,
    every: int = 1,
    rescale_to: str = "none",
    accumulate: str = "exact",
    optimizer: Mapping[str, Any] | None = None,
    reduce: Reduce | None = None,
    features_ok: bool = True,
    why_not: str = "the model has no common features",
    memory_budget: int = 2**30,
) -> Engine:
    """An engine that fills ``.grad`` the way ``balancer`` asks for.

    Args:
        balancer: A method that is set up for its tasks.
        parameters: Which parameters are shared, and which belong to one task; a model is one.
        at: Where a gradient method takes its gradients. ``parameters``: the shared parameters, as the papers
            define it. ``last``: those of the last shared layer only. ``features``: the features where shared
            computation ends. The directions differ. None: what the method prefers, else ``parameters``.
        every: Renew the weights every so many steps; in between, the Gramian is not formed.
        rescale_to: ``mean`` or ``sum``: scale every update to the norm of the mean (sum) of the gradients at the
            place where they are taken, so that methods can be exchanged at one learning rate.
        accumulate: ``exact``: several micro-batches give what one large batch would. ``micro``: every
            micro-batch is solved by itself.
        optimizer: Of a method's learned weights: ``name`` (adam, adamw, sgd, rmsprop) and its options. Adam with
            the method's own rate (0.025 for most) and no weight decay if it is None.
        reduce: Sums a tensor over processes; None on one process.
        features_ok: Whether the model has features for ``at="features"``.
        why_not: Why it has none, for the error.
        memory_budget: Bytes that the shared parameters' Jacobian may take; above, it is formed in parts.

    Returns:
        The engine.

    Raises:
        BalancerError: for a combination that cannot work; the message says what can.

    Example:
        >>> from polytask.balancing.making import build
        >>> from torch import nn
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk, self.heads = nn.Linear(3, 2), nn.ModuleDict({"a": nn.Linear(2, 1)})
        ...     def shared_parameters(self):
        ...         return list(self.trunk.parameters())
        ...     def task_parameters(self, task):
        ...         return list(self.heads[task].parameters())
        >>> engine(build("mgda", tasks=["a"]), Model()).describe()
        'Balancing: MGDA, gradients of the shared parameters (at: parameters).'
    """
    if not balancer.tasks:
        raise BalancerError("The balancer knows no tasks yet. Call balancer.setup(tasks), or make it with 'build'.")
    _check_word("rescale_to", rescale_to, RESCALES)
    _check_word("accumulate", accumulate, ACCUMULATES)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise BalancerError(f"every must be a whole number of at least 1; got {every!r}.")
    if balancer.halves:
        _check_halves(
            balancer, at if at is not None else str(getattr(balancer, "default_at", "parameters")), accumulate
        )
    if isinstance(balancer, LossWeighting):
        _check_loss_weighting(balancer, at, rescale_to)
        plain = Options(None, every, "none", accumulate, reduce, memory_budget, features_ok)
        return LossEngine(balancer, parameters, plain, optimizer)
    place = at if at is not None else str(getattr(balancer, "default_at", "parameters"))
    _check_word("at", place, PLACES)
    options = Options(place, every, rescale_to, accumulate, reduce, memory_budget, features_ok)
    if place == "features" and not features_ok:
        raise BalancerError(f"at: features does not work here: {why_not}. Use at: parameters.")
    if isinstance(balancer, JacobianAggregator):
        _check_aggregator(balancer, options)
    made = _gradient_engine(balancer, parameters, options, optimizer)
    if not made.shared:
        raise BalancerError(
            f"'{type(balancer).__name__}' balances gradients of shared parameters, but the tasks share none that is "
            "trained. Use a loss weighting such as 'equal', or a sharing with a common trunk."
        )
    return made


def _gradient_engine(
    balancer: Balancer, parameters: Parameters, options: Options, optimizer: Mapping[str, Any] | None
) -> BaseEngine:
    if not isinstance(balancer, GramianWeighting | JacobianAggregator):
        raise BalancerError(
            f"'{type(balancer).__name__}' is none of the three kinds of balancer. Derive it from LossWeighting, "
            "GramianWeighting or JacobianAggregator."
        )
    refuse_sharded(type(balancer).__name__, parameters.shared_parameters(), parameters)
    makers: dict[str, Callable[..., BaseEngine]] = {
        "features": FeatureEngine,
        "last": PartEngine,
        "parameters": parameter_engine,
    }
    return makers[str(options.at)](balancer, parameters, options, optimizer)


def _check_halves(balancer: Balancer, place: str, accumulate: str) -> None:
    name = type(balancer).__name__
    if isinstance(balancer, JacobianAggregator):
        raise BalancerError(
            f"'{name}' asks for two halves of the rows, which an aggregator is not given. Derive it from "
            "GramianWeighting."
        )
    if place == "features":
        raise BalancerError(
            f"'{name}' compares the gradients of two halves of the rows, but the features of different rows are "
            "different numbers: their products are zero. Use at: parameters or at: last."
        )
    if accumulate == "micro":
        raise BalancerError(
            f"'{name}' needs two halves of the whole step, which accumulate: micro never sees together. Use "
            "accumulate: exact."
        )


def _check_word(option: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BalancerError(unknown(f"value of '{option}':", str(value), choices))


def _check_loss_weighting(balancer: LossWeighting, at: str | None, rescale_to: str) -> None:
    name = type(balancer).__name__
    if at is not None:
        raise BalancerError(
            f"'{name}' weighs losses and takes no gradients apart, so 'at' means nothing. Leave it out."
        )
    if rescale_to != "none":
        raise BalancerError(
            f"'{name}' weighs losses: without a gradient for every task the norm that rescale_to: {rescale_to} needs "
            "is unknown. Leave it out, or use a gradient method."
        )


def _check_aggregator(balancer: JacobianAggregator, options: Options) -> None:
    name = type(balancer).__name__
    if options.every > 1:
        raise BalancerError(f"'{name}' makes a direction, not weights that could be reused. Use every: 1.")
    if options.at == "last":
        raise BalancerError(f"'{name}' needs the whole gradients, so at: last is not defined. Use at: parameters.")
    if options.at == "features" and ("stateful" in balancer.traits or options.reduce is not None):
        why = "keeps a state between steps, but" if options.reduce is None else "would need all rows in one place, but"
        raise BalancerError(f"'{name}' {why} features differ from batch to batch. Use at: parameters.")
    if options.at == "features" and options.rescale_to != "none":
        raise BalancerError(f"'{name}' at the features cannot be rescaled. Use at: parameters.")
