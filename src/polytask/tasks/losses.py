"""Per-example losses: raw outputs and labelled targets in, one loss a row out.

They are small values, not closures: two tasks with the same options have equal losses. All compute in
float32 at least, whatever the precision of the raw outputs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def upcast(raw: Tensor) -> Tensor:
    """Half-precision outputs as float32; others as they are."""
    return raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw


@functools.lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    # Kept on the device, so that a step does not wait for a copy. A tensor made in inference mode could
    # not be used by a later backward.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers as a tensor of the device and type of another."""
    return _constant(values, like.device, like.dtype)


def _labelled_mean(losses: Tensor, known: Tensor) -> Tensor:
    """Mean over a row's known entries, ``[rows]``; a row without any gets 0."""
    return (losses * known).sum(-1) / known.sum(-1).clamp_min(1)


def _focus(probability_of_other: Tensor, gamma: float) -> Tensor:
    # The smallest positive number keeps the slope of x ** gamma finite at x = 0 for gamma below 1.
    return probability_of_other.clamp_min(torch.finfo(probability_of_other.dtype).tiny).pow(gamma)


def logistic(raw: Tensor, target: Tensor, negative: float, positive: Tensor | float, gamma: float | None) -> Tensor:
    r"""Weighted, optionally focal cross-entropy of logits, entry by entry.

    With :math:`p = \sigma(z)`: :math:`-w_1 t (1-p)^\gamma \log p - w_0 (1-t) p^\gamma \log(1-p)`.

    Args:
        raw: Logits z, any shape.
        target: Probabilities t, the same shape.
        negative: Weight :math:`w_0`.
        positive: Weight :math:`w_1`.
        gamma: The focal exponent, or None for plain cross-entropy.

    Returns:
        Losses, the same shape.
    """
    if not gamma:
        return _plain_logistic(raw, target, negative, positive, "none")
    of_one, of_zero = functional.logsigmoid(raw), functional.logsigmoid(-raw)
    of_one, of_zero = _focus(of_zero.exp(), gamma) * of_one, _focus(of_one.exp(), gamma) * of_zero
    return -(positive * target * of_one + negative * (1 - target) * of_zero)


def _plain_logistic(raw: Tensor, target: Tensor, negative: float, positive: Tensor | float, reduction: str) -> Tensor:
    # One fused kernel in place of a dozen small ones, which a step of a small model would feel.
    ratio = positive / negative
    weight = ratio if isinstance(ratio, Tensor) else None if ratio == 1 else constant((ratio,), raw)
    losses = functional.binary_cross_entropy_with_logits(raw, target, pos_weight=weight, reduction=reduction)
    return losses if negative == 1 else negative * losses


@dataclass(frozen=True)
class BinaryLoss:
    """Cross-entropy of one logit against 0, 1 or a probability.

    Args:
        weights: Of negative and positive rows.
        smoothing: How much of the target is replaced by one half.
        gamma: Focal exponent, or None.

    Example:
        >>> BinaryLoss()(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.6931, 0.6931])

    Reference:
        Focal loss: Lin et al., Focal loss for dense object detection (2017), equation 4.
    """

    weights: tuple[float, float] = (1.0, 1.0)
    smoothing: float = 0.0
    gamma: float | None = None

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of logits ``[rows]`` and targets ``[rows]``."""
        raw = upcast(raw)
        target = target.to(raw.dtype)
        if self.smoothing:
            target = target * (1 - self.smoothing) + self.smoothing / 2
        return logistic(raw, target, *self.weights, self.gamma)

    def mean(self, raw: Tensor, target: Tensor) -> Tensor:
        """The mean over rows, a scalar: one kernel and one node of the graph where that can be."""
        if self.gamma or self.smoothing:
            return self(raw, target).mean()
        raw = upcast(raw)
        return _plain_logistic(raw, target.to(raw.dtype), *self.weights, "mean")


@dataclass(frozen=True)
class MulticlassLoss:
    r"""Cross-entropy of class logits against class numbers or distributions.

    With :math:`p` the softmax and :math:`q` the (smoothed) target:
    :math:`-\sum_c w_c q_c (1-p_c)^\gamma \log p_c`.

    Args:
        weights: Of the classes, or None for ones.
        smoothing: How much of the target is spread evenly over all classes.
        gamma: Focal exponent, or None.

    Example:
        >>> MulticlassLoss()(torch.zeros(1, 4), torch.tensor([2]))
        tensor([1.3863])
    """

    weights: tuple[float, ...] | None = None
    smoothing: float = 0.0
    gamma: float | None = None

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of logits ``[rows, k]`` and targets ``[rows]`` (class) or ``[rows, k]`` (distribution)."""
        raw = upcast(raw)
        if self._plain(target):
            weights = None if self.weights is None else constant(self.weights, raw)
            return functional.cross_entropy(raw, target.long(), weights, reduction="none")
        terms = -raw.log_softmax(-1)
        if self.gamma:
            terms = _focus(-torch.expm1(-terms), self.gamma) * terms
        if self.weights is not None:
            terms = terms * constant(self.weights, terms)
        if target.is_floating_point():
            own = (terms * target.to(terms.dtype)).sum(-1)
        else:
            own = terms.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)
        return own if self.smoothing == 0 else (1 - self.smoothing) * own + self.smoothing * terms.mean(-1)

    def _plain(self, target: Tensor) -> bool:
        return not self.gamma and not self.smoothing and not target.is_floating_point()

    def mean(self, raw: Tensor, target: Tensor) -> Tensor:
        """The mean over rows, a scalar: one kernel and one node of the graph where that can be."""
        # With class weights PyTorch's mean divides by their sum, not by the rows.
        if self.weights is None and self._plain(target):
            return functional.cross_entropy(upcast(raw), target.long())
        return self(raw, target).mean()


