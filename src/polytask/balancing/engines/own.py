"""The optimizer of a method's learned weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from polytask.balancing.base import Balancer
from polytask.errors import BalancerError, unknown

OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop"}
FUSED = ("adam", "adamw", "sgd")
"""Those that PyTorch has as one kernel."""


def own_optimizer(balancer: Balancer, given: Mapping[str, Any] | None) -> torch.optim.Optimizer | None:
    """The optimizer of a method's learned weights; None if it learns none.

    Raises:
        BalancerError: for an unknown optimizer or option, or one that would have nothing to do.
    """
    learned = list(balancer.parameters())
    if not learned:
        if given is not None:
            raise BalancerError(
                f"'{type(balancer).__name__}' has no learned weights, so 'optimizer' would do nothing. Leave it out."
            )
        return None
    options = {"name": "adam", "lr": balancer.own_rate, **(given or {})}
    name = str(options.pop("name")).lower()
    if name not in OPTIMIZERS:
        raise BalancerError(f"optimizer: {unknown('optimizer', name, OPTIMIZERS)}")
    # AdamW decays by default; decay would pull learned weights towards a value that means nothing.
    options.setdefault("weight_decay", 0.0)
    if name in FUSED and not {"fused", "foreach"} & options.keys():
        # One kernel in place of eight; a step of a small model feels them.
        options["fused"] = all(p.device.type in ("cpu", "cuda") for p in learned)
    try:
        made: torch.optim.Optimizer = getattr(torch.optim, OPTIMIZERS[name])(learned, **options)
    except TypeError as error:
        raise BalancerError(f"optimizer '{name}': {error}.") from error
    return made
