"""Parameters that are cut over processes: gradient methods cannot see a whole gradient of theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from polytask.errors import BalancerError

_PIECES = (
    ("torch.distributed.tensor", "DTensor"),
    ("torch.distributed.fsdp", "FlatParameter"),
)
_WRAPPER = ("torch.distributed.fsdp", "FullyShardedDataParallel")


def refuse_sharded(method: str, parameters: Iterable[nn.Parameter], module: object = None) -> None:
    """Refuse parameters of which each process holds a piece (FSDP).

    Args:
        method: Name of the method, for the error.
        parameters: The shared parameters.
        module: The model, if it is one: a wrapper may hide that its parameters are pieces.

    Raises:
        BalancerError: says what to use instead.
    """
    # What has not been imported has not cut anything, and importing it takes long.
    pieces = tuple(kind for path in _PIECES if (kind := _imported(*path)) is not None)
    wrapper = _imported(*_WRAPPER)
    wrapped = (
        wrapper is not None and isinstance(module, nn.Module) and any(isinstance(m, wrapper) for m in module.modules())
    )
    if wrapped or (pieces and any(isinstance(p, pieces) for p in parameters)):
        raise BalancerError(
            f"'{method}' needs each task's gradient of whole parameters, but these are cut over processes (FSDP). Keep "
            "whole copies of the model on every process (torchrun with polytask's own training, or DDP without its "
            "gradient synchronisation), or use a loss weighting such as 'uncertainty'."
        )


def _imported(path: str, name: str) -> Any:
    return getattr(sys.modules.get(path), name, None)
