"""Hierarchical sharing: the features of low-level tasks feed higher ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.errors import RecipeError, unknown
from polytask.sharing.base import Features, Sharing, Tap, feature_shape, identity
from polytask.sharing.layers import dense_stages, per_task, private_from, task_key


class Hierarchical(Sharing):
    r"""One trunk, and layers for each task that also read the features of the tasks below it.

    With the trunk's features z (maps are averaged over their positions), task k gets

    .. math:: f_k = h_k([z, f_j \text{ for every task } j \text{ that feeds } k]),

    where :math:`h_k` are dense layers of its own. With ``detach``, a task's loss does not change the layers
    of the tasks that feed it; else it does, and those layers count as shared. A forward for one task runs its
    own layers and those of the tasks below it. Balancing at the features ends at z: layers that several losses
    reach get the plain sum of their gradients there.

    Args:
        encoder: The trunk.
        feeds: For each task that is fed, the names of the tasks that feed it, such as
            ``{"parse": ["tags"]}``.
        layers: Widths of a task's layers.
        detach: Whether gradients stop between tasks.
        activation: Of the layers.
        norm: Of the layers: ``"batch"``, ``"layer"`` or None.
        dropout: Of the layers.

    Raises:
        RecipeError: for a cycle, no layer, or an option that cannot be used; at ``setup`` for an unknown task.

    Example:
        >>> sharing = Hierarchical(nn.Linear(3, 8), {"high": ["low"]}, layers=[4])
        >>> sharing.setup(["low", "high"], None)
        {'low': (4,), 'high': (4,)}
        >>> sharing(torch.zeros(5, 3), ["high"])["high"].shape
        torch.Size([5, 4])

    Reference:
        Hashimoto et al., "A Joint Many-Task Model: Growing a Neural Network for Multiple NLP Tasks" (EMNLP
        2017), section 2, where a task reads the input and what lower tasks made of it.
    """

    supports_features: ClassVar[bool] = True

    def __init__(
        self,
        encoder: nn.Module,
        feeds: Mapping[str, Sequence[str]],
        *,
        layers: Sequence[int] = (64,),
        detach: bool = False,
        activation: str = "relu",
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.encoder = encoder
        self.feeds = {task: tuple(below) for task, below in feeds.items()}
        try:
            self._order = tuple(TopologicalSorter(self.feeds).static_order())
        except CycleError as error:
            circle = " -> ".join(error.args[1])
            raise RecipeError(
                f"The tasks feed each other in a circle: {circle}. Take one of these feeds out."
            ) from None
        if not layers:
            raise RecipeError("'hierarchical' needs at least one layer a task: layers is empty.")
        self.widths, self.detach = tuple(layers), detach
        self._options: dict[str, Any] = {"act": activation, "norm": norm, "dropout": dropout}
        # A wrong option is found here and not with the first batch.
        dense_stages(1, self.widths, **self._options)
        self.layers = nn.ModuleDict()
        self.pool = nn.Sequential()
        if type(self) is Hierarchical:
            options = {"layers": list(layers), "detach": detach, "activation": activation, "norm": norm}
            plain = {task: list(below) for task, below in self.feeds.items()}
            registry.mark(self, "hierarchical", {"feeds": plain, **options, "dropout": dropout})

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Build each task's layers; return its feature shape."""
        for name in self._order:
            if name not in tasks:
                raise RecipeError(f"feeds: {unknown('task', name, tasks)}")
        pooled, width, positions = private_from(feature_shape(self.encoder, example), self._options["norm"])
        self.pool = nn.Sequential(*pooled)
        made = {}
        for task in tasks:
            reads = width + self.widths[-1] * len(self.feeds.get(task, ()))
            made[task] = nn.Sequential(*dense_stages(reads, self.widths, **self._options))
        self.layers = per_task(made)
        self._order = (*self._order, *(task for task in tasks if task not in self._order))
        return dict.fromkeys(tasks, (*positions, self.widths[-1]))

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``."""
        found = tap({"features": self.pool(self.encoder(inputs))})
        # Tasks that got the same features share what lies below them; behind a tap that hands out
        # features of their own, each task runs the layers below it on its own ones.
        known: dict[int, dict[str, Tensor]] = {}
        return {task: self._climb(task, found[task], known) for task in tasks}

    def _climb(self, task: str, features: Features, known: dict[int, dict[str, Tensor]]) -> Tensor:
        z = features["features"]
        made = known.setdefault(id(z), {})
        needed = self._below(task) | {task}
        for name in self._order:
            if name in needed and name not in made:
                below = [made[other].detach() if self.detach else made[other] for other in self.feeds.get(name, ())]
                made[name] = self.layers[task_key(name)](torch.cat([z, *below], -1) if below else z)
        return made[task]

    def _below(self, task: str) -> set[str]:
        """All tasks whose features reach ``task``."""
        direct = set(self.feeds.get(task, ()))
        return direct.union(*(self._below(other) for other in direct))

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's layers, unless another task's loss reaches them."""
        feeds_another = any(task in below for below in self.feeds.values())
        return () if feeds_another and not self.detach else self.layers[task_key(task)].parameters()
