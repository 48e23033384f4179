"""Gradients of the shared features: forward through the trunk without a graph, backward through the heads alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing.types import Losses, MicroBatch
from polytask.fused import one_by_one


def plain_tap(features: dict[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
    """The tap that changes nothing: every task reads the features themselves."""
    return defaultdict(lambda: features)


def forward_for_each(batch: MicroBatch) -> Losses:
    """Losses that will each have a backward of their own."""
    with one_by_one():
        return batch.forward(plain_tap)


def heads_only(batch: MicroBatch) -> tuple[Losses, dict[str, Tensor]]:
    """Losses whose graph ends at the features, and these features by name; none if the model never shows them."""
    leaves: dict[str, Tensor] = {}

    def tap(features: dict[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
        # The trunk ran without a graph; from here on the heads need one, down to the features.
        torch.set_grad_enabled(True)
        leaves.update({key: z.detach().requires_grad_() for key, z in features.items()})
        # Copies, because a head may begin with an operation in place, which a leaf does not allow.
        return plain_tap({key: leaf.clone() for key, leaf in leaves.items()})

    with torch.no_grad(), one_by_one():
        losses = batch.forward(tap)
    return losses, leaves


def rows_of(losses: Losses, leaves: Mapping[str, Tensor], tasks: Sequence[str]) -> list[list[Tensor | None]]:
    """For each task its loss's gradient of every feature tensor; None where the loss does not depend on it."""
    features = list(leaves.values())
    return [
        list(torch.autograd.grad(losses.tasks[task], features, retain_graph=True, allow_unused=True))
        if losses.tasks[task].requires_grad
        else [None] * len(features)
        for task in tasks
    ]


def stacked(rows: Sequence[Sequence[Tensor | None]], leaves: Mapping[str, Tensor]) -> list[Tensor]:
    """One stack ``[p, ...]`` a feature tensor; zeros where a loss does not depend on it."""
    columns = zip(*rows, strict=True)
    return [
        torch.stack([torch.zeros_like(z) if row is None else row for row in column])
        for column, z in zip(columns, leaves.values(), strict=True)
    ]
