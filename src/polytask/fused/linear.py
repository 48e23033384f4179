"""Linear layers of several tasks as one matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polytask.errors import RecipeError, ShapeError, unknown
from polytask.fused.pool import POOLS, Pool
from polytask.fused.products import ProductRow, Products

_ONE_BY_ONE: ContextVar[bool] = ContextVar("one_by_one", default=False)


def fused_linear(features: Sequence[Tensor], layers: Sequence[nn.Linear], pool: str = "none") -> list[Tensor]:
    """What each linear layer makes of its own alias of the same features, all in one matrix product.

    The same as ``[layer(z) for z, layer in zip(features, layers)]`` up to rounding, in less time where there are many
    layers. Features that come from a balance node (``balancing.Node``, ``at: features``) gain most: it gets all
    tasks' gradients as products, and forms none of them.

    The layers run one by one, each as it is, where there is nothing to gain or more to them: without gradients, where
    features differ, if one is no plain ``nn.Linear`` or has hooks, under ``torch.compile`` and ``torch.func``, and
    where an engine takes every task's gradient by itself (``at: parameters``, ``at: last``).

    Args:
        features: One tensor a layer: the features themselves each time, or aliases of them.
        layers: Of any number of outputs.
        pool: What comes before the layers: ``"none"`` for features ``[..., d]``; ``"mean"`` takes the mean over the
            positions of maps ``[rows, d, ...]``, and ``"first"`` the first position of texts ``[rows, positions, d]``.

    Returns:
        One tensor a layer, ``[..., outputs]``, or ``[rows, outputs]`` where features are pooled: in the weights' dtype,
        or float32 if that is lower, under autocast, too.

    Raises:
        ShapeError: if there are not as many features as layers, or features and layers do not fit.
        RecipeError: for another pool.

    Example:
        >>> z, layers = torch.ones(5, 3), [nn.Linear(3, 1), nn.Linear(3, 2)]
        >>> [tuple(out.shape) for out in fused_linear([z, z], layers)]
        [(5, 1), (5, 2)]
    """
    if pool not in POOLS:
        raise RecipeError(unknown("pool", pool, POOLS))
    reader = POOLS[pool]
    _check_shapes(features, layers, reader)
    if not _can_fuse(features, layers):
        return [
            full_precision(layer, z if pool == "none" else reader.read(z))
            for z, layer in zip(features, layers, strict=True)
        ]
    lead = features[0].shape[:-1] if pool == "none" else features[0].shape[:1]
    given = features[:1] if all(z is features[0] for z in features) else features
    biased = tuple(layer.bias is not None for layer in layers)
    plan = _Plan(len(given), tuple(layer.out_features for layer in layers), biased, reader)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    outs = _Fused.apply(plan, *given, *(layer.weight for layer in layers), *biases)  # type: ignore[no-untyped-call]
    return [out.view(*lead, out.shape[-1]) for out in outs]


def _check_shapes(features: Sequence[Tensor], layers: Sequence[nn.Linear], reader: Pool) -> None:
    if len(features) != len(layers):
        raise ShapeError(f"There are {len(layers)} layers and {len(features)} features. Give one tensor a layer.")
    for number, (z, layer) in enumerate(zip(features, layers, strict=True)):
        if z.dim() < reader.dims or z.shape[reader.width_at] != layer.in_features:
            raise ShapeError(f"Layer {number} reads {layer.in_features} features; it was given {list(z.shape)}.")


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
    pool: Pool

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
        with torch.autocast(zs[0].device.type, enabled=False):
            vectors, weight = plan.pool.read(zs[0]), torch.cat(weights)
            ctx.save_for_backward(vectors, *zs, *weights)
            zeros = [weight.new_zeros(width) if b is None else b for b, width in zip(biases, plan.widths, strict=True)]
            made = _full(torch.addmm(torch.cat(zeros), vectors.to(weight.dtype), weight.T))
        # Plain tensors of one memory, and not views: a loss may write into what it is given.
        return tuple(part.data for part in torch.split(made, list(plan.widths), 1))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, (vectors, *tensors) = ctx.plan, ctx.saved_tensors
        zs, weights = tensors[: plan.features], tensors[plan.features :]
        there = {k: slope for k, slope in enumerate(slopes) if slope is not None}
        back = any(ctx.needs_input_grad[1 : 1 + plan.features])
        with torch.autocast(vectors.device.type, enabled=False):
            if torch.is_grad_enabled():
                found = _each(plan.pool, [plan.pool.read(z) for z in zs], zs, weights, there, back)
            elif len(there) == 1:
                found = _each(plan.pool, [vectors] * len(zs), zs, weights, there, back)
            else:
                found = _at_once(plan.pool, vectors, zs, weights, there, back, ctx.lazy)
        return (None, *plan.flat(*found))


Gradients = tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]
"""Of the features, the weights and the biases."""


def _each(
    pool: Pool,
    vectors: Sequence[Tensor],
    zs: Sequence[Tensor],
    weights: Sequence[Tensor],
    slopes: dict[int, Tensor],
    back: bool,
) -> Gradients:
    """As separate layers would have it; differentiable."""
    of_features: list[Tensor | None] = [None] * len(zs)
    of_weights: list[Tensor | None] = [None] * len(weights)
    of_biases = list(of_weights)
    for k, slope in slopes.items():
        at, weight = k if len(zs) > 1 else 0, weights[k]
        slope = slope.to(weight.dtype)
        if back:
            mine, before = pool.spread(slope @ weight, zs[at].shape).to(zs[at].dtype), of_features[at]
            of_features[at] = mine if before is None else before + mine
        of_weights[k] = slope.T @ vectors[at].to(weight.dtype)
        of_biases[k] = slope.sum(0)
    return of_features, of_weights, of_biases


def _at_once(
    pool: Pool,
    vectors: Tensor,
    zs: Sequence[Tensor],
    weights: Sequence[Tensor],
    slopes: dict[int, Tensor],
    back: bool,
    lazy: bool,
) -> Gradients:
    """The gradients of several layers, of all in one product each."""
    widths = [len(weights[k]) for k in slopes]
    weight = torch.cat([weights[k] for k in slopes])
    slope = torch.cat(list(slopes.values()), 1).to(weight.dtype)
    of_weights: list[Tensor | None] = [None] * len(weights)
    of_biases = list(of_weights)
    every = torch.split(slope.T @ vectors.to(weight.dtype), widths), torch.split(slope.sum(0), widths)
    for k, w, b in zip(slopes, *every, strict=True):
        of_weights[k], of_biases[k] = w, b
    of_features: list[Tensor | None] = [None] * len(zs)
    products = Products(slope, weight, widths, zs[0], pool)
    if back and len(zs) == 1:
        of_features[0] = products.whole()
    for position, k in enumerate(slopes if back and len(zs) > 1 else ()):
        of_features[k] = ProductRow.of(products, position) if lazy else products.row(position)
    return of_features, of_weights, of_biases
