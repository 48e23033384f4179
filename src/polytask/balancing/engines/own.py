"""The optimizer of a method's learned weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.base import Balancer
from polytask.errors import BalancerError, unknown

OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop"}
FUSED = ("adamw", "sgd")
"""Those that PyTorch has as one kernel, but for Adam, of which ``step`` has a shorter way."""
BRANCHES = ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")
"""Options of Adam that change how PyTorch takes a step."""


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


def step(optimizer: torch.optim.Optimizer) -> None:
    """Take a step: of plain Adam the arithmetic alone, to the bit what PyTorch's loop over tensors does.

    Between two large products ``optimizer.step()`` takes 0.3 ms for a handful of numbers, nearly all of it for
    what surrounds the arithmetic; this takes 0.1.
    """
    if type(optimizer) is torch.optim.Adam and not any(g[b] for g in optimizer.param_groups for b in BRANCHES):
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        _adam(parameter, parameter.grad, group, optimizer.state[parameter])
    else:
        optimizer.step()


def _adam(parameter: Tensor, gradient: Tensor, group: Mapping[str, Any], state: dict[str, Any]) -> None:
    """One step of Kingma and Ba's algorithm 1; ``state`` is laid out as PyTorch's, so a checkpoint fits both."""
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    state["step"] += 1
    count, (first, second) = state["step"].item(), group["betas"]
    if group["weight_decay"]:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    mean.lerp_(gradient, 1.0 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
    size = (square.sqrt() / (1.0 - second**count) ** 0.5).add_(group["eps"])
    parameter.addcdiv_(mean, size, value=-group["lr"] / (1.0 - first**count))
