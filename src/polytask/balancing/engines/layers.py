"""Inner products of the tasks' gradients, layer by layer of the shared parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.balancing.engines.heads import forward_for_each
from polytask.balancing.engines.rows import exact_products
from polytask.balancing.types import MicroBatch, Reduce

MOST_LAYERS = 8
"""The last layers of the trunk, where tasks part; earlier ones would make the backwards longer."""

Layers = Mapping[str, Sequence[nn.Parameter]]


def shared_layers(module: nn.Module, shared: Sequence[nn.Parameter], budget: int) -> dict[str, list[nn.Parameter]]:
    """The last shared layers that have a matrix, in the order in which the module defines them.

    Args:
        module: The model.
        shared: Its shared parameters.
        budget: Most numbers in the layers together, counted from the last one.

    Returns:
        At most eight layers by their path in the module.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> list(shared_layers(model, list(model.parameters()), 100)), list(shared_layers(model, [], 100))
        (['0', '2'], [])
        >>> list(shared_layers(model, list(model.parameters()), 10))
        ['2']
    """
    wanted = {id(parameter) for parameter in shared}
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if id(parameter) in wanted:
            found.setdefault(name.rpartition(".")[0], []).append(parameter)
    # A normalisation layer has a scale a channel and little to conflict about.
    layers = [(name, of) for name, of in found.items() if any(p.dim() > 1 for p in of)]
    kept: dict[str, list[nn.Parameter]] = {}
    for name, of in reversed(layers[-MOST_LAYERS:]):
        budget -= sum(p.numel() for p in of)
        if budget < 0:
            break
        kept[name] = of
    return dict(reversed(kept.items()))


def layer_products(batch: MicroBatch, layers: Layers, tasks: Sequence[str], reduce: Reduce) -> dict[str, Tensor]:
    """Inner products of the tasks' gradients of each layer's parameters, from one forward.

    The gradients are summed over processes before they are multiplied: a product of sums is no sum of products.

    Args:
        batch: What the forward runs on.
        layers: Parameters by layer.
        tasks: Names of the micro-batch's tasks.
        reduce: Sums over processes.

    Returns:
        ``[p, p]`` for each layer, float64, on the CPU.
    """
    with torch.enable_grad():
        losses = forward_for_each(batch).tasks
    parameters = [p for of in layers.values() for p in of]
    rows = [_row(losses[task], parameters) for task in tasks]
    stack = reduce(torch.stack(rows))
    sizes = [sum(p.numel() for p in of) for of in layers.values()]
    parts = torch.split(stack, sizes, 1)
    return {name: exact_products(part).cpu() for name, part in zip(layers, parts, strict=True)}


def _row(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """A loss's gradient of all parameters in one vector; zeros where it does not depend on one."""
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, parameters)])  # noqa: B905
