"""The balance node: where each task's gradient meets the shared features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.errors import BalancerError

Column = Sequence[Tensor | None]
"""Every present task's gradient of one feature tensor; None where a loss does not depend on it."""
Combine = Callable[[list[Column]], list[Tensor]]
"""Maps the column of every feature tensor to the gradient that goes on into the trunk."""


class Link:
    """What one node knows: which tasks lie behind it, and what to do with their gradients.

    Args:
        tasks: Names of the tasks that get an alias.
        keys: Names of the feature tensors.
        combine: Called once in the backward with one column of rows for every feature tensor.

    Attributes:
        present: Tasks whose rows count in the coming backward: all, unless somebody says otherwise.
    """

    def __init__(self, tasks: Sequence[str], keys: Sequence[str], combine: Combine):
        self.tasks, self.keys, self.combine = tuple(tasks), tuple(keys), combine
        self.present = self.tasks

    def gradients(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of the feature tensors from those of the aliases, task by task."""
        width = len(self.keys)
        place = {task: k * width for k, task in enumerate(self.tasks)}
        by_task = [grads[place[task] : place[task] + width] for task in self.present]
        missing = [t for t, mine in zip(self.present, by_task, strict=True) if all(g is None for g in mine)]
        if missing:
            raise BalancerError(unreached(self.keys, missing))
        used = [i for i in range(width) if any(mine[i] is not None for mine in by_task)]
        combined = dict(zip(used, self.combine([[mine[i] for mine in by_task] for i in used]), strict=True))
        return [combined.get(position) for position in range(width)]


def unreached(keys: Sequence[str], tasks: Sequence[str]) -> str:
    """The text for features that do not lead to a loss."""
    features, losses = (", ".join(repr(name) for name in names) for names in (keys, tasks))
    return (
        f"The features {features} do not lead to the loss of {losses}. Feed each head with what the balance node "
        "returned for its task, and leave absent tasks out."
    )


class _BalanceNode(torch.autograd.Function):
    """Hands each task an alias of the features; combines the tasks' gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, link: Link, *features: Tensor) -> tuple[Tensor, ...]:
        ctx.link = link
        ctx.takes_products = True
        # Without this, an alias that no loss reaches would come back as a row of zeros.
        ctx.set_materialize_grads(False)
        return tuple(z.view_as(z) for _ in link.tasks for z in features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.link.gradients(grads))


def aliases(features: Mapping[str, Tensor], link: Link) -> dict[str, dict[str, Tensor]]:
    """One alias of every feature tensor for every task, joined by a balance node.

    Args:
        features: Tensors where shared computation ends, none upstream of another; named as in ``link``.
        link: Who gets aliases, and what the backward does with the rows.

    Returns:
        For each task, the tensors under their own names.

    Raises:
        BalancerError: if there are no features or none of them needs a gradient.
    """
    if not features:
        raise BalancerError("A balance node needs at least one feature tensor; got none.")
    if not any(z.requires_grad for z in features.values()):
        raise BalancerError(
            "The features need no gradient, so there is nothing to balance. Train at least one parameter upstream "
            "of them, and call the node outside of torch.no_grad."
        )
    flat = iter(_BalanceNode.apply(link, *features.values()))  # type: ignore[no-untyped-call]
    return {task: {key: next(flat) for key in features} for task in link.tasks}
