"""Losses of tasks with a label at every pixel: a row's loss is the sum over its labelled pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from polytask.errors import ShapeError
from polytask.tasks.losses import constant, upcast


def labelled_pixels(targets: Tensor) -> Tensor:
    """How many pixels of each row have a label, ``[rows]``.

    Example:
        >>> labelled_pixels(torch.tensor([[[0, -1], [2, 1]]]))
        tensor([3])
    """
    known = ~targets.isnan() if targets.is_floating_point() else targets >= 0
    return known.flatten(1).sum(1)


def _check_sizes(raw: Tensor, target: Tensor) -> None:
    if raw.shape[-2:] != target.shape[-2:]:
        raise ShapeError(
            f"The head gives maps of {list(raw.shape[-2:])} pixels but the targets have {list(target.shape[-2:])}. "
            "Set the task's size to the height and width of its targets."
        )


@dataclass(frozen=True)
class SegmentationLoss:
    r"""Cross-entropy over labelled pixels, and optionally Dice losses of the classes that an image shows.

    With p the softmax at a pixel and q the (smoothed) target, a pixel's loss is :math:`-\sum_c w_c q_c \log p_c`. The
    Dice loss of class c is :math:`1 - 2 \sum p_c t_c / (\sum p_c + \sum t_c)` over an image's labelled pixels; its
    mean over the classes in the image counts ``dice`` times as much as the mean cross-entropy.

    Args:
        weights: Of the classes, or None for ones.
        smoothing: How much of the target is spread evenly over all classes.
        dice: Weight of the Dice loss.

    Example:
        >>> SegmentationLoss()(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, -1]]]))
        tensor([1.3863])

    Reference:
        Dice loss: Milletari, Navab and Ahmadi, V-Net (2016), section 3. There the denominator has squares; here it
        has the plain sums.
    """

    weights: tuple[float, ...] | None = None
    smoothing: float = 0.0
    dice: float = 0.0

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of logits ``[rows, k, H, W]`` and class numbers ``[rows, H, W]``, negative unlabelled."""
        _check_sizes(raw, target)
        log_p, target = upcast(raw).log_softmax(1), target.long()
        known = target >= 0
        safe = target.clamp_min(0)
        own = log_p.gather(1, safe.unsqueeze(1)).squeeze(1)
        weights = None if self.weights is None else constant(self.weights, log_p)
        losses = own if weights is None else own * weights[safe]
        if self.smoothing:
            spread = log_p.mean(1) if weights is None else torch.einsum("nchw,c->nhw", log_p, weights) / len(weights)
            losses = (1 - self.smoothing) * losses + self.smoothing * spread
        total = -(losses * known).flatten(1).sum(1)
        if self.dice:
            # Times the pixels, because the step divides by them.
            total = total + self.dice * known.flatten(1).sum(1) * _dice(log_p.exp(), safe, known)
        return total


def _dice(p: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean Dice loss over the classes that an image shows, ``[rows]``."""
    true = functional.one_hot(target, p.shape[1]).movedim(-1, 1).to(p.dtype) * known.unsqueeze(1)
    p, true = (p * known.unsqueeze(1)).flatten(2), true.flatten(2)
    of_class = true.sum(2)
    shown = of_class > 0
    losses = 1 - 2 * (p * true).sum(2) / (p.sum(2) + of_class).clamp_min(1e-12)
    return (losses * shown).sum(1) / shown.sum(1).clamp_min(1)


@dataclass(frozen=True)
class MapLoss:
    r"""Loss of a number at every pixel.

    With the error e in units of the training deviation: ``"mse"`` :math:`e^2`, ``"mae"`` :math:`|e|`, ``"berhu"``
    :math:`|e|` up to :math:`\delta` and :math:`(e^2 + \delta^2) / 2\delta` beyond it. ``"log"`` is the absolute error
    of logarithms; the raw outputs are logarithms then.

    Args:
        form: One of the four.
        delta: Where berHu turns quadratic, in deviations.
        deviation: Of the training targets (of their logarithms for ``"log"``).

    Example:
        >>> MapLoss("mae")(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[3.0, float("nan")]]]))
        tensor([2.])

    Reference:
        BerHu: Laina et al., Deeper depth prediction with fully convolutional residual networks (2016), section 3.2.
        There the threshold is a fifth of a batch's largest error; here it is fixed, so that a row's loss does not
        depend on the rows beside it.
    """

    form: str
    delta: float = 0.2
    deviation: float = 1.0

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of raw outputs ``[rows, 1, H, W]`` and targets ``[rows, H, W]``, NaN where unlabelled."""
        _check_sizes(raw, target)
        values = upcast(raw).squeeze(1)
        known = ~target.isnan()
        # What stands in for an unlabelled pixel is finite, so its gradient of zero stays one.
        target = target.nan_to_num(1.0)
        error = (values - (target.log() if self.form == "log" else target)) / self.deviation
        size = error.abs()
        if self.form == "mse":
            size = error.square()
        elif self.form == "berhu":
            size = torch.where(size <= self.delta, size, (error.square() + self.delta**2) / (2 * self.delta))
        return (size * known).flatten(1).sum(1)
