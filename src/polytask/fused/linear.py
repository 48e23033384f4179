"""Linear layers of several tasks as one matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polytask.errors import ShapeError
from polytask.fused.products import ProductRow, Products

_ONE_BY_ONE: ContextVar[bool] = ContextVar("one_by_one", default=False)


def fused_linear(features: Sequence[Tensor], layers: Sequence[nn.Linear]) -> list[Tensor]:
    """What each linear layer makes of its own alias of the same features, all in one matrix product.

    The same as ``[layer(z) for z, layer in zip(features, layers)]`` up to rounding, in less time where there are many
    layers. Features that come from a balance node (``balancing.Node``, ``at: features``) gain most: it gets all
    tasks' gradients as products, and forms none of them.

    The layers run one by one, each as it is, where there is nothing to gain or more to them: without gradients, where
    features differ, if one is no plain ``nn.Linear`` or has hooks, under ``torch.compile`` and ``torch.func``, and
    where an engine takes every task's gradient by itself (``at: parameters``, ``at: last``).

    Args:
        features: One tensor ``[..., d]`` a layer: the features themselves each time, or aliases of them.
        layers: Of any number of outputs.

    Returns:
        One tensor ``[..., outputs]`` a layer, in the weights' dtype, or float32 if that is lower: under autocast,
        too.

    Raises:
        ShapeError: if there are not as many features as layers, or features and layers do not fit.

    Example:
        >>> z, layers = torch.ones(5, 3), [nn.Linear(3, 1), nn.Linear(3, 2)]
        >>> [tuple(out.shape) for out in fused_linear([z, z], layers)]
        [(5, 1), (5, 2)]
    """
    if len(features) != len(layers):
        raise ShapeError(
            f"There are {len(layers)} layers and {len(features)} features. Give one tensor for each layer."
        )
    for number, (z, layer) in enumerate(zip(features, layers, strict=True)):
        if z.shape[-1] != layer.in_features:
            raise ShapeError(f"Layer {number} reads {layer.in_features} features; it was given {list(z.shape)}.")
    if not _can_fuse(features, layers):
        return [full_precision(layer, z) for z, layer in zip(features, layers, strict=True)]
    lead = features[0].shape[:-1]
    given = features[:1] if all(z is features[0] for z in features) else features
    biased = tuple(layer.bias is not None for layer in layers)
    plan = _Plan(len(given), tuple(layer.out_features for layer in layers), biased)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    outs = _Fused.apply(plan, *given, *(layer.weight for layer in layers), *biases)  # type: ignore[no-untyped-call]
    return [out.view(*lead, out.shape[-1]) for out in outs]


@contextmanager
def one_by_one() -> Iterator[None]:
    """Layers run one by one here: each loss will have its own backward, which takes less time through its own layer."""
    token = _ONE_BY_ONE.set(True)
    try:
        yield
    finally:
        _ONE_BY_ONE.reset(token)


def full_precision(layer: nn.Linear, features: Tensor) -> Tensor:
    """An affine map in float32 at least, under autocast as well."""
    if torch.is_autocast_enabled(features.device.type):
        with torch.autocast(features.device.type, enabled=False):
            return full_precision(layer, features)
    return _full(layer(features.to(layer.weight.dtype)))


def _can_fuse(features: Sequence[Tensor], layers: Sequence[nn.Linear]) -> bool:
    """Whether plain layers read the same memory, and nothing but plain autograd watches."""
    if len(layers) < 2 or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False  # a compiler fuses by itself
    if _ONE_BY_ONE.get():
        return False
    if torch._C._are_functorch_transforms_active():
        return False  # which refuse a custom function of this form
    first, dtype = features[0], layers[0].weight.dtype
    key = (first.data_ptr(), first.shape, first.stride(), first.dtype)
    same = all(z is first or (z.data_ptr(), z.shape, z.stride(), z.dtype) == key for z in features)
    return same and type(first) is Tensor and all(_is_plain(layer, dtype) for layer in layers)


def _is_plain(layer: nn.Linear, dtype: torch.dtype) -> bool:
    weight = layer.weight
    plain = type(layer) is nn.Linear and type(weight) is nn.Parameter
    return plain and weight.dtype == dtype and not is_hooked(layer)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody watches what the module is given or makes."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True)
class _Plan:
    """How the tensors that ``_Fused`` is given belong together."""

    features: int
    widths: tuple[int, ...]
    biased: tuple[bool, ...]

    def parts(self, tensors: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Features, weights, and a bias or None for every layer."""
        count = len(self.widths)
        zs, rest = list(tensors[: self.features]), list(tensors[self.features :])
        biases = iter(rest[count:])
        return zs, rest[:count], [next(biases) if has else None for has in self.biased]

    def flat(self, zs: Sequence[Any], weights: Sequence[Any], biases: Sequence[Any]) -> tuple[Any, ...]:
        """The opposite of ``parts``."""
        return (*zs, *weights, *(b for b, has in zip(biases, self.biased, strict=True) if has))


