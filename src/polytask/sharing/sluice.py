"""Sluice networks: towers that read each other's subspaces, and tasks that read all of their tower's layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from polytask import registry
from polytask.errors import RecipeError, ShapeError
from polytask.sharing.base import Sharing, Tap, feature_shape, identity
from polytask.sharing.layers import per_task, task_key
from polytask.sharing.mixture import at_least
from polytask.sharing.parts import in_stages, stage_numbers
from polytask.sharing.towers import stage_shapes, tail_parameters, towers

Shapes = Sequence[tuple[tuple[int, ...], int]]


class Sluice(Sharing):
    r"""One tower a task; units mix subspaces of the towers' activations, and each task mixes its tower's layers.

    The channels of a stage's output :math:`h_k` in tower k are cut into S subspaces :math:`h_{k,s}` of equal
    width. After the stage, tower k goes on with

    .. math:: \tilde h_{k,s} = \sum_{j,t} \alpha_{(k,s),(j,t)} h_{j,t},

    where :math:`\alpha` has M S rows and columns for M towers. With L such stages the task reads

    .. math:: z_k = \sum_{l=1}^{L} \beta_{k,l} P_{k,l}(\tilde h_k^{(l)}).

    What the encoder has behind the last of these stages runs on :math:`z_k`. :math:`P_{k,l}` is the identity
    if stage l returns the shape of the last one, which the paper presumes. Else it is a linear map of the
    channels without bias, after an adaptive mean over positions where maps have another size. Sequences of
    another length, or another number of dimensions, are refused. With L = 1 there is no :math:`\beta`.

    The penalty ``orthogonality`` is :math:`\sum_{k,l} \sum_{s<t} |W_{k,l,s} W_{k,l,t}^T|_F^2`. The rows of
    :math:`W_{k,l,s}` are the weights that write the channels of subspace s: those of the stage's last linear
    or convolutional layer with as many outputs as the stage has channels. Stages without one add nothing.
    The penalty covers all towers, whichever tasks a forward is for.

    A forward for one task runs all towers up to the last unit, and that task's alone from there on.

    Args:
        encoder: A staged encoder, or an ``nn.Sequential``, that towers are copies of.
        stages: After which stages there is a unit, by name or number; all if None.
        subspaces: S; it divides the channels of these stages. With 1, units are scalar cross-stitch units.
        same: How much of itself a subspace keeps at the start, from 0 to 1; the others share the rest of 1.
        last: How much of the last layer a task reads at the start, from 0 to 1; the others share the rest of 1.
        reset: Whether all towers but the first draw initial weights of their own. False is for towers that
            all start from given weights.

    Raises:
        ShapeError: for an encoder that does not run in stages, or an unknown stage.
        RecipeError: for no stage, a number of subspaces below 1, or a share out of range.

    Example:
        >>> layers = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        >>> sharing = Sluice(layers)
        >>> sharing.setup(["a", "b"], torch.zeros(2, 3))
        {'a': (4,), 'b': (4,)}
        >>> sharing(torch.zeros(5, 3), ["b"])["b"].shape
        torch.Size([5, 4])
        >>> sharing.inspect()["alpha 1"].shape
        torch.Size([4, 4])

    Reference:
        Ruder, Bingel, Augenstein and Søgaard, "Latent Multi-Task Architecture Learning" (AAAI 2019), first
        "Sluice networks: Learning what to share between loosely related tasks" (2017): alpha, beta and the
        orthogonality constraint of the section on the architecture.
    """

    supports_features: ClassVar[bool] = False

    def __init__(
        self,
        encoder: nn.Module,
        stages: Sequence[str | int] | None = None,
        *,
        subspaces: int = 2,
        same: float = 0.9,
        last: float = 0.9,
        reset: bool = True,
    ):
        super().__init__()
        self.at = stage_numbers(encoder, stages)
        if not self.at:
            raise RecipeError("'sluice' needs at least one stage after which towers are joined: stages is empty.")
        self.subspaces = at_least(1, "subspaces", subspaces)
        for name, share in (("same", same), ("last", last)):
            if not 0 <= share <= 1:
                raise RecipeError(f"{name} is {share}; it is a share at the start, from 0 to 1.")
        self.same, self.last, self.reset = same, last, reset
        self.towers = nn.ModuleDict({"first": encoder})
        self.units = nn.ModuleList()
        self.mixtures = nn.ModuleDict()
        self._tasks: tuple[str, ...] = ()
        self._tail: frozenset[str] = frozenset()
        self._widths: tuple[int, ...] = ()
        if type(self) is Sluice:
            options = {"subspaces": subspaces, "same": same, "last": last, "reset": reset}
            registry.mark(self, "sluice", {"stages": None if stages is None else list(stages), **options})

    @property
    def encoder(self) -> nn.Module:
        """The encoder that was given, which is the first task's tower."""
        return next(iter(self.towers.values()))

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Make the towers, units and mixtures; return each task's feature shape.

        Raises:
            NeedsExample: if the stages' shapes are unknown until an example has been seen.
            ShapeError: if a stage's channels cannot be cut into subspaces, or its output not be mixed.
        """
        feature = feature_shape(self.encoder, example)
        every = stage_shapes(self.encoder, example)
        shapes = [every[number] for number in self.at]
        self._check(shapes)
        self._tail = tail_parameters(self.encoder, self.at[-1], example)
        self._widths = tuple(shape[dim] for shape, dim in shapes)
        self.towers = towers(self.encoder, tasks, self.reset, "'sluice'")
        self.units = nn.ModuleList(Unit(tasks, self.subspaces, dim, self.same) for _, dim in shapes)
        if len(self.at) > 1:
            self.mixtures = per_task({task: Mixture(shapes, self.last) for task in tasks})
        self._tasks = tuple(tasks)
        return dict.fromkeys(tasks, feature)

    def _check(self, shapes: Shapes) -> None:
        encoder, (final, final_dim) = type(self.encoder).__name__, shapes[-1]
        for number, (shape, dim) in zip(self.at, shapes, strict=True):
            if shape[dim] % self.subspaces:
                raise ShapeError(
                    f"Stage {number} of {encoder} has {shape[dim]} channels, which cannot be cut into {self.subspaces} "
                    "subspaces of equal width. Change the width, name other stages, or choose another 'subspaces'."
                )
            alike = len(shape) == len(final) and dim % len(shape) == final_dim % len(final)
            positions_last = dim % len(shape) == len(shape) - 1
            if not alike or (positions_last and shape[1:-1] != final[1:-1]):
                raise ShapeError(
                    f"'sluice' mixes the outputs of all named stages for a task's features, but without the rows "
                    f"stage {number} of {encoder} returns the shape {shape[1:]} and stage {self.at[-1]} {final[1:]}. "
                    "Name stages that differ in channels or in the size of maps only: stages=[...]."
                )

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``."""
        tap({})  # no common features
        parts = {task: in_stages(self.towers[task_key(task)]) for task in self._tasks}
        states = {task: part.begin(inputs) for task, part in parts.items()}
        units = dict(zip(self.at, self.units, strict=True))
        kept: dict[str, list[Tensor]] = {task: [] for task in tasks}
        for number in range(len(next(iter(parts.values())).stages)):
            states = {task: parts[task].stages[number](state) for task, state in states.items()}
            if number in units:
                # Behind the last unit the towers that are not asked have nothing more to give.
                states = units[number](states, tasks if number == self.at[-1] else self._tasks)
                for task, layers in kept.items():
                    layers.append(states[task])
            if number == self.at[-1] and self.mixtures:
                states = {task: self.mixtures[task_key(task)](layers) for task, layers in kept.items()}
        return {task: parts[task].end(states[task]) for task in tasks}

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """The task's rows of the last unit, its mixture of layers, and its tower from there on."""
        key = task_key(task)
        if not self.units:
            return
        yield cast(Unit, self.units[-1]).row(task)
        if key in self.mixtures:
            yield from self.mixtures[key].parameters()
        yield from (p for name, p in self.towers[key].named_parameters() if name in self._tail)

    def penalties(self) -> dict[str, Tensor]:
        """``orthogonality`` of the subspaces' weights. It depends on the weights alone."""
        terms = [
            (one @ other.T).square().sum()
            for weight in self._writers()
            for one, other in itertools.combinations(weight.flatten(1).chunk(self.subspaces), 2)
        ]
        return {"orthogonality": torch.stack(terms).sum()} if terms else {}

    def _writers(self) -> list[Tensor]:
        """For each tower and named stage the weights that write its channels, channels first."""
        if not self.units:
            return []
        chosen = []
        for tower in self.towers.values():
            stages = list(in_stages(tower).stages)
            for number, width in zip(self.at, self._widths, strict=True):
                weights = [layer.weight for layer in stages[number].modules() if _outputs(layer) == width]
                chosen += weights[-1:]
        return chosen

    def inspect(self) -> dict[str, Tensor]:
        """``alpha j`` ``[tasks * subspaces, tasks * subspaces]`` of each unit, and ``beta`` ``[tasks, layers]``.

        Row and column ``k * subspaces + s`` stand for subspace s of tower k.
        """
        units = zip(self.at, self.units, strict=False)
        found = {f"alpha {number + 1}": cast(Unit, unit).alpha() for number, unit in units}
        if self.mixtures:
            mixtures = [cast(Mixture, self.mixtures[task_key(task)]) for task in self._tasks]
            found["beta"] = torch.stack([mixture.beta.detach() for mixture in mixtures])
        return found


