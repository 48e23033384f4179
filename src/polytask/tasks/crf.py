r"""Linear chains of tags in tensor code: the log-partition and the best path.

A head that learns which tags follow one another puts its :math:`k + 2` rows of transition scores before the scores
of the places, so that a task's raw output stays one tensor ``[rows, k + 2 + width, k]``: k rows from each tag, one from
the start of a row, one to its end. Places that a row does not have are NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXTRA = 2
"""Rows of transitions beside one for each tag: from the start, and to the end."""


def with_transitions(scores: Tensor, transitions: Tensor) -> Tensor:
    """Scores of places ``[rows, width, k]`` with transitions ``[k + 2, k]`` before them."""
    return torch.cat([transitions.to(scores).expand(len(scores), -1, -1), scores], 1)


def split_raw(raw: Tensor) -> tuple[Tensor, Tensor]:
    """What ``with_transitions`` joined: scores ``[rows, width, k]`` and transitions ``[rows, k + 2, k]``."""
    count = raw.shape[-1] + EXTRA
    return raw[:, count:], raw[:, :count]


def log_partition(scores: Tensor, transitions: Tensor, present: Tensor) -> Tensor:
    r"""Log of the sum over all tag paths of :math:`\exp(\mathrm{score})`, by the forward recursion.

    :math:`\alpha_1 = T_{start} + s_1` and
    :math:`\alpha_t(j) = s_t(j) + \log \sum_i \exp(\alpha_{t-1}(i) + T_{ij})`, and the end's transitions last.

    Args:
        scores: ``[rows, width, k]``; minus infinity forbids a tag at a place.
        transitions: ``[rows, k + 2, k]``.
        present: Which places a row has, bool ``[rows, width]``: a row's first ones.

    Returns:
        ``[rows]``; 0 for a row without places.

    Example:
        >>> log_partition(torch.zeros(1, 2, 3), torch.zeros(1, 5, 3), torch.ones(1, 2, dtype=torch.bool)).exp()
        tensor([9.])

    Reference:
        Lafferty, McCallum and Pereira, Conditional random fields (2001), section 3.
    """
    between, first, last = transitions[:, :-EXTRA], transitions[:, -2], transitions[:, -1]
    alpha = first + scores[:, 0]
    for place in range(1, scores.shape[1]):
        ahead = torch.logsumexp(alpha.unsqueeze(2) + between, 1) + scores[:, place]
        alpha = torch.where(present[:, place, None], ahead, alpha)
    total = torch.logsumexp(alpha + last, 1)
    return torch.where(present[:, 0], total, torch.zeros_like(total))


def best_path(scores: Tensor, transitions: Tensor, present: Tensor) -> Tensor:
    """The tags of the path with the largest score, by the Viterbi recursion.

    Args:
        scores: ``[rows, width, k]``.
        transitions: ``[rows, k + 2, k]``; minus infinity forbids a transition.
        present: Which places a row has, bool ``[rows, width]``: a row's first ones.

    Returns:
        Numbers of tags, int64 ``[rows, width]``, -1 for places that a row does not have.

    Example:
        >>> scores = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
        >>> never_twice = torch.tensor([[[0.0, 0.0], [0.0, -5.0], [0.0, 0.0], [0.0, 0.5]]])
        >>> best_path(scores, never_twice, torch.ones(1, 2, dtype=torch.bool))
        tensor([[0, 1]])

    Reference:
        Viterbi, Error bounds for convolutional codes and an asymptotically optimum decoding algorithm (1967).
    """
    between, first, last = transitions[:, :-EXTRA], transitions[:, -2], transitions[:, -1]
    best = first + scores[:, 0]
    came_from = []
    for place in range(1, scores.shape[1]):
        value, origin = (best.unsqueeze(2) + between).max(1)
        best = torch.where(present[:, place, None], value + scores[:, place], best)
        came_from.append(origin)
    tag = (best + last).argmax(1)
    path = [tag]
    for place in range(scores.shape[1] - 1, 0, -1):
        before = came_from[place - 1].gather(1, tag.unsqueeze(1)).squeeze(1)
        tag = torch.where(present[:, place], before, tag)
        path.append(tag)
    return torch.stack(path[::-1], 1).masked_fill(~present, -1)
