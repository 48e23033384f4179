"""Soft sharing: one network a task, whose weights are drawn to each other by a penalty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.errors import RecipeError, unknown
from polytask.sharing.base import Sharing, Tap, feature_shape, identity
from polytask.sharing.layers import task_key
from polytask.sharing.towers import towers

DISTANCES = ("mean", "trace_norm", "relation")


class Soft(Sharing):
    r"""One network a task; a penalty on the distance of their weights is all that they share.

    The penalty is ``distance``, over all weights :math:`\theta_k` of task k's network:

    - ``"mean"``: :math:`\sum_k |\theta_k - \bar\theta|^2` with the mean :math:`\bar\theta`;
    - ``"trace_norm"``: for every weight tensor the sum of the singular values of the matrix with one row a
      task, which is small where the tasks' weights span few directions;
    - ``"relation"``: :math:`\sum_{ij} A_{ij} |\theta_i - \theta_j|^2`, where row i of A is the softmax over
      :math:`j \neq i` of :math:`-|\theta_i - \theta_j|^2 / \tau`.

    That A minimises :math:`\sum_j A_{ij} |\theta_i - \theta_j|^2 + \tau \sum_j A_{ij} \log A_{ij}` over rows that
    add up to 1, so it cannot vanish, and it is renewed in every forward. Related tasks end in groups.
    :math:`\tau` is ``temperature`` times the mean squared distance of two tasks.

    No parameter is shared through the losses, so gradient balancing does not apply. The penalty covers all
    networks, whichever tasks a forward is for.

    Args:
        encoder: What networks are copies of.
        distance: ``"mean"``, ``"trace_norm"`` or ``"relation"``.
        temperature: Of A: near 0 a task has one neighbour, for large values all count alike.
        reset: Whether all networks but the first draw initial weights of their own.

    Raises:
        RecipeError: for an unknown distance or a temperature that is not above 0.

    Example:
        >>> sharing = Soft(nn.Linear(3, 4), reset=False)
        >>> sharing.setup(["a", "b"], None)
        {'a': (4,), 'b': (4,)}
        >>> _ = sharing(torch.zeros(5, 3), ["a"])
        >>> sharing.penalties()["distance"].item()
        0.0

    Reference:
        Evgeniou and Pontil, "Regularized Multi-Task Learning" (KDD 2004), section 2, for the mean. Yang and
        Hospedales, "Trace Norm Regularised Deep Multi-Task Learning" (ICLR 2017 workshop), equation 2. The
        relation matrix follows the idea of Zhang and Yeung (UAI 2010), with an entropy instead of a trace.
    """

    supports_features: ClassVar[bool] = False

    def __init__(self, encoder: nn.Module, distance: str = "mean", *, temperature: float = 0.5, reset: bool = True):
        super().__init__()
        if distance not in DISTANCES:
            raise RecipeError(unknown("distance", distance, DISTANCES))
        if not 0 < temperature < float("inf"):
            raise RecipeError(f"temperature is {temperature}; it is a number above 0.")
        self.distance, self.temperature, self.reset = distance, temperature, reset
        self.networks = nn.ModuleDict({"first": encoder})
        if type(self) is Soft:
            registry.mark(self, "soft", {"distance": distance, "temperature": temperature, "reset": reset})

    @property
    def encoder(self) -> nn.Module:
        """The encoder that was given, which is the first task's."""
        return next(iter(self.networks.values()))

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Make the networks; return each task's feature shape."""
        shape = feature_shape(self.encoder, example)
        self.networks = towers(self.encoder, tasks, self.reset, "'soft'")
        return dict.fromkeys(tasks, shape)

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``, each from its own network."""
        tap({})  # nothing is shared
        return {task: self.networks[task_key(task)](inputs) for task in tasks}

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's own network."""
        return self.networks[task_key(task)].parameters()

    def penalties(self) -> dict[str, Tensor]:
        """``distance``: how far apart the tasks' weights are. It depends on the weights alone."""
        stacks = self._stacks()
        if not stacks:
            return {}
        if self.distance == "trace_norm":
            return {"distance": torch.stack([torch.linalg.matrix_norm(s, ord="nuc") for s in stacks]).sum()}
        if self.distance == "mean":
            return {"distance": torch.stack([(s - s.mean(0)).square().sum() for s in stacks]).sum()}
        squares = _distances(stacks)
        return {"distance": (_relation(squares.detach(), self.temperature) * squares).sum()}

    def inspect(self) -> dict[str, Tensor]:
        """``relation``: A ``[tasks, tasks]``, if that is the distance."""
        stacks = self._stacks()
        if self.distance != "relation" or not stacks:
            return {}
        with torch.no_grad():
            return {"relation": _relation(_distances(stacks), self.temperature)}

    def extract(self, task: str) -> nn.Module:
        """The task's own network."""
        return self.networks[task_key(task)]

    def _stacks(self) -> list[Tensor]:
        """For every weight tensor a matrix with one row a task."""
        if len(self.networks) < 2:
            return []
        everyone = zip(*(network.parameters() for network in self.networks.values()), strict=True)
        return [torch.stack([p.flatten() for p in alike]) for alike in everyone]


def _distances(stacks: Sequence[Tensor]) -> Tensor:
    """Squared distances ``[tasks, tasks]``, from differences: products would cancel where tasks are near."""
    return torch.stack([(s.unsqueeze(1) - s).square().sum(-1) for s in stacks]).sum(0)


def _relation(squares: Tensor, temperature: float) -> Tensor:
    count = len(squares)
    mean = squares.sum() / (count * (count - 1))
    # Equal networks are at distance 0 of each other: then all count alike.
    scaled = squares / torch.where(mean > 0, temperature * mean, torch.ones_like(mean))
    itself = torch.eye(count, dtype=torch.bool, device=squares.device)
    return (-scaled).masked_fill(itself, float("-inf")).softmax(-1)
