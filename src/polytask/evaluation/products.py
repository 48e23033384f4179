"""Matrix products of linear layers where nothing is trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

NARROW = 64
FEW = 256
"""Layers below this width, and batches below this number of rows, lose more by copies than they gain."""


def fast_products() -> AbstractContextManager[object]:
    """A context in which linear layers use the library that is the faster one on this machine, without gradients.

    PyTorch multiplies float32 matrices by MKL, which leaves half the width of AMD's processors with AVX-512 unused.
    oneDNN, which PyTorch has as well, uses all of it. The two differ by rounding, if at all. Nothing changes on other
    machines, in the training, and where ``torch.backends.mkldnn.enabled`` is False.
    """
    return _OneDNN() if _is_faster() and torch.backends.mkldnn.enabled else nullcontext()


@functools.cache
def _is_faster() -> bool:
    backends = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    processor = Path("/proc/cpuinfo")
    wide = backends.cpu.get_cpu_capability() == "AVX512" and processor.exists()
    return wide and "AuthenticAMD" in processor.read_text(encoding="utf-8")


class _OneDNN(TorchFunctionMode):
    """Products of wide layers by oneDNN; everything else as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is linear and not kwargs and _pays(*args):
            inputs, *layer = args
            return func(inputs.to_mkldnn(), *layer).to_dense()
        return func(*args, **(kwargs or {}))


def _pays(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = all(of.dtype == torch.float32 and of.device.type == "cpu" for of in (inputs, weight))
    large = min(weight.shape) >= NARROW and inputs.numel() >= FEW * inputs.shape[-1] and inputs.dim() in (2, 3)
    changed = torch.is_autocast_enabled("cpu") or torch.is_grad_enabled() or torch.compiler.is_compiling()
    return plain and large and not changed
