"""Loss of detection: heat maps of centres and boxes around them, all images and boxes at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from polytask.tasks.boxes import areas, generalised_iou
from polytask.tasks.losses import constant, upcast

SPREAD = 0.54
"""Part of a box's sides that its Gaussian covers."""


def counted_boxes(targets: Tensor) -> Tensor:
    """What each image counts: its boxes, and 1 for an image without any; ``[rows]``.

    Example:
        >>> counted_boxes(torch.tensor([[[0.0, 1, 1, 2, 2], [-1, 0, 0, 0, 0]], [[-1.0, 0, 0, 0, 0]] * 2]))
        tensor([1, 1])
    """
    return (targets[..., 0] >= 0).sum(1).clamp_min(1)


def centres(raw: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Strides ``(x, y)`` of a map over an image, and its positions' centres in pixels ``[h, w, 2]``.

    Args:
        raw: ``[..., h, w]``.
        size: Height and width of the image.
    """
    height, width = raw.shape[-2:]
    stride = constant((size[1] / width, size[0] / height), raw)
    x, y = torch.arange(width, device=raw.device) + 0.5, torch.arange(height, device=raw.device) + 0.5
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return stride, grid * stride


def boxes_at(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """The box that every position says, in pixels.

    A position gives the distances from its centre to the left, upper, right and lower side:
    softplus of the raw outputs, times the stride.

    Args:
        raw: ``[rows, 4, h, w]``.
        size: Height and width of the image.

    Returns:
        ``[rows, h, w, 4]``.

    Example:
        >>> boxes_at(torch.full((1, 4, 1, 1), 20.0), (8, 8)).flatten()
        tensor([-156., -156.,  164.,  164.])
    """
    stride, middle = centres(raw, size)
    distances = functional.softplus(raw.movedim(1, -1)) * stride.repeat(2)
    return torch.cat([middle - distances[..., :2], middle + distances[..., 2:]], -1)


def gaussians(targets: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """For every box a Gaussian on the map: 1 at the position with its centre, 0 outside of its middle part.

    Args:
        targets: ``[rows, n, 5]``; boxes with a negative class have none.
        shape: Height and width of the map.
        size: Height and width of the image.

    Returns:
        ``[rows, n, h, w]``.
    """
    real = targets[..., 0] >= 0
    x1, y1, x2, y2 = targets[..., 1:].where(real.unsqueeze(-1), 0.0).unbind(-1)
    along_y, along_x = _bell(y1, y2, shape[0], size[0]), _bell(x1, x2, shape[1], size[1])
    return along_y.unsqueeze(-1) * along_x.unsqueeze(-2) * real[..., None, None]


def _bell(low: Tensor, high: Tensor, count: int, pixels: int) -> Tensor:
    """The Gaussians along one side of the map, ``[..., count]``."""
    stride = pixels / count
    place = ((low + high) / 2 / stride).floor().clamp(0, count - 1).unsqueeze(-1)
    radius = (SPREAD / 2 * (high - low) / stride).floor().unsqueeze(-1)
    distance = torch.arange(count, device=low.device) - place
    return torch.exp(-0.5 * (6 * distance / (2 * radius + 1)).square()) * (distance.abs() <= radius)


def heat_loss(raw: Tensor, heat: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    r"""Focal loss of heat maps, entry by entry.

    With :math:`p = \sigma(z)` and the target Y: :math:`-(1-p)^\alpha \log p` where :math:`Y = 1`, else
    :math:`-(1-Y)^\beta p^\alpha \log(1-p)`.

    Args:
        raw: Logits z, any shape.
        heat: Targets Y from 0 to 1, the same shape.
        alpha: Exponent of the probability.
        beta: How much less the surroundings of a centre count.

    Reference:
        Zhou, Wang and Krähenbühl, "Objects as Points" (2019), equation 1.
    """
    of_one, of_zero = functional.logsigmoid(raw), functional.logsigmoid(-raw)
    positive = (alpha * of_zero).exp() * of_one
    negative = (1 - heat).pow(beta) * (alpha * of_one).exp() * of_zero
    return -torch.where(heat == 1, positive, negative)


@dataclass(frozen=True)
class DetectionLoss:
    r"""Focal loss of the centres' heat maps, and GIoU loss of the boxes at positions near the centres.

    Both are sums over an image: each box counts once, because the weights of its positions, a Gaussian, add up to 1.
    A position that lies in the middle of several boxes belongs to the smallest.

    Args:
        size: Height and width of the image.
        box_weight: Weight of the boxes' loss.

    Reference:
        Heat maps, and the division by the number of boxes: Zhou, Wang and Krähenbühl, "Objects as Points" (2019),
        equation 1. Gaussians with the box's proportions, and boxes learned at all positions of the Gaussian: Liu et
        al., "Training-Time-Friendly Network for Real-Time Object Detection" (AAAI 2020). There a box's weight grows
        with the logarithm of its area and the maps are shrunk by 4; here every box weighs the same, a map of any
        stride is read, and distances are softplus.
    """

    size: tuple[int, int]
    box_weight: float = 2.0

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of raw outputs ``[rows, 4 + k, h, w]`` and boxes ``[rows, n, 5]``."""
        raw, target = upcast(raw), target.to(raw.device)
        logits = raw[:, 4:]
        bells = gaussians(target, (raw.shape[-2], raw.shape[-1]), self.size).to(raw.dtype)
        classes = target[..., 0].nan_to_num(-1).clamp_min(0).long()
        of_class = classes[..., None, None].expand_as(bells)
        heat = torch.zeros_like(logits).scatter_reduce(1, of_class, bells, "amax")
        losses = heat_loss(logits, heat).flatten(1).sum(1)
        return losses + self.box_weight * self._boxes(raw[:, :4], target, bells)

    def _boxes(self, raw: Tensor, target: Tensor, bells: Tensor) -> Tensor:
        """The boxes' loss of every image, ``[rows]``."""
        rows, count = bells.shape[:2]
        inside = (bells > 0).flatten(2)
        size = areas(target[..., 1:]).unsqueeze(-1)
        # The smallest box of every position; without any its weight is 0.
        owner = size.where(inside, torch.inf).argmin(1, keepdim=True)
        weight = bells.flatten(2).gather(1, owner)
        whole = raw.new_zeros(rows, count).scatter_add(1, owner.squeeze(1), weight.squeeze(1))
        share = weight.squeeze(1) / whole.gather(1, owner.squeeze(1)).clamp_min(1e-12)
        true = target[..., 1:].nan_to_num(0.0).gather(1, owner.squeeze(1).unsqueeze(-1).expand(-1, -1, 4))
        said = boxes_at(raw, self.size).flatten(1, 2)
        return (share * (1 - generalised_iou(said, true.to(raw.dtype)))).sum(1)
