"""Optimizers, learning-rate schedules and penalties."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polytask import registry
from polytask.errors import RecipeError, unknown
from polytask.training.settings import OptimizerSettings, PenaltySettings, ScheduleSettings, TrainingSettings

OPTIMIZERS = {"adamw": "torch.optim:AdamW", "adam": "torch.optim:Adam", "sgd": "torch.optim:SGD"}


def parameter_groups(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, factors: Mapping[int, float] | None = None
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters: by the factor of their rate, and by what decays.

    Matrices and larger decay, vectors (biases, normalisation) do not.

    Args:
        parameters: All parameters.
        lr: The rate that factors multiply.
        weight_decay: Of the matrices; with 0, nothing is said of decay.
        factors: By a parameter's ``id``; 1 for the others.
    """
    by_factor: dict[float, list[nn.Parameter]] = {}
    for p in parameters:
        if p.requires_grad:
            by_factor.setdefault((factors or {}).get(id(p), 1.0), []).append(p)
    groups: list[dict[str, Any]] = []
    for factor, mine in by_factor.items():
        rate = {"lr": lr * factor} if factors else {}
        if not weight_decay:
            groups.append({"params": mine, **rate})
            continue
        groups.append({"params": [p for p in mine if p.dim() > 1], "weight_decay": weight_decay, **rate})
        groups.append({"params": [p for p in mine if p.dim() <= 1], "weight_decay": 0.0, **rate})
    return [group for group in groups if group["params"]]


def build_optimizer(
    settings: OptimizerSettings,
    parameters: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    factors: Mapping[int, float] | None = None,
) -> Optimizer:
    """An optimizer over the trainable parameters; ``factors`` of their rates go by ``id``.

    Raises:
        RecipeError: for an unknown optimizer or one of its options.
    """
    path = OPTIMIZERS.get(settings.name.lower(), settings.name)
    if ":" not in path and "." not in path:
        raise RecipeError(unknown("optimizer", settings.name, OPTIMIZERS) + " Or give an import path 'pkg.mod:Class'.")
    factory = registry.resolve(path)
    options = dict(settings.options)
    registry.check_options(f"Optimizer '{settings.name}'", factory, options, {"params": None, "lr": lr})
    groups = parameter_groups(parameters, lr, weight_decay, factors)
    if not groups:
        raise RecipeError("No parameter is trainable: every one has requires_grad=False.")
    if weight_decay and "weight_decay" not in inspect.signature(factory).parameters:
        raise RecipeError(f"Optimizer '{settings.name}' takes no weight_decay. Set training.weight_decay to 0.")
    if settings.name.lower() in OPTIMIZERS and not {"fused", "foreach"} & options.keys():
        # One fused kernel a step instead of several a parameter; it needs floating tensors on one kind of device.
        options["fused"] = all(
            p.is_floating_point() and p.device.type in ("cpu", "cuda") for group in groups for p in group["params"]
        )
    optimizer: Optimizer = factory(groups, lr=lr, **options)
    return optimizer


def rate_factor(settings: ScheduleSettings, total_steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by in step ``step`` (from 0) of ``total_steps``.

    Example:
        >>> factor = rate_factor(ScheduleSettings("linear", warmup=2), 10)
        >>> [round(factor(step), 3) for step in (0, 1, 2, 6)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * total_steps
    if not 0 <= warmup <= total_steps:
        raise RecipeError(f"training.schedule.warmup is {settings.warmup}, but the run has {total_steps} steps.")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / math.ceil(warmup)
        progress = (step - warmup) / max(1.0, total_steps - warmup)
        return _DECAYS[settings.name](settings, min(1.0, progress))

    return factor


def _exponential(settings: ScheduleSettings, progress: float) -> float:
    if settings.end <= 0:
        raise RecipeError("training.schedule.end has to be above 0 for the exponential schedule, such as 0.01.")
    return float(settings.end**progress)


_DECAYS: dict[str, Callable[[ScheduleSettings, float], float]] = {
    "constant": lambda settings, progress: 1.0,
    "cosine": lambda settings, progress: settings.end + (1 - settings.end) * (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda settings, progress: settings.end + (1 - settings.end) * (1 - progress),
    "step": lambda settings, progress: settings.factor ** sum(progress >= at for at in settings.at),
    "exponential": _exponential,
}


class Schedule:
    """Sets the learning rates of a step from its number alone, so that a resume needs no more than that.

    PyTorch's schedulers count steps by themselves, which a resume would have to set right again.

    Args:
        optimizer: Whose rates; those that it has now are multiplied.
        factor: By what in each step (from 0).

    Attributes:
        rates: Of the optimizer's groups, before they are multiplied.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = Schedule(optimizer, lambda step: 0.1**step)
        >>> schedule.set(1), optimizer.param_groups[0]["lr"]
        (0.05, 0.05)
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]):
        self.optimizer, self.factor = optimizer, factor
        self.rates: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.set(0)

    def set(self, step: int) -> float:
        """Set the rates of step ``step``; the largest of them."""
        factor = self.factor(step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return max(self.rates) * factor


def build_schedule(settings: TrainingSettings, optimizer: Optimizer, total_steps: int) -> Schedule:
    """The learning-rate schedule of a run of ``total_steps`` steps."""
    return Schedule(optimizer, rate_factor(settings.schedule_settings, total_steps))


def drop_gradients(optimizer: Optimizer) -> None:
    """Set all ``.grad`` to None, as ``optimizer.zero_grad()`` does for ten times the price."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def parameter_penalty(settings: PenaltySettings, parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """L1, L2 and elastic-net penalties of the weights (vectors such as biases are left out); None if all are 0.

    ``l1 sum|w| + l2/2 sum w^2 + elastic_net (ratio sum|w| + (1 - ratio)/2 sum w^2)``, differentiable.

    Example:
        >>> w = nn.Parameter(torch.tensor([[1.0, -2.0]]))
        >>> parameter_penalty(PenaltySettings(l1=1.0, l2=2.0), [w]).item()
        8.0
    """
    first = settings.l1 + settings.elastic_net * settings.ratio
    second = settings.l2 + settings.elastic_net * (1 - settings.ratio)
    if not first and not second:
        return None
    weights = [p for p in parameters if p.requires_grad and p.dim() > 1]
    terms = [first * torch.stack([w.abs().sum() for w in weights]).sum()] if first else []
    terms += [second / 2 * torch.stack([w.square().sum() for w in weights]).sum()] if second else []
    return torch.stack(terms).sum() if weights else None
