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

from polytask.balancing.engines.jacobian import add_gradient, first_broken
from polytask.balancing.engines.rows import is_rounded
from polytask.fused import is_hooked

PARTS = 4
"""Of a layer's rows, in ``half_products``; more were slower."""

FEWEST_ROWS = 64
"""Of a part: a smaller product costs more by being one than by its size."""

GAIN = 0.9
"""Most that the short way may take of the long way's multiplications: its products are smaller, and a bit slower."""


@dataclass
class Layer:
    """A linear layer in one forward: its inputs and outputs, as often as it was called."""

    module: nn.Linear
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)
    is_usual: bool = True

    def note(self, given: Tensor, made: Tensor) -> None:
        """Keep what a call was given and made; of one with more rows than inputs nothing: it could be much."""
        few = 0 < given.numel() <= self.module.in_features**2
        self.is_usual &= few and given.layout is torch.strided and not given.is_nested
        if self.is_usual:
            self.inputs.append(given)
            self.outputs.append(made)
            self.versions.append((given._version, made._version))

    def is_plain(self) -> bool:
        """Whether it is trained, ran once, unhooked, and nothing was written over its inputs and outputs since."""
        module, tensors = self.module, [self.module.weight, self.module.bias, *self.outputs]
        hooked = is_hooked(module) or any(t is not None and t._backward_hooks for t in tensors)
        now = [(a._version, z._version) for a, z in zip(self.inputs, self.outputs, strict=True)]
        once = self.is_usual and len(now) == 1 and module.weight.requires_grad
        return once and not hooked and now == self.versions and self.outputs[0].requires_grad

    @property
    def has_bias(self) -> bool:
        """Whether a bias is trained."""
        return self.module.bias is not None and self.module.bias.requires_grad

    @property
    def trained(self) -> list[nn.Parameter]:
        """Its parameters whose gradients the products stand for."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def stack(self, count: int, kept: Tensor | None) -> Tensor:
        """Room for ``count`` gradients of the outputs, ``[count, rows, out]``, float32 or better.

        That is ``kept``, of an earlier step, where it fits.
        """
        z = self.outputs[0]
        dtype, shape = torch.promote_types(z.dtype, torch.float32), (count, z.numel() // z.shape[-1], z.shape[-1])
        if kept is not None and (kept.dtype, kept.shape, kept.device) == (dtype, shape, z.device):
            return kept
        return torch.empty(shape, dtype=dtype, device=z.device)

    def rows(self) -> Tensor:
        """Inputs ``[rows, in]`` in float32 or better, whatever autocast says."""
        flat = self.inputs[0].detach().reshape(-1, self.module.in_features)
        return flat if flat.dtype == torch.float64 else flat.float()

    def pays(self, count: int, summed: bool) -> bool:
        """Whether the products of ``count`` tasks' gradients take fewer multiplications than these gradients.

        Args:
            count: Number of tasks.
            summed: Whether the weighted sum of the gradients is wanted as well, and not from another backward.
        """
        size, out = self.module.in_features, self.module.out_features
        rows = self.outputs[0].numel() // out
        parts = parts_of(rows)
        kernel = (parts + 1) / (2 * parts) * rows * rows * (size + count * out)
        short = kernel + count * count * rows * out + (rows * size * out if summed else 0)
        return short <= GAIN * (count * rows * size * out + count * count * size * out)


def linear_layers(model: nn.Module | None, shared: Sequence[nn.Parameter], fewest: int = 0) -> list[nn.Linear]:
    """The linear layers of at least ``fewest`` weights whose trained parameters are all among the shared ones."""
    modules = list(model.modules()) if model is not None else []
    if any(type(m).__name__ == "OptimizedModule" or m._compiled_call_impl is not None for m in modules):
        return []  # hooks would make the compiler start anew in every step, or leave the layers out
    own = {id(p) for p in shared}
    linear = [module for module in modules if type(module) is nn.Linear and id(module.weight) in own]
    large = [module for module in linear if module.weight.numel() >= fewest]
    return [m for m in large if m.bias is None or id(m.bias) in own or not m.bias.requires_grad]


@contextmanager
def recorded(modules: Sequence[nn.Linear]) -> Iterator[list[Layer]]:
    """Layers that fill up while the model runs."""
    layers = [Layer(module) for module in modules]

    def hook_of(layer: Layer) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, made: Any) -> None:
            # A compiler would keep this layer for all later steps. What is given by name is not seen.
            if given and not torch.compiler.is_compiling():
                layer.note(given[0], made)

        return hook

    handles = [layer.module.register_forward_hook(hook_of(layer)) for layer in layers]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def used_once(losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> set[int]:
    """Ids of the parameters that enter the losses' graph at one place: a tied weight has a further gradient."""
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
    return {number for number, count in counts.items() if count == 1}


