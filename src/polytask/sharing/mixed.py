"""The weighted sums of experts that several tasks take of the same outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def mixed(outs: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Weighted sums of the same experts, one for each of ``weights``.

    Args:
        outs: What the experts made, ``[rows, experts, ...]``.
        weights: For each sum the weights of the experts, ``[rows, experts]``.

    Returns:
        One tensor ``[rows, ...]`` a sum.

    Example:
        >>> mixed(torch.tensor([[[2.0], [4.0]]]), [torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])])
        [tensor([[3.]]), tensor([[2.]])]
    """
    flat = outs.flatten(2)
    given = [one.to(outs) for one in weights]
    # A compiler fuses the plain form by itself.
    sums = _plain(flat, given) if torch.compiler.is_compiling() else _Sums.apply(flat, *given)  # type: ignore[no-untyped-call]
    return [one.view(len(outs), *outs.shape[2:]) for one in sums]


def _plain(outs: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    # A few weights a row: a reduction is several times as fast here as a batched product of tiny matrices.
    return [(one.unsqueeze(-1) * outs).sum(1) for one in weights]


class _Sums(torch.autograd.Function):
    """The sums with as few tensors of the size of ``outs`` as can be.

    One buffer serves all products: getting the memory of a new one from the system took as long as filling it.
    """

    @staticmethod
    def forward(ctx: Any, outs: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(outs, *weights)
        ctx.set_materialize_grads(False)
        room = torch.empty_like(outs)
        return tuple(torch.mul(one.unsqueeze(-1), outs, out=room).sum(1) for one in weights)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        outs, *weights = ctx.saved_tensors
        # A gradient of the gradient wants every product for itself.
        room = None if torch.is_grad_enabled() else torch.empty_like(outs)
        of_outs: Tensor | None = None
        of_weights: list[Tensor | None] = []
        for slope, one, wanted in zip(slopes, weights, ctx.needs_input_grad[1:], strict=True):
            if slope is None:
                of_weights.append(None)
                continue
            slope, one = slope.unsqueeze(1), one.unsqueeze(-1)
            of_weights.append(torch.mul(slope, outs, out=room).sum(-1) if wanted else None)
            if ctx.needs_input_grad[0]:
                target = None if room is None else of_outs
                of_outs = slope * one if of_outs is None else torch.addcmul(of_outs, slope, one, out=target)
        return (of_outs, *of_weights)
