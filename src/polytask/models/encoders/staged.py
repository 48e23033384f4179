"""Encoders that run stage by stage, so that towers can go on in lockstep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.data.batch import map_tensors
from polytask.errors import ShapeError, unknown


class Staged(nn.Module):
    """An encoder in stages: ``end(stage_n(... stage_1(begin(inputs))))``.

    A subclass sets ``stages`` (modules, each from tensor to tensor) and ``channel_dims`` (for each stage
    the dimension of its output's channels: 1 for convolutions, -1 for dense layers and transformers).
    """

    stages: nn.ModuleList
    channel_dims: tuple[int, ...]

    def begin(self, inputs: Any) -> Tensor:
        """What the first stage reads."""
        return inputs  # type: ignore[no-any-return]

    def end(self, state: Tensor) -> Tensor:
        """Features from what the last stage returns."""
        return state

    def forward(self, inputs: Any) -> Tensor:
        """Features of ``inputs``."""
        state = self.begin(inputs)
        for stage in self.stages:
            state = stage(state)
        return self.end(state)


class _Chain(Staged):
    """Stages of a user's module."""

    def __init__(self, before: list[nn.Module], stages: list[nn.Module], after: list[nn.Module], dims: tuple[int, ...]):
        super().__init__()
        self.before, self.after = nn.Sequential(*before), nn.Sequential(*after)
        self.stages, self.channel_dims = nn.ModuleList(stages), dims

    def begin(self, inputs: Any) -> Tensor:
        return self.before(inputs)  # type: ignore[no-any-return]

    def end(self, state: Tensor) -> Tensor:
        return self.after(state)  # type: ignore[no-any-return]


def staged(
    module: nn.Module,
    paths: Sequence[str] = (),
    *,
    example: Any,
    before: Sequence[str | nn.Module] = (),
    after: Sequence[str | nn.Module] = (),
) -> Staged:
    """Make a staged encoder from a module whose parts run one after the other.

    The parts keep their parameters. An example is run through the module and through the parts; each
    part has to be called once, in order, and both results have to agree.

    Args:
        module: The encoder.
        paths: Submodules that are the stages, such as ``["layer1", "layer2"]``; all children of an
            ``nn.Sequential`` if left out.
        example: Inputs of a few rows.
        before: Submodules, or modules such as ``nn.Flatten(1)`` for what code does, before the first stage.
        after: The same after the last stage.

    Returns:
        The staged encoder, in the mode (training or not) of ``module``.

    Raises:
        ShapeError: for an unknown path, no stage, or parts that do not make up the module.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> staged(net, example=torch.zeros(2, 3)).channel_dims
        (-1, -1, -1)
    """
    named = dict(module.named_modules())
    if not paths and isinstance(module, nn.Sequential):
        paths = [name for name, _ in module.named_children()]
    if not paths:
        raise ShapeError(f"Name the stages of {type(module).__name__}: paths of submodules such as 'layer1'.")
    found = [[_part(part, named) for part in group] for group in (before, paths, after)]
    watched = [part for group in found for part in group if any(part is known for known in named.values())]
    was_training = module.training
    module.eval()
    try:
        whole, called = _watch(module, watched, example)
        names = {id(part): name for name, part in named.items()}
        if [id(part) for part in called] != [id(part) for part in watched]:
            order = [names[id(part)] for part in called]
            raise ShapeError(
                f"Each stage has to be called once, in order. Asked for {[names[id(p)] for p in watched]}; "
                f"the module calls {order}."
            )
        return _checked(found, example, whole, type(module).__name__).train(was_training)
    finally:
        module.train(was_training)


def _part(part: str | nn.Module, named: dict[str, nn.Module]) -> nn.Module:
    if isinstance(part, nn.Module):
        return part
    if part not in named or not part:
        raise ShapeError(unknown("stage", part, [name for name in named if name]))
    return named[part]


def _watch(module: nn.Module, parts: list[nn.Module], example: Any) -> tuple[Tensor, list[nn.Module]]:
    called: list[nn.Module] = []
    unique = {id(part): part for part in parts}.values()
    handles = [part.register_forward_pre_hook(lambda part, _: called.append(part)) for part in unique]
    try:
        with torch.no_grad():
            return module(example), called
    finally:
        for handle in handles:
            handle.remove()


def _checked(found: list[list[nn.Module]], example: Any, whole: Tensor, name: str) -> Staged:
    """The chain of the parts, if it computes what the module computes."""
    before, stages, after = found
    advice = (
        f"These parts alone do not make up {name}. Name what runs before and after the stages with before= and "
        "after= (modules such as nn.Flatten(1) stand for code), or write a subclass of Staged."
    )
    dims: list[int] = []
    # A private copy, because a module could change its inputs in place.
    state = map_tensors(example, torch.clone)
    try:
        with torch.no_grad():
            for part in before:
                state = part(state)
            for part in stages:
                state = part(state)
                dims.append(1 if state.dim() > 3 else -1)
            for part in after:
                state = part(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ShapeError(f"{advice} Running them raised: {error}") from error
    if state.shape != whole.shape or not torch.allclose(state, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max())):
        raise ShapeError(f"{advice} Their result differs from the module's.")
    return _Chain(before, stages, after, tuple(dims))