@dataclass(frozen=True)
class MultilabelLoss:
    """Mean over a row's labelled entries of the cross-entropy of their logits; NaN entries do not count.

    Args:
        weights: Of the positive entries of each label, or None for ones.
        gamma: Focal exponent, or None.

    Example:
        >>> MultilabelLoss()(torch.zeros(1, 2), torch.tensor([[1.0, float("nan")]]))
        tensor([0.6931])
    """

    weights: tuple[float, ...] | None = None
    gamma: float | None = None

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of logits ``[rows, k]`` and targets ``[rows, k]``."""
        raw = upcast(raw)
        known = ~target.isnan()
        # NaN is replaced in the target, before the loss: masking the loss alone would leave NaN gradients.
        filled = target.to(raw.dtype).masked_fill(~known, 0.0)
        positive = 1.0 if self.weights is None else constant(self.weights, raw)
        return _labelled_mean(logistic(raw, filled, 1.0, positive, self.gamma), known)


@dataclass(frozen=True)
class RegressionLoss:
    """Distance of values in the target's unit, divided by its deviation so that it is of order 1.

    Args:
        form: ``"mse"``, ``"mae"`` or ``"huber"``.
        delta: Where Huber's loss turns linear, in deviations.
        scale: The target's deviation, one number or one for each dimension.

    Example:
        >>> RegressionLoss("mse", scale=(10.0,))(torch.tensor([5.0]), torch.tensor([25.0]))
        tensor([4.])
    """

    form: str = "mse"
    delta: float = 1.0
    scale: tuple[float, ...] = (1.0,)

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of values and targets ``[rows]`` or ``[rows, d]`` (mean over known dimensions)."""
        raw = upcast(raw)
        target = target.to(raw.dtype)
        known = ~target.isnan()
        scale: Tensor | float = self.scale[0] if len(self.scale) == 1 else constant(self.scale, raw)
        # An unknown entry takes the constant 0 as its distance, so that no gradient reaches it.
        distance = ((raw - target.masked_fill(~known, 0.0)) / scale).masked_fill(~known, 0.0)
        if self.form == "mse":
            losses = distance.square()
        elif self.form == "mae":
            losses = distance.abs()
        else:
            losses = functional.huber_loss(distance, torch.zeros_like(distance), reduction="none", delta=self.delta)
        return losses if losses.dim() == 1 else _labelled_mean(losses, known)


@dataclass(frozen=True)
class PoissonLoss:
    r"""Negative log-likelihood of a count, :math:`e^z - yz + \log y!`.

    The last term does not move the gradient, but with it the loss is a likelihood and never negative,
    which balancers that take logarithms of losses need.

    Example:
        >>> PoissonLoss()(torch.zeros(1), torch.tensor([0.0]))
        tensor([1.])
    """

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of log-rates ``[rows]`` and counts ``[rows]``."""
        raw = upcast(raw)
        target = target.to(raw.dtype)
        return raw.exp() - target * raw + torch.lgamma(target + 1)


def cumulative_logits(raw: Tensor) -> Tensor:
    r"""Ordered cumulative logits: :math:`c_0 = r_0`, :math:`c_j = c_{j-1} - \mathrm{softplus}(r_j)`.

    Args:
        raw: Free numbers, ``[rows, k - 1]``.

    Returns:
        :math:`c_j`, the logit of "the class is above j", falling along the row, ``[rows, k - 1]``.
    """
    return torch.cat([raw[..., :1], -functional.softplus(raw[..., 1:])], -1).cumsum(-1)


def ordinal_log_probabilities(raw: Tensor) -> Tensor:
    r"""Log-probabilities of ordered classes under the cumulative logit model.

    :math:`P(y = j) = \sigma(c_{j-1}) - \sigma(c_j)`. Because :math:`c_{j-1} - c_j = \mathrm{softplus}(r_j)`, it is
    the product :math:`\sigma(c_{j-1})\, \sigma(-c_j)\, \sigma(r_j)`, which loses no digits.

    Args:
        raw: ``[rows, k - 1]``.

    Returns:
        ``[rows, k]``.
    """
    logits = cumulative_logits(raw)
    zero = torch.zeros_like(raw[..., :1])
    above = torch.cat([zero, functional.logsigmoid(logits)], -1)
    below = torch.cat([functional.logsigmoid(-logits), zero], -1)
    between = torch.cat([zero, functional.logsigmoid(raw[..., 1:]), zero], -1)
    return above + below + between


@dataclass(frozen=True)
class OrdinalLoss:
    """Negative log-likelihood of an ordered class under the cumulative logit model.

    Example:
        >>> OrdinalLoss()(torch.zeros(1, 1), torch.tensor([1]))
        tensor([0.6931])

    Reference:
        McCullagh, Regression models for ordinal data (1980), the cumulative logit link. Here each row has
        thresholds of its own (Williams, Generalized ordered logit, 2006), kept in order.
    """

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of raw outputs ``[rows, k - 1]`` and class numbers ``[rows]``."""
        found = ordinal_log_probabilities(upcast(raw))
        return -found.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)
