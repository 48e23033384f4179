"""Geometry of boxes ``(x1, y1, x2, y2)``: overlaps, and the choice among boxes that overlap."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-7
"""Areas are kept this far from 0 where they divide."""


def areas(boxes: Tensor) -> Tensor:
    """Areas ``[...]`` of boxes ``[..., 4]``; 0 where a side is negative.

    Example:
        >>> areas(torch.tensor([[0.0, 0.0, 2.0, 3.0], [1.0, 1.0, 0.0, 5.0]]))
        tensor([6., 0.])
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0)
    return sides[..., 0] * sides[..., 1]


def _intersections(first: Tensor, second: Tensor) -> Tensor:
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    return areas(torch.cat([low, high], -1))


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every box with every other.

    Args:
        first: ``[..., n, 4]``.
        second: ``[..., m, 4]``.

    Returns:
        ``[..., n, m]``.

    Example:
        >>> pairwise_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
        tensor([[0.3333]])
    """
    one, two = first.unsqueeze(-2), second.unsqueeze(-3)
    both = _intersections(one, two)
    return both / (areas(one) + areas(two) - both).clamp_min(TINY)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    r"""IoU minus the share of the smallest common box that neither covers, pair by pair.

    :math:`\mathrm{IoU} - |C \setminus (A \cup B)| / |C|`, from -1 to 1. Unlike IoU it has a gradient where boxes do
    not meet.

    Args:
        first: ``[..., 4]``.
        second: ``[..., 4]``.

    Returns:
        ``[...]``.

    Example:
        >>> generalised_iou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([2.0, 0.0, 3.0, 1.0]))
        tensor(-0.3333)

    Reference:
        Rezatofighi et al., "Generalized Intersection over Union" (CVPR 2019), algorithm 2.
    """
    both = _intersections(first, second)
    union = areas(first) + areas(second) - both
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = areas(torch.cat([low, high], -1))
    return both / union.clamp_min(TINY) - (hull - union) / hull.clamp_min(TINY)


def suppressed(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Which boxes stay when each takes out the lower-scored ones of its class that overlap it too much.

    The result is that of the greedy method, for all images at once: whether a box stays is corrected in rounds until
    nothing changes. A round decides at least one more box for good, and a few rounds are usual.

    Args:
        boxes: ``[..., n, 4]``.
        scores: ``[..., n]``; of equal ones the first goes first.
        classes: ``[..., n]``.
        threshold: A box with a larger IoU is taken out.

    Returns:
        Which ones stay, bool ``[..., n]``.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.8], [5.0, 5.0, 6.0, 6.0]])
        >>> suppressed(boxes, torch.tensor([0.5, 0.9, 0.1]), torch.tensor([1, 1, 1]), 0.5)
        tensor([False,  True,  True])

    Reference:
        Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference for Object Detection and Instance
        Segmentation" (IEEE Transactions on Cybernetics, 2021): Cluster-NMS, which gives what greedy suppression gives.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranked = boxes.gather(-2, order.unsqueeze(-1).expand(*order.shape, 4))
    of_class = classes.gather(-1, order)
    same = of_class.unsqueeze(-1) == of_class.unsqueeze(-2)
    # Rows are higher-scored boxes, columns those that they take out.
    takes = (same & (pairwise_iou(ranked, ranked) > threshold)).triu(1)
    stays = torch.ones_like(of_class, dtype=torch.bool)
    for _ in range(order.shape[-1]):
        changed = ~(takes & stays.unsqueeze(-1)).any(-2)
        if torch.equal(changed, stays):
            break
        stays = changed
    return torch.zeros_like(stays).scatter(-1, order, stays)
