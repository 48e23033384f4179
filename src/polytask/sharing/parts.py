"""Encoders in parts: what runs before the stages, the stages, and what runs after them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from polytask.errors import ShapeError, unknown
from polytask.sharing.base import NeedsExample


class InStages(Protocol):
    """What a staged encoder offers; ``polytask.models.encoders.Staged`` is one."""

    stages: Any
    channel_dims: tuple[int, ...]

    def begin(self, inputs: Any) -> Tensor:
        """What the first stage reads."""

    def end(self, state: Tensor) -> Tensor:
        """Features from what the last stage returns."""


def is_staged(encoder: nn.Module) -> bool:
    """Whether an encoder runs in stages that can be taken apart.

    Example:
        >>> is_staged(nn.Linear(2, 2))
        False
    """
    return all(hasattr(encoder, name) for name in ("begin", "stages", "end", "channel_dims"))


class Tail(nn.Module):
    """The stages of an encoder and its end, without its beginning.

    Args:
        encoder: A staged encoder.
        start: Number of the first stage that belongs to the tail.
    """

    def __init__(self, encoder: nn.Module, start: int = 0):
        super().__init__()
        self.inner, self.start = encoder, start

    def forward(self, state: Tensor) -> Tensor:
        """Features from what stage ``start`` reads."""
        encoder = cast(InStages, self.inner)
        for stage in encoder.stages[self.start :]:
            state = stage(state)
        return encoder.end(state)


@dataclass(frozen=True)
class Block:
    """A part of an encoder that experts copy.

    Args:
        module: Its code, from tensor to tensor.
        names: Its own parameters and buffers; None if all of the module's are.
    """

    module: nn.Module
    names: frozenset[str] | None = None


@dataclass(frozen=True)
class Parts:
    """An encoder taken apart.

    Args:
        encoder: A copy that keeps only the weights that stay shared: those of a staged encoder's beginning.
        blocks: What experts copy, in order.
    """

    encoder: nn.Module
    blocks: tuple[Block, ...]

    def begin(self, inputs: Any) -> Any:
        """What the first block reads."""
        return begun(self.encoder, inputs)


def begun(encoder: nn.Module, inputs: Any) -> Any:
    """What an encoder's stages read; the inputs themselves if it has no stages."""
    return cast(InStages, encoder).begin(inputs) if is_staged(encoder) else inputs


def take_apart(encoder: nn.Module, example: Any | None, cuts: Sequence[int] = ()) -> Parts:
    """Split an encoder into its beginning and blocks of stages.

    Args:
        encoder: Any module; only a staged one has a beginning, and can be cut.
        example: Inputs of a few rows, or None.
        cuts: Numbers of the stages before which it is cut; ``()`` gives one block.

    Raises:
        NeedsExample: if only a run can tell which weights belong to the beginning.
    """
    if not is_staged(encoder) and not cuts:
        return Parts(_without(encoder, {id(t) for t in _tensors(encoder).values()}), (Block(encoder),))
    staged = in_stages(encoder)
    stages = list(staged.stages)
    bounds = [0, *cuts, len(stages)]
    own = after_begin(encoder, stages, example)
    blocks = [Block(nn.Sequential(*stages[a:b])) for a, b in itertools.pairwise(bounds[:-1])]
    last = bounds[-2]
    if _ends_plainly(staged):
        blocks.append(Block(nn.Sequential(*stages[last:])))
    else:
        early = {id(t) for stage in stages[:last] for t in _tensors(stage).values()}
        tail = Tail(encoder, last)
        names = frozenset(n for n, t in _tensors(tail).items() if id(t) in own and id(t) not in early)
        blocks.append(Block(tail, names))
    return Parts(_without(encoder, own), tuple(blocks))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _ends_plainly(encoder: InStages) -> bool:
    """Whether ``end`` hands on what it gets."""
    probe = torch.zeros(2, 2)
    try:
        return encoder.end(probe) is probe
    except (RuntimeError, IndexError, ValueError):  # it reads maps, so it does something
        return False