class _Fused(torch.autograd.Function):
    """The layers' outputs, and the gradients of those whose losses take part in a backward."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        zs, weights, biases = plan.parts(tensors)
        ctx.plan = plan
        ctx.lazy = plan.features > 1 and all(getattr(z.grad_fn, "takes_products", False) for z in zs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*zs, *weights)
        flat = zs[0].reshape(-1, zs[0].shape[-1])
        with torch.autocast(flat.device.type, enabled=False):
            weight = torch.cat(weights)
            zeros = [weight.new_zeros(width) if b is None else b for b, width in zip(biases, plan.widths, strict=True)]
            made = _full(torch.addmm(torch.cat(zeros), flat.to(weight.dtype), weight.T))
        # Plain tensors of one memory, and not views: a loss may write into what it is given.
        return tuple(part.data for part in torch.split(made, list(plan.widths), 1))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(ctx.plan.widths)
        zs, weights = saved[: ctx.plan.features], saved[ctx.plan.features :]
        there = [k for k in range(count) if slopes[k] is not None]
        mine: list[Tensor] = [slope for slope in slopes if slope is not None]
        with torch.autocast(zs[0].device.type, enabled=False):
            if len(there) == 1 or torch.is_grad_enabled():
                found = _each(zs, weights, dict(zip(there, mine, strict=True)))
            else:
                found = _at_once(zs, weights, there, mine, ctx.lazy)
        return (None, *ctx.plan.flat(*found))


Gradients = tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]
"""Of the features, the weights and the biases."""


def _each(zs: Sequence[Tensor], weights: Sequence[Tensor], slopes: dict[int, Tensor]) -> Gradients:
    """As separate layers would have it; differentiable."""
    of_features: list[Tensor | None] = [None] * len(zs)
    of_weights: list[Tensor | None] = [None] * len(weights)
    of_biases = list(of_weights)
    for k, slope in slopes.items():
        at = k if len(zs) > 1 else 0
        z, weight = zs[at], weights[k]
        slope = slope.reshape(-1, slope.shape[-1]).to(weight.dtype)
        mine, before = (slope @ weight).view(z.shape).to(z.dtype), of_features[at]
        of_features[at] = mine if before is None else before + mine
        of_weights[k] = slope.T @ z.reshape(-1, z.shape[-1]).to(weight.dtype)
        of_biases[k] = slope.sum(0)
    return of_features, of_weights, of_biases


def _at_once(
    zs: Sequence[Tensor], weights: Sequence[Tensor], there: Sequence[int], slopes: Sequence[Tensor], lazy: bool
) -> Gradients:
    """The gradients of the layers ``there``, of all in one product each."""
    z, widths = zs[0], [len(weights[k]) for k in there]
    dtype = weights[0].dtype
    weight = torch.cat([weights[k] for k in there])
    slope = torch.cat(list(slopes), 1).to(dtype)
    flat = z.reshape(-1, z.shape[-1]).to(dtype)
    of_weights: list[Tensor | None] = [None] * len(weights)
    of_biases = list(of_weights)
    for k, w, b in zip(there, torch.split(slope.T @ flat, widths), torch.split(slope.sum(0), widths), strict=True):
        of_weights[k], of_biases[k] = w, b
    if len(zs) == 1:
        return [(slope @ weight).view(z.shape).to(z.dtype)], of_weights, of_biases
    products = Products(slope, weight, widths, z)
    of_features: list[Tensor | None] = [None] * len(zs)
    for position, k in enumerate(there):
        of_features[k] = ProductRow.of(products, position) if lazy else products.row(position)
    return of_features, of_weights, of_biases
