"""Inner products of linear layers' gradients without forming the gradients.

The gradient of a linear layer's weight is B' A, with the layer's inputs A ``[rows, in]`` and a task's gradient B of
its outputs ``[rows, out]``. So the inner product of two tasks' gradients is <B_i, (A A') B_j>, and the weighted sum of
all is (sum_k w_k B_k)' A: every task costs a backward to the outputs only, and the weights' gradients cost one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing.engines.jacobian import add_gradient

FEWEST_TASKS = 4
"""With fewer tasks the m backwards cost too little for the products to pay."""


@dataclass
class Layer:
    """A linear layer in one forward: its inputs and outputs, as often as it was called."""

    module: nn.Linear
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)

    def is_plain(self) -> bool:
        """Whether it ran once, with a graph, unhooked, and nothing was written over its inputs and outputs since."""
        module, tensors = self.module, [self.module.weight, self.module.bias]
        hooks = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
        hooked = any(hooks) or any(t is not None and t._backward_hooks for t in tensors)
        now = [(a._version, z._version) for a, z in zip(self.inputs, self.outputs, strict=True)]
        return len(now) == 1 and not hooked and now == self.versions and self.outputs[0].requires_grad

    @property
    def has_bias(self) -> bool:
        """Whether a bias is trained."""
        return self.module.bias is not None and self.module.bias.requires_grad

    def empty_stack(self, count: int) -> Tensor:
        """Room for ``count`` gradients of the outputs, ``[count, rows, out]``, float32 or better."""
        z = self.outputs[0]
        dtype = torch.promote_types(z.dtype, torch.float32)
        return torch.empty(count, z.numel() // z.shape[-1], z.shape[-1], dtype=dtype, device=z.device)

    def rows(self) -> Tensor:
        """Inputs ``[rows, in]`` in float32 or better, whatever autocast says."""
        flat = self.inputs[0].detach().reshape(-1, self.module.in_features)
        return flat if flat.dtype == torch.float64 else flat.float()


def linear_layers(model: nn.Module | None, shared: Sequence[nn.Parameter]) -> list[nn.Linear]:
    """The linear layers that own all shared parameters between them; none if there are others, or hidden uses."""
    modules = list(model.modules()) if model is not None else []
    if any(type(module).__name__ == "OptimizedModule" for module in modules):
        return []  # hooks would make the compiler start anew in every step
    left = {id(p) for p in shared}
    found = []
    for module in modules:
        if type(module) is nn.Linear and id(module.weight) in left:
            found.append(module)
            left -= {id(module.weight), id(module.bias)}
    return [] if left else found


@contextmanager
def recorded(modules: Sequence[nn.Linear]) -> Iterator[list[Layer]]:
    """Layers that fill up while the model runs."""
    layers = [Layer(module) for module in modules]

    def hook_of(layer: Layer) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, made: Any) -> None:
            layer.inputs.append(given[0])
            layer.outputs.append(made)
            layer.versions.append((given[0]._version, made._version))

        return hook

    handles = [layer.module.register_forward_hook(hook_of(layer)) for layer in layers]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def pays(layers: Sequence[Layer]) -> bool:
    """Whether every layer ran plainly, with at most half as many rows as inputs (weighed by outputs).

    Measured on three layers of 256 and 512 inputs with 8 tasks: half the time of the whole Jacobian at 64 rows, no
    gain at 256.
    """
    if not all(layer.is_plain() for layer in layers):
        return False
    inputs = sum(layer.module.in_features * layer.module.out_features for layer in layers)
    rows = sum(layer.outputs[0].numel() for layer in layers)
    return 2 * rows <= inputs


def used_once(losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> bool:
    """Whether each parameter enters the losses' graph at one place: a tied weight has a further gradient."""
    counts = dict.fromkeys(map(id, parameters), 0)
    waiting, seen = [loss.grad_fn for loss in losses.values()], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)
            if id(leaf) in counts:
                counts[id(leaf)] += 1
            waiting.append(following)
    return all(count == 1 for count in counts.values())


def ghost_products(layers: Sequence[Layer], stacks: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The Gramian ``[p, p]`` of the layers' gradients.

    Args:
        layers: What ran.
        stacks: For each layer the tasks' gradients of its outputs, ``[p, rows, out]``.
        dtype: To compute in.
    """
    count = len(stacks[0])
    total = torch.zeros(count, count, dtype=dtype, device=stacks[0].device)
    with torch.autocast(stacks[0].device.type, enabled=False):
        for layer, stack in zip(layers, stacks, strict=True):
            rows, grads = layer.rows().to(dtype), stack.to(dtype)
            kernel = rows @ rows.T
            if layer.has_bias:
                kernel = kernel + 1.0  # the bias is a weight whose input is always one
            # One product a task: a batched one copies the kernel for every task, and took twice as long.
            seen = torch.empty_like(grads)
            for grad, room in zip(grads, seen, strict=True):
                torch.mm(kernel, grad, out=room)
            total += grads.reshape(count, -1) @ seen.reshape(count, -1).T
    return total


def write_weighted(layers: Sequence[Layer], stacks: Sequence[Tensor], weights: Tensor) -> None:
    """Put the weighted sum of the tasks' gradients into ``.grad``."""
    for layer, stack in zip(layers, stacks, strict=True):
        with torch.autocast(stack.device.type, enabled=False):
            combined = torch.tensordot(weights.to(stack), stack, dims=1)
            add_gradient(layer.module.weight, combined.T @ layer.rows().to(combined))
            if layer.has_bias:
                add_gradient(layer.module.bias, combined.sum(0))