def after_begin(encoder: nn.Module, stages: Sequence[nn.Module], example: Any | None) -> set[int]:
    """Ids of the weights that stages and end use.

    Raises:
        NeedsExample: if only a run can tell which weights belong to the beginning.
    """
    own = {id(t) for stage in stages for t in _tensors(stage).values()}
    outside = {id(t): n for n, t in _tensors(encoder).items() if id(t) not in own}
    if not outside or _ends_plainly(in_stages(encoder)):
        return own
    if example is None:
        raise NeedsExample(
            f"Which weights of {type(encoder).__name__} belong to its beginning is unknown until it runs. Pass "
            "MultiTaskModel(..., example=inputs_of_a_few_rows), or let fit build the model from its first batch."
        )
    begun = {id(p) for part in _called(encoder, example) for p in _tensors(part).values()}
    direct = {id(t) for t in (*encoder.parameters(recurse=False), *encoder.buffers(recurse=False))}
    return own | (set(outside) - begun - direct)


def _called(encoder: nn.Module, example: Any) -> list[nn.Module]:
    """The modules that the encoder's beginning calls."""
    called: list[nn.Module] = []
    handles = [
        m.register_forward_pre_hook(lambda m, _: called.append(m)) for m in encoder.modules() if m is not encoder
    ]
    try:
        quietly(encoder, lambda: cast(InStages, encoder).begin(example))
    finally:
        for handle in handles:
            handle.remove()
    return called


def quietly(module: nn.Module, run: Callable[[], Any]) -> Any:
    """Run in evaluation mode without a graph, so that no statistic moves; modes are put back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            return run()
    finally:
        for part, mode in modes.items():
            part.training = mode


def _without(encoder: nn.Module, own: Collection[int]) -> nn.Module:
    """A copy without the weights whose ids are in ``own``."""
    kept = copy.deepcopy(encoder)
    for name in [n for n, t in _tensors(encoder).items() if id(t) in own]:
        path, _, last = name.rpartition(".")
        part = kept.get_submodule(path)
        registered: dict[str, Tensor | None] = part._parameters if last in part._parameters else part._buffers  # type: ignore[assignment]
        registered[last] = None
        if last == "num_batches_tracked":
            # Else a norm without its count asks for it when weights come from a file.
            setattr(part, "track_running_stats", False)  # noqa: B010 - a type checker knows modules only
    return kept


def stage_numbers(encoder: nn.Module, names: Sequence[str | int] | None) -> tuple[int, ...]:
    """The numbers of stages that are named; all of them for None.

    Args:
        encoder: A staged encoder, or an ``nn.Sequential``, whose children are its stages.
        names: Paths such as ``"layer1"`` or ``"stages.0"``, or numbers.

    Raises:
        ShapeError: if the encoder does not run in stages, or has no such stage.

    Example:
        >>> stage_numbers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ["1"])
        (1,)
    """
    stages = list(in_stages(encoder).stages)
    if names is None:
        return tuple(range(len(stages)))
    paths = {id(part): name for name, part in encoder.named_modules()}
    known = {paths.get(id(stage), str(number)): number for number, stage in enumerate(stages)}
    found = []
    for name in names:
        number = known.get(name) if isinstance(name, str) else name
        if number is None or isinstance(number, bool) or not 0 <= number < len(stages):
            choices = [*known, *map(str, range(len(stages)))] if isinstance(name, int) else known
            raise ShapeError(unknown(f"stage of {type(encoder).__name__}:", str(name), choices))
        found.append(number)
    return tuple(sorted(set(found)))


def in_stages(encoder: nn.Module) -> InStages:
    """The encoder as one that runs in stages.

    Raises:
        ShapeError: if it does not.
    """
    if is_staged(encoder):
        return cast(InStages, encoder)
    if type(encoder) is nn.Sequential and len(encoder):
        return _Children(encoder)
    raise ShapeError(
        f"{type(encoder).__name__} does not run in stages that can be taken apart. Use a staged encoder, an "
        "nn.Sequential, or make one of it with polytask.models.encoders.staged(module, ['layer1', ...], example=x)."
    )


class _Children:
    """The children of an ``nn.Sequential`` as stages."""

    def __init__(self, encoder: nn.Sequential):
        self.stages = list(encoder)
        # The channels of their outputs are told apart by the number of dimensions.
        self.channel_dims: tuple[int, ...] = ()

    def begin(self, inputs: Any) -> Tensor:
        """The inputs."""
        return inputs  # type: ignore[no-any-return]

    def end(self, state: Tensor) -> Tensor:
        """The last stage's output."""
        return state
