"""Which parameters a loss depends on, from a walk over its graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from polytask.errors import BalancerError


def own_leaves(
    losses: Iterable[tuple[str, Tensor]], shared: Sequence[nn.Parameter], features: Mapping[str, Tensor]
) -> dict[str, list[nn.Parameter]]:
    """For each task the leaves of its loss that are not shared, and checks that the shared ones are reached.

    Raises:
        BalancerError: if a shared parameter leads to no loss.
    """
    stops = {z.grad_fn for z in features.values()}
    is_shared = {id(p) for p in shared}
    reached: set[int] = set()
    own: dict[str, dict[int, nn.Parameter]] = {}
    for task, loss in losses:
        leaves = leaves_of([loss], stops)
        reached |= {id(leaf) for leaf in leaves}
        own.setdefault(task, {}).update({id(leaf): leaf for leaf in leaves if id(leaf) not in is_shared})
    if features:
        reached |= {id(leaf) for leaf in leaves_of(features.values(), set())}
    lost = [f"number {i} of shape {list(p.shape)}" for i, p in enumerate(shared) if id(p) not in reached]
    if lost:
        raise BalancerError(
            f"No loss reaches shared parameter {', '.join(lost[:3])} ({len(lost)} in all). Leave it out of 'shared', "
            "or use it in the forward."
        )
    return {task: list(leaves.values()) for task, leaves in own.items()}


def leaves_of(tensors: Iterable[Tensor], stops: set[Any]) -> list[Any]:
    """Trained leaves that tensors depend on, not looking past the nodes in ``stops``."""
    found, seen = [], set(stops)
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return found
