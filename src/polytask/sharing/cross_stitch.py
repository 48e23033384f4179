"""Cross-stitch networks: towers that read each other at learned rates."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.errors import RecipeError
from polytask.sharing.base import Sharing, Tap, feature_shape, identity
from polytask.sharing.layers import task_key
from polytask.sharing.parts import in_stages, stage_numbers
from polytask.sharing.towers import along, stage_channels, tail_parameters, towers


class CrossStitch(Sharing):
    r"""One tower a task, joined after the stages by units that mix the towers' activations.

    After a stage, tower k goes on with

    .. math:: \tilde x_k = \sum_j \alpha_{kj} \odot x_j,

    where :math:`x_j` is what tower j's stage returned and :math:`\alpha_{kj}` is one number a channel, or one
    in all. At the start :math:`\alpha_{kk}` is ``same``, and the rest of 1 is spread over the others.

    A forward for one task runs all towers up to the last unit, and that task's alone from there on.

    Args:
        encoder: A staged encoder, or an ``nn.Sequential``, that towers are copies of.
        stages: After which stages there is a unit, by name or number; all if None.
        per_channel: Whether a unit has numbers for every channel.
        same: How much of itself a tower keeps at the start, from 0 to 1.
        reset: Whether all towers but the first draw initial weights of their own. False is for towers that
            all start from given weights.

    Raises:
        ShapeError: for an encoder that does not run in stages, or an unknown stage.
        RecipeError: for no stage, or ``same`` out of range.

    Example:
        >>> layers = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        >>> sharing = CrossStitch(layers)
        >>> sharing.setup(["a", "b"], torch.zeros(2, 3))
        {'a': (4,), 'b': (4,)}
        >>> sharing(torch.zeros(5, 3), ["b"])["b"].shape
        torch.Size([5, 4])

    Reference:
        Misra et al., "Cross-Stitch Networks for Multi-task Learning" (CVPR 2016), equation 1.
    """

    supports_features: ClassVar[bool] = False

    def __init__(
        self,
        encoder: nn.Module,
        stages: Sequence[str | int] | None = None,
        *,
        per_channel: bool = True,
        same: float = 0.9,
        reset: bool = True,
    ):
        super().__init__()
        self.at = stage_numbers(encoder, stages)
        if not self.at:
            raise RecipeError("'cross_stitch' needs at least one stage after which towers are joined: stages is empty.")
        if not 0 <= same <= 1:
            raise RecipeError(f"same is {same}; it is the share of itself that a tower keeps, from 0 to 1.")
        self.per_channel, self.same, self.reset = per_channel, same, reset
        self.towers = nn.ModuleDict({"first": encoder})
        self.units = nn.ModuleList()
        self._tasks: tuple[str, ...] = ()
        self._tail: frozenset[str] = frozenset()
        if type(self) is CrossStitch:
            options = {"per_channel": per_channel, "same": same, "reset": reset}
            registry.mark(self, "cross_stitch", {"stages": None if stages is None else list(stages), **options})

    @property
    def encoder(self) -> nn.Module:
        """The encoder that was given, which is the first task's tower."""
        return next(iter(self.towers.values()))

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Make the towers and units; return each task's feature shape."""
        shape = feature_shape(self.encoder, example)
        channels = stage_channels(self.encoder, example)
        self._tail = tail_parameters(self.encoder, self.at[-1], example)
        self.towers = towers(self.encoder, tasks, self.reset, "'cross_stitch'")
        self.units = nn.ModuleList(
            Stitch(tasks, channels[number][0] if self.per_channel else 1, channels[number][1], self.same)
            for number in self.at
        )
        self._tasks = tuple(tasks)
        return dict.fromkeys(tasks, shape)

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``."""
        tap({})  # no common features
        parts = {task: in_stages(self.towers[task_key(task)]) for task in self._tasks}
        states = {task: part.begin(inputs) for task, part in parts.items()}
        units = dict(zip(self.at, self.units, strict=True))
        for number in range(len(next(iter(parts.values())).stages)):
            states = {task: parts[task].stages[number](state) for task, state in states.items()}
            if number in units:
                # Behind the last unit the towers that are not asked have nothing more to give.
                states = units[number](states, tasks if number == self.at[-1] else self._tasks)
        return {task: parts[task].end(states[task]) for task in tasks}

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """The task's row of the last unit, and its tower from there on."""
        yield from (p for name, p in self.towers[task_key(task)].named_parameters() if name in self._tail)
        if self.units:
            yield cast(Stitch, self.units[-1]).row(task)

    def inspect(self) -> dict[str, Tensor]:
        """Each unit's rates ``[tasks, tasks]``, means over channels: row k is what tower k reads."""
        units = zip(self.at, self.units, strict=False)
        return {f"stitch {number + 1}": cast(Stitch, unit).rates().mean(-1) for number, unit in units}


class Stitch(nn.Module):
    """A cross-stitch unit.

    Args:
        tasks: Names of the tasks.
        channels: Numbers a pair of towers has.
        dim: The channels' dimension in the activations.
        same: Initial rate of a tower's own activations.
    """

    def __init__(self, tasks: Sequence[str], channels: int, dim: int, same: float):
        super().__init__()
        self.tasks, self.dim = tuple(tasks), dim
        others = (1 - same) / max(1, len(tasks) - 1)
        # One parameter a task, because a row of the last unit belongs to its task alone.
        self.rows = nn.ParameterDict()
        for number, task in enumerate(tasks):
            rates = torch.full((len(tasks), channels), others)
            rates[number] = same if len(tasks) > 1 else 1.0
            self.rows[task_key(task)] = nn.Parameter(rates)

    def row(self, task: str) -> nn.Parameter:
        """What one tower reads of all towers, ``[tasks, channels]``."""
        return cast(nn.Parameter, self.rows[task_key(task)])

    def rates(self) -> Tensor:
        """All rates ``[tasks, tasks, channels]``, without a graph."""
        return torch.stack([self.row(task).detach() for task in self.tasks])

    def forward(self, states: dict[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """The mixed activations of ``tasks`` from those of all towers."""
        return {task: self._mixed(self.row(task), states) for task in tasks}

    def _mixed(self, row: Tensor, states: dict[str, Tensor]) -> Tensor:
        terms = [along(row[j], states[other], self.dim) * states[other] for j, other in enumerate(self.tasks)]
        return functools.reduce(torch.add, terms)
