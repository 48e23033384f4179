"""Multi-task attention network: one trunk, whose stages each task reads through masks of its own."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask import registry
from polytask.errors import RecipeError, ShapeError
from polytask.sharing.base import NeedsExample, Sharing, Tap, feature_shape, identity
from polytask.sharing.conditioned import stage_outputs, stage_paths
from polytask.sharing.layers import per_task, task_key
from polytask.sharing.levels import Memo
from polytask.sharing.parts import in_stages, is_staged, quietly, stage_numbers


class MTAN(Sharing):
    r"""One trunk, and for each task masks in [0, 1] over what its stages return.

    With :math:`p^{(j)}` the output of the j-th named stage, task k has

    .. math:: a_k^{(j)} = h_k^{(j)}(g_k^{(j)}([p^{(j)}, f^{(j)}(\hat a_k^{(j-1)})])), \qquad
              \hat a_k^{(j)} = a_k^{(j)} \odot p^{(j)},

    without the second input at the first stage. g and h are maps over the channels at every position, with a
    batch norm each, a ReLU after g and a sigmoid after h. f is shared by all tasks: a convolution of 3 x 3
    with batch norm and ReLU, then a maximum over positions down to the size of the next stage; a dense
    layer and ReLU for vectors and sequences.

    The last :math:`\hat a_k` goes through the rest of the encoder, once for each task, if there are stages behind
    the last one named. A stage is taken as one piece: where the paper's mask reads an inner layer
    of a block, this one reads the block's output.

    Up to the last named stage a staged encoder or an ``nn.Sequential`` runs once for all tasks. Of any other module
    only the named stages are known, and not how to go on from the last one. There features of m tasks cost m
    forwards of the trunk, in each of which the last stage's output is the task's :math:`\hat a_k`.

    Args:
        encoder: The trunk, any module.
        stages: The stages that tasks read. Of a staged encoder or an ``nn.Sequential`` by name or number, all if
            None; of any other module as paths of submodules, such as ``["layer1", "layer2"]``.
        reduction: How many times narrower than the stage g's output is.

    Raises:
        ShapeError: for an unknown stage, or none where the encoder does not say what its stages are; at ``setup``,
            for a stage that is not called once, or stages whose outputs cannot be fed to each other.
        RecipeError: for no stage, or a reduction below 1.

    Example:
        >>> layers = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 6), nn.ReLU()))
        >>> sharing = MTAN(layers)
        >>> sharing.setup(["a", "b"], torch.zeros(2, 3))
        {'a': (6,), 'b': (6,)}
        >>> sharing(torch.zeros(5, 3), ["b"])["b"].shape
        torch.Size([5, 6])

    Reference:
        Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention" (CVPR 2019), equations 1 and 2.
    """

    supports_features: ClassVar[bool] = False

    def __init__(self, encoder: nn.Module, stages: Sequence[str | int] | None = None, *, reduction: int = 1):
        super().__init__()
        if stages is not None and not stages:
            raise RecipeError("'mtan' needs at least one stage that tasks read: stages is empty.")
        # Stages by number where the trunk can be taken apart, by path where hooks have to do.
        self.at: tuple[int, ...] = ()
        self.paths: tuple[str, ...] = ()
        if is_staged(encoder) or type(encoder) is nn.Sequential:
            self.at = stage_numbers(encoder, stages)
        else:
            self.paths = tuple(stage_paths(encoder, cast(Sequence[str] | None, stages)))
        if isinstance(reduction, bool) or not isinstance(reduction, int) or reduction < 1:
            raise RecipeError(f"reduction is {reduction!r}; it is a whole number from 1.")
        self.encoder, self.reduction = encoder, reduction
        self.masks = nn.ModuleDict()
        self.links = nn.ModuleList()
        self._seen = Memo()
        if type(self) is MTAN:
            named = None if stages is None else list(stages)
            registry.mark(self, "mtan", {"stages": named, "reduction": reduction})

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Build masks and links from what the stages return for the example; return each task's feature shape."""
        if example is None:
            raise NeedsExample(
                f"What the stages of {type(self.encoder).__name__} return is unknown until it runs. Pass "
                "MultiTaskModel(..., example=inputs_of_a_few_rows), or let fit build the model from its first batch."
            )
        read = self._watched(example) if self.paths else quietly(self.encoder, lambda: self._read(example))
        depths = [state.shape[_channel(state)] for state in read]
        self.links = nn.ModuleList(_link(a, b) for a, b in itertools.pairwise(read))
        self.masks = per_task({task: nn.ModuleList(self._masks(depths)) for task in tasks})
        return dict.fromkeys(tasks, feature_shape(self.encoder, example))

    def _watched(self, example: Any) -> list[Tensor]:
        """What the named stages return for the example, in the order of the trunk; hooks watch them from now on."""
        outputs = stage_outputs(self.encoder, self.paths, example)
        self.paths = tuple(outputs)
        for number, path in enumerate(self.paths):
            # A bound method in it, so that a copy of the trunk has hooks of its own.
            self.encoder.get_submodule(path).register_forward_hook(functools.partial(self._hook, number))
        return list(outputs.values())

    def _hook(self, number: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Attend to a stage while the trunk runs for a task; the last stage's output is replaced."""
        run = getattr(_running, "run", None)
        if run is None or run.sharing is not self:
            return None
        run.attended = self._mask(run.task, number, output, run.attended)
        return run.attended if number == len(self.paths) - 1 else None

    def _masks(self, depths: Sequence[int]) -> list[nn.Module]:
        before = [0, *depths[:-1]]
        # A link hands on as many channels as the stage that it leads to has.
        return [
            _mask(depth * (2 if prior else 1), depth, self.reduction)
            for depth, prior in zip(depths, before, strict=True)
        ]

    def _read(self, inputs: Any) -> list[Tensor]:
        """What the named stages return."""
        staged = in_stages(self.encoder)
        state, read = staged.begin(inputs), []
        for number in range(self.at[-1] + 1):
            state = staged.stages[number](state)
            if number in self.at:
                read.append(state)
        return read

    def _end(self, state: Tensor) -> Tensor:
        staged = in_stages(self.encoder)
        for stage in list(staged.stages)[self.at[-1] + 1 :]:
            state = stage(state)
        return staged.end(state)

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``."""
        tap({})  # tasks read several depths of the trunk
        if self.paths:
            return {task: self._run(inputs, task) for task in tasks}
        read = self._read(inputs)
        return {task: self._end(self._attend(task, read)) for task in tasks}

    def _run(self, inputs: Any, task: str) -> Tensor:
        """Features of one task from a run of the trunk with hooks."""
        before = getattr(_running, "run", None)
        _running.run = _Run(self, task)
        try:
            return cast(Tensor, self.encoder(inputs))
        finally:
            _running.run = before

    def _attend(self, task: str, read: list[Tensor]) -> Tensor:
        attended: Tensor | None = None
        for number, state in enumerate(read):
            attended = self._mask(task, number, state, attended)
        return cast(Tensor, attended)

    def _mask(self, task: str, number: int, state: Tensor, attended: Tensor | None) -> Tensor:
        """A stage's output, masked by what the task makes of it and of the stage before."""
        dim = _channel(state)
        seen = state if attended is None else torch.cat([state, self.links[number - 1](attended, state)], dim)
        last = seen.movedim(dim, -1)
        mask = cast(nn.ModuleList, self.masks[task_key(task)])[number](last.flatten(0, -2))
        mask = mask.view(*last.shape[:-1], -1)
        if self.training or not torch.compiler.is_compiling():
            self._seen[task, number] = mask.detach().float().flatten(0, -2).mean(0)
        return cast(Tensor, state * mask.movedim(-1, dim))

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's masks."""
        return self.masks[task_key(task)].parameters() if self.masks else ()

    def inspect(self) -> dict[str, Tensor]:
        """``mask of k after stage j``: its means over rows and positions in the last forward, ``[channels]``."""
        names = self.paths or [f"stage {number + 1}" for number in self.at]
        return {f"mask of {task} after {names[j]}": mask for (task, j), mask in self._seen.items()}


@dataclass
class _Run:
    """A run of a trunk with hooks: for which task, and what it made of the stages so far."""

    sharing: MTAN
    task: str
    attended: Tensor | None = None


# The run of this thread. A server may run several threads at once, each for a task of its own.
_running = threading.local()


def _channel(state: Tensor) -> int:
    """The channels' dimension: 1 of maps, the last of vectors and sequences."""
    return 1 if state.dim() > 3 else -1


def _mask(width: int, depth: int, reduction: int) -> nn.Sequential:
    # Over rows and positions side by side, these are the paper's convolutions of 1 x 1 with their norms.
    narrow = math.ceil(depth / reduction)
    inner = (nn.Linear(width, narrow), nn.BatchNorm1d(narrow), nn.ReLU())
    return nn.Sequential(*inner, nn.Linear(narrow, depth), nn.BatchNorm1d(depth), nn.Sigmoid())


class _MapLink(nn.Module):
    """From one stage's maps to the size of the next one's."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, attended: Tensor, target: Tensor) -> Tensor:
        maps = self.norm(self.conv(attended)).relu()
        return maps if maps.shape == target.shape else functional.adaptive_max_pool2d(maps, target.shape[2:])


class _DenseLink(nn.Module):
    """From one stage's channels to the next one's, at every position."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.linear = nn.Linear(before, after)

    def forward(self, attended: Tensor, target: Tensor) -> Tensor:
        return self.linear(attended).relu()  # type: ignore[no-any-return]


def _link(before: Tensor, after: Tensor) -> nn.Module:
    alike = before.dim() == after.dim() and before.dim() in (2, 3, 4)
    if not alike or (before.dim() == 3 and before.shape[1] != after.shape[1]):
        raise ShapeError(
            f"'mtan' cannot feed a stage with outputs {tuple(before.shape[1:])} to one with "
            f"{tuple(after.shape[1:])}, both without the rows. "
            "Name stages that are all vectors, all maps, or sequences of one length."
        )
    kind = _MapLink if before.dim() == 4 else _DenseLink
    return kind(before.shape[_channel(before)], after.shape[_channel(after)])