def _outputs(layer: nn.Module) -> int | None:
    """How many outputs a layer has that can write a stage's channels."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else None


class Unit(nn.Module):
    """Mixes subspaces of all towers' activations.

    Args:
        tasks: Names of the tasks.
        subspaces: Into how many each tower's channels are cut.
        dim: The channels' dimension in the activations.
        same: Initial rate of a subspace itself.
    """

    def __init__(self, tasks: Sequence[str], subspaces: int, dim: int, same: float):
        super().__init__()
        self.tasks, self.subspaces, self.dim = tuple(tasks), subspaces, dim
        count = len(tasks) * subspaces
        alpha = torch.full((count, count), (1 - same) / max(1, count - 1))
        alpha.fill_diagonal_(same if count > 1 else 1.0)
        # One parameter a task, because the rows of the last unit belong to their task alone.
        self.rows = nn.ParameterDict()
        for number, task in enumerate(tasks):
            own = alpha[number * subspaces : (number + 1) * subspaces]
            self.rows[task_key(task)] = nn.Parameter(own.clone())

    def row(self, task: str) -> nn.Parameter:
        """What one tower's subspaces read, ``[subspaces, tasks * subspaces]``."""
        return cast(nn.Parameter, self.rows[task_key(task)])

    def alpha(self) -> Tensor:
        """All rates ``[tasks * subspaces, tasks * subspaces]``, without a graph."""
        return torch.cat([self.row(task).detach() for task in self.tasks])

    def forward(self, states: dict[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """The mixed activations of ``tasks`` from those of all towers."""
        pieces = torch.stack([p for task in self.tasks for p in states[task].chunk(self.subspaces, self.dim)])
        # A product for each task: one for all would give other tasks' rows gradients of zero in place of none.
        mixed = {task: torch.tensordot(self.row(task).to(pieces), pieces, dims=1) for task in tasks}
        return {task: torch.cat(list(own), self.dim) for task, own in mixed.items()}


class Mixture(nn.Module):
    """Mixes the layers of one tower.

    Args:
        shapes: Shape of every layer with its rows, and the dimension of its channels.
        last: Initial share of the last layer.
    """

    def __init__(self, shapes: Shapes, last: float):
        super().__init__()
        beta = torch.full((len(shapes),), (1 - last) / (len(shapes) - 1))
        beta[-1] = last
        self.beta = nn.Parameter(beta)
        final, dim = shapes[-1]
        self.fits = nn.ModuleList(
            nn.Identity() if shape[d] == final[dim] else nn.Linear(shape[d], final[dim], bias=False)
            for shape, d in shapes
        )
        self.dim = dim

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """The mixture, of the last layer's shape."""
        size = layers[-1].shape[2:]
        terms = []
        for rate, fit, layer in zip(self.beta, self.fits, layers, strict=True):
            sized = layer if self.dim != 1 or layer.shape[2:] == size else interpolate(layer, list(size), mode="area")
            terms.append(rate * fit(sized.movedim(self.dim, -1)).movedim(-1, self.dim))
        return torch.stack(terms).sum(0)