class OutputRows:
    """Every task's gradients of the outputs of linear layers, in place of the layers' columns in a Jacobian.

    Args:
        layers: What ran in this step; there may be none.
        count: Number of tasks.
        rooms: Memory of the last step by layer, which is used again where it fits; it will hold that of this step.
    """

    def __init__(self, layers: Sequence[Layer], count: int, rooms: dict[int, Tensor]):
        self.layers = list(layers)
        self.stacks = [layer.stack(count, rooms.get(id(layer.module))) for layer in layers]
        rooms.clear()
        rooms.update({id(layer.module): stack for layer, stack in zip(layers, self.stacks, strict=True)})

    @property
    def outputs(self) -> list[Tensor]:
        """What the gradients are taken of."""
        return [layer.outputs[0] for layer in self.layers]

    def add(self, row: int, gradients: Sequence[Tensor | None]) -> None:
        """Write a task's gradients into its row; None stands for zeros."""
        for stack, gradient in zip(self.stacks, gradients, strict=True):
            stack[row] = 0.0 if gradient is None else gradient.reshape(stack[row].shape)

    def broken(self, row: int) -> nn.Parameter | None:
        """The weight of the first layer whose outputs have a gradient in a row that is not finite."""
        return first_broken([layer.trained[0] for layer in self.layers], [stack[row] for stack in self.stacks])

    def gramian(self, exact: bool = False) -> Tensor:
        """The Gramian ``[p, p]`` of the layers' gradients, float32 or better; float64 if ``exact``."""
        first = self.stacks[0]
        wide = exact or is_rounded(first) or any(stack.dtype == torch.float64 for stack in self.stacks)
        dtype = torch.float64 if wide else torch.float32
        half = first.new_zeros(len(first), len(first), dtype=dtype)
        for layer, stack in zip(self.layers, self.stacks, strict=True):
            with torch.autocast(stack.device.type, enabled=False):
                half += half_products(layer.rows().to(dtype), stack.to(dtype), layer.has_bias).to(half.device)
        return half + half.T

    def weighted(self, weights: Tensor) -> list[Tensor]:
        """For each layer the weighted sum of the tasks' gradients of its outputs, ``[rows, out]``."""
        found = []
        for stack in self.stacks:
            with torch.autocast(stack.device.type, enabled=False):
                found.append(torch.tensordot(weights.to(stack), stack, dims=1))
        return found

    def write(self, weights: Tensor) -> None:
        """Put the weighted sum of the tasks' gradients of the layers' parameters into ``.grad``."""
        for layer, combined in zip(self.layers, self.weighted(weights), strict=True):
            with torch.autocast(combined.device.type, enabled=False):
                add_gradient(layer.module.weight, combined.T @ layer.rows().to(combined))
                if layer.has_bias:
                    add_gradient(layer.module.bias, combined.sum(0))


def parts_of(rows: int) -> int:
    """How many parts of its rows a layer's kernel is taken in."""
    return max(1, min(PARTS, rows // FEWEST_ROWS))


def half_products(rows: Tensor, grads: Tensor, bias: bool) -> Tensor:
    """A matrix that gives the inner products ``[p, p]`` when its own transpose is added.

    With a symmetric kernel K, <B_i, K B_j> + <B_j, K B_i> is twice what is wanted, so that what lies above the
    diagonal of K need not be computed, nor multiplied with: blocks on the diagonal count half, those below it in full.

    Args:
        rows: The layer's inputs ``[rows, in]``.
        grads: The tasks' gradients of its outputs, ``[p, rows, out]``.
        bias: Whether the layer has a bias, which is a weight whose input is always one.
    """
    count, size = len(grads), -(-len(rows) // parts_of(len(rows)))
    total = grads.new_zeros(count, count)
    for start in range(0, len(rows), size):
        stop = min(start + size, len(rows))
        kernel = rows[start:stop] @ rows[:stop].T
        if bias:
            kernel += 1.0
        kernel[:, start:] *= 0.5
        seen = kernel @ grads[:, :stop]
        total += grads[:, start:stop].reshape(count, -1) @ seen.reshape(count, -1).T
    return total
