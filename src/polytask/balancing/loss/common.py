"""What several loss weightings need: entries of the state, safe logarithms, the forms of Kendall's likelihoods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing.base import Balancer, LossWeighting
from polytask.errors import BalancerError, unknown

EXPONENT_LIMIT = 60.0
"""Learned logarithms of weights are held within this bound. exp(60) is about 1e26, so a task whose loss
stays exactly zero cannot overflow float32; losses from 1e-26 to 1e26 never meet the bound."""

FORMS = {"regression": 0.5, "classification": 1.0}
"""Factor of exp(-s) L for each form of a likelihood."""


def working(losses: Tensor) -> Tensor:
    """Detached losses in the precision that weights are computed in: float32, or float64 if they are."""
    return losses.detach().to(torch.promote_types(losses.dtype, torch.float32))


def bounded(parameter: Tensor, highest: float = EXPONENT_LIMIT) -> Tensor:
    """Hold a learned logarithm between -60 and ``highest`` from here on; returns it detached."""
    return parameter.detach().clamp_(-EXPONENT_LIMIT, highest)


def present(balancer: Balancer, state: Tensor, tasks: Sequence[str], like: Tensor) -> Tensor:
    """The entries of ``state`` for ``tasks``, in the precision and on the device of ``like``."""
    if tuple(tasks) == balancer.tasks:
        return state.to(like)
    return state[balancer.index(tasks).to(state.device, torch.int64)].to(like)


def store(balancer: Balancer, state: Tensor, tasks: Sequence[str], values: Tensor) -> None:
    """Write ``values`` into the entries of ``state`` for ``tasks``; the others stay."""
    with torch.no_grad():
        if tuple(tasks) == balancer.tasks:
            state.copy_(values)
            return
        # An empty list of tasks has no integer type of its own.
        state[balancer.index(tasks).to(state.device, torch.int64)] = values.to(state)


def scattered(balancer: Balancer, values: Tensor, tasks: Sequence[str]) -> Tensor:
    """``values`` of ``tasks`` in the order of the state, zero for the others."""
    if tuple(tasks) == balancer.tasks:
        return values
    full = values.new_zeros(len(balancer.tasks))
    store(balancer, full, tasks, values)
    return full


def safe_log(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the positive entries (zero elsewhere), and which entries are positive."""
    positive = losses > 0
    return torch.where(positive, losses, 1.0).log(), positive


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the entries in ``mask``; zero for the others, and for all if there are none."""
    return torch.where(mask, logits, torch.finfo(logits.dtype).min).softmax(0) * mask


def per_task(what: str, given: Mapping[str, float] | Sequence[float], tasks: Sequence[str]) -> Tensor:
    """A number for every task, from a mapping by name or a list in the order of ``tasks``; float32 ``[m]``.

    Raises:
        BalancerError: if a task is unknown or lacks a number, or the list has another length.
    """
    if isinstance(given, Mapping):
        for name in given:
            if name not in tasks:
                raise BalancerError(f"{what}: {unknown('task', name, tasks)}")
        missing = [task for task in tasks if task not in given]
        if missing:
            raise BalancerError(f"{what}: no number for {missing}. Give one for every task: {list(tasks)}.")
        numbers = [float(given[task]) for task in tasks]
    else:
        numbers = [float(number) for number in given]
        if len(numbers) != len(tasks):
            raise BalancerError(f"{what}: {len(numbers)} numbers for {len(tasks)} tasks. Give one for every task.")
    values = torch.tensor(numbers, dtype=torch.float32)
    if not bool(values.isfinite().all()):
        raise BalancerError(f"{what}: every number must be finite; got {numbers}.")
    return values


def check_positive(what: str, value: float) -> float:
    """``value`` if it is positive and finite.

    Raises:
        BalancerError: if not.
    """
    if not 0.0 < value < float("inf"):
        raise BalancerError(f"{what} must be positive and finite; got {value}.")
    return float(value)


def form_factors(tasks: Sequence[str], kinds: Mapping[str, str], forms: Mapping[str, str] | str | None) -> Tensor:
    """The factor of exp(-s) L for every task: 1/2 for the regression form, 1 for the classification form.

    Tasks of kind ``regression`` take the regression form. All others take the classification form, counts
    among them: their losses are negative log-likelihoods that exp(-s) tempers. So do tasks of no known kind.

    Raises:
        BalancerError: for a task or a form that does not exist.
    """
    chosen = dict.fromkeys(tasks, forms) if isinstance(forms, str) else dict(forms or {})
    for task, form in chosen.items():
        if task not in tasks:
            raise BalancerError(f"forms: {unknown('task', task, tasks)}")
        if form not in FORMS:
            raise BalancerError(f"forms: {unknown('form', form, FORMS)}")
    default = {task: "regression" if kinds.get(task) == "regression" else "classification" for task in tasks}
    return torch.tensor([FORMS[chosen.get(task, default[task])] for task in tasks])


def refuse_below(method: str, task: str, value: float, bound: float = 0.0) -> None:
    """Raise a BalancerError for an epoch's average loss below what the method is defined for."""
    if value < bound:
        raise BalancerError(
            f"{method} needs losses of at least {bound:g}; the loss of '{task}' was {value:g} on average over the "
            "epoch. Add a constant to that loss, or use a weighting that takes negative losses, such as 'equal', "
            "'static' or 'rlw'."
        )


class NonNegativeWeighting(LossWeighting):
    """A weighting that is defined for losses from zero up.

    Within a step a negative loss is treated as a zero one, because looking at it would cost a transfer from
    the device. A negative average over an epoch is an error.
    """

    def lower_bound(self, task: str) -> float:
        """The least value that the loss of ``task`` may have."""
        return 0.0

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Refuse to go on with losses that the method is not defined for.

        Raises:
            BalancerError: if a task's average loss lies below its lower bound.
        """
        for task, value in losses.items():
            refuse_below(type(self).__name__, task, value, self.lower_bound(task))
