"""Learning to branch: which parts of a network tasks share is learned as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask import registry
from polytask.errors import RecipeError
from polytask.sharing.base import Sharing, Tap, feature_shape, identity
from polytask.sharing.experts import Experts, warn_of_equal_starts
from polytask.sharing.layers import task_key
from polytask.sharing.mixture import at_least
from polytask.sharing.parts import begun, stage_numbers, take_apart


class LTB(Sharing):
    r"""Several copies of every stage; each copy, and each task, learns which copy of the stage before it to read.

    In training, node j of a stage reads :math:`\sum_i d_{ij} y_i` over the outputs :math:`y_i` of the stage
    before, where

    .. math:: d_{\cdot j} = \mathrm{softmax}((\theta_{\cdot j} + G_{\cdot j}) / \tau)

    with Gumbel noise G, drawn anew in every forward from torch's generator, as dropout's is. A task reads the
    last stage in the same way. In evaluation every node and task reads the one copy with the largest
    :math:`\theta`: a tree, without noise, of which only the asked tasks' branches run. All nodes of the first
    stage read the input. The beginning of a staged encoder, such as embeddings, is shared.

    Training for one task runs all nodes. Nodes belong to no task; a task's own :math:`\theta` does.

    Args:
        encoder: A staged encoder, or an ``nn.Sequential``.
        branches: How many copies every stage has; one a task if None.
        temperature: :math:`\tau`: near 0 a training forward follows one tree, for large values it mixes.
        reset: Whether all copies of a stage but the first draw initial weights of their own.

    Raises:
        ShapeError: for an encoder that does not run in stages.
        RecipeError: for a number of branches below 1, or a temperature that is not above 0.

    Example:
        >>> layers = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        >>> sharing = LTB(layers).eval()
        >>> sharing.setup(["a", "b"], torch.zeros(2, 3))
        {'a': (4,), 'b': (4,)}
        >>> sharing.branch("b")
        [0, 0]

    Reference:
        Guo, Lee and Ulbricht, "Learning to Branch for Multi-Task Learning" (ICML 2020), equations 2 to 5.
    """

    supports_features: ClassVar[bool] = False

    def __init__(
        self, encoder: nn.Module, branches: int | None = None, *, temperature: float = 1.0, reset: bool = True
    ):
        super().__init__()
        self.stage_count = len(stage_numbers(encoder, None))
        if branches is not None:
            at_least(1, "branches", branches)
        if not 0 < temperature < float("inf"):
            raise RecipeError(f"temperature is {temperature}; it is a number above 0.")
        self.encoder, self.branches = encoder, branches
        self.temperature, self.reset = temperature, reset
        self.nodes = nn.ModuleList()
        self.parents = nn.ParameterList()
        self.leaves = nn.ParameterDict()
        self._tasks: tuple[str, ...] = ()
        if type(self) is LTB:
            options = {"branches": branches, "temperature": temperature, "reset": reset}
            registry.mark(self, "ltb", options)

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Copy the stages; return each task's feature shape."""
        shape = feature_shape(self.encoder, example)
        parts = take_apart(self.encoder, example, range(1, self.stage_count))
        count = self.branches or len(tasks)
        for block in parts.blocks if self.reset else ():
            warn_of_equal_starts(block.module, "'ltb'")
        self.nodes = nn.ModuleList(
            nn.ModuleList(
                Experts(block.module, 1, reset=self.reset, keep_first=number == 0, only=block.names)
                for number in range(count)
            )
            for block in parts.blocks
        ).train(self.training)
        self.parents = nn.ParameterList(nn.Parameter(torch.zeros(count, count)) for _ in parts.blocks[1:])
        self.leaves = nn.ParameterDict({task_key(task): nn.Parameter(torch.zeros(count)) for task in tasks})
        self.encoder = parts.encoder.train(self.training)
        self._tasks = tuple(tasks)
        return dict.fromkeys(tasks, shape)

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``."""
        tap({})  # no common features
        state = begun(self.encoder, inputs)
        return self._mixing(state, tasks) if self.training else self._branching(state, tasks)

    def _mixing(self, state: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        outs = [self._node(0, number, state) for number in range(len(self._level(0)))]
        for level, logits in enumerate(self.parents, start=1):
            read = self._mixed(self._draw(logits), outs)
            outs = [self._node(level, number, z) for number, z in enumerate(read)]
        logits = torch.stack([self.leaves[task_key(task)] for task in tasks])
        return dict(zip(tasks, self._mixed(self._draw(logits), outs), strict=True))

    def _draw(self, logits: Tensor) -> Tensor:
        return functional.gumbel_softmax(logits, tau=self.temperature, dim=-1)

    def _mixed(self, weights: Tensor, outs: Sequence[Tensor]) -> list[Tensor]:
        """One mixture of ``outs`` for every row of ``weights``."""
        every = torch.stack(list(outs))
        return list(torch.tensordot(weights.to(every), every, dims=1))

    def _branching(self, state: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        known: dict[tuple[int, int], Tensor] = {}
        found = {}
        for task in tasks:
            z = state
            for level, number in enumerate(self.branch(task)):
                # A node has one parent, so the path to it is always the same.
                if (level, number) not in known:
                    known[level, number] = self._node(level, number, z)
                z = known[level, number]
            found[task] = z
        return found

    def branch(self, task: str) -> list[int]:
        """The nodes that the task reads in evaluation, one for each stage, from the first on."""
        path = [int(self.leaves[task_key(task)].argmax())]
        for logits in reversed(list(self.parents)):
            path.append(int(logits[path[-1]].argmax()))
        return path[::-1]

    def _level(self, level: int) -> nn.ModuleList:
        return cast(nn.ModuleList, self.nodes[level])

    def _node(self, level: int, number: int, state: Tensor) -> Tensor:
        return cast(Tensor, self._level(level)[number](state)).squeeze(1)

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """What the task reads the last stage by."""
        key = task_key(task)
        return [self.leaves[key]] if key in self.leaves else []

    def inspect(self) -> dict[str, Tensor]:
        """Chances of every parent: ``stage j`` ``[nodes, parents]`` and ``tasks`` ``[tasks, nodes]``."""
        if not self._tasks:
            return {}
        found = {f"stage {j}": logits.detach().softmax(-1) for j, logits in enumerate(self.parents, start=2)}
        leaves = torch.stack([self.leaves[task_key(task)].detach() for task in self._tasks])
        return {**found, "tasks": leaves.softmax(-1)}
