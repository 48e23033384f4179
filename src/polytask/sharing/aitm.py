"""Adaptive information transfer: each step of a funnel attends to what the step before it knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.sharing.base import Tap, identity
from polytask.sharing.funnel import Funnel
from polytask.sharing.layers import per_task, task_key, vector_from
from polytask.sharing.levels import Memo


class AITM(Funnel):
    r"""Towers on common embeddings; each step of a funnel attends to what the step before it hands on.

    With :math:`q_t` what step t's tower makes of a row, the features of the first step are :math:`z_1 = q_1`. Later
    ones weigh what comes from the step before against their own:

    .. math:: z_t = \sum_{u \in \{p, q_t\}} w_u h_3(u), \quad
              w_u = \frac{\exp \hat w_u}{\sum_{u'} \exp \hat w_{u'}}, \quad
              \hat w_u = \frac{\langle h_1(u), h_2(u) \rangle}{\sqrt{k}}, \quad p = g(z_{t-1}),

    with linear maps :math:`h_1, h_2, h_3` and a dense layer g with a ReLU, all of width k and for each step its own.
    The head of step t reads :math:`z_t`. Maps are averaged over their positions first.

    Penalty, in training: ``calibrator``, the mean over rows of :math:`\sum_t \max(\hat y_t - \hat y_{t-1}, 0)`,
    where :math:`\hat y_t` is the probability of step t: a step cannot be likelier than the one before it. It covers
    the neighbouring steps of a forward.

    Targets say whether a row got so far, as for ``esmm``. Of a staged encoder the towers share the beginning and
    are copies of the rest; of any other one they are whole copies. A forward for one task runs the towers of the
    steps before it, and these count as shared.

    Args:
        encoder: What towers are copies of.
        order: The steps, such as ``["click", "conversion"]``: binary tasks, at least two. Other tasks may stand
            beside them.
        reset: Whether all towers but the first draw initial weights of their own.

    Raises:
        RecipeError: for fewer than two steps or one named twice; in the model for a step that is no binary task.

    Example:
        >>> sharing = AITM(nn.Linear(3, 4), order=["click", "buy"])
        >>> sharing.setup(["click", "buy"], None)
        {'click': (4,), 'buy': (4,)}
        >>> sharing(torch.zeros(5, 3), ["buy"])["buy"].shape
        torch.Size([5, 4])

    Reference:
        Xi et al., "Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task
        Learning in Targeted Display Advertising" (KDD 2021), section 3.
    """

    def __init__(self, encoder: nn.Module, order: Sequence[str], *, reset: bool = True):
        super().__init__(encoder, order, reset, "aitm")
        self.pool = nn.Sequential()
        self.transfers = nn.ModuleDict()
        self._seen, self._kept = Memo(), Memo()
        if type(self) is AITM:
            registry.mark(self, "aitm", {"order": list(self.order), "reset": reset})

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Make the towers and what lies between them; return each task's feature shape."""
        shapes = super().setup(tasks, example)
        pooled, width = vector_from(shapes[tasks[0]])
        self.pool = nn.Sequential(*pooled)
        self.transfers = per_task({step: Transfer(width) for step in self.order[1:]})
        return dict.fromkeys(tasks, (width,))

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``."""
        tap({})  # a step's loss reaches the features of several tasks
        state = self.begin(inputs)
        needed = {step for task in tasks for step in (*self.before(task), task)}
        found = {task: self.pool(self.climb(task, state)) for task in tasks if task not in self.order}
        former: Tensor | None = None
        for step in self.order:
            if step not in needed:
                break
            own = self.pool(self.climb(step, state))
            found[step] = former = own if former is None else self._attend(step, former, own)
        return {task: found[task] for task in tasks}

    def _attend(self, step: str, former: Tensor, own: Tensor) -> Tensor:
        mixed, weights = cast(Transfer, self.transfers[task_key(step)])(former, own)
        if self.training or not torch.compiler.is_compiling():
            self._seen[step] = weights.detach().float().mean(0)
        return cast(Tensor, mixed)

    def outputs(self, raw: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """The heads' outputs as they are; in training their calibrator is kept."""
        self._kept.clear()
        both = [pair for pair in pairwise(self.order) if raw.keys() >= set(pair)] if self.training else []
        if both:
            chances = {step: raw[step].sigmoid() for pair in both for step in pair}
            excess = torch.stack([(chances[later] - chances[former]).relu() for former, later in both])
            self._kept["calibrator"] = excess.sum(0).mean()
        return {task: raw[task] for task in tasks}

    def penalties(self) -> dict[str, Tensor]:
        """``calibrator``, of a forward in training with neighbouring steps."""
        return dict(self._kept)

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's tower and of what it takes over, unless a later step depends on them."""
        yield from super().task_parameters(task)
        if task == self.order[-1] and self.transfers:
            yield from self.transfers[task_key(task)].parameters()

    def inspect(self) -> dict[str, Tensor]:
        """``transfer of t``: mean weights of the last forward, of what came over and of the step's own, ``[2]``."""
        return {f"transfer of {step}": weights for step, weights in self._seen.items()}


class Transfer(nn.Module):
    """Attention of one step over what the step before hands on and its own features.

    Args:
        width: Of the features.
    """

    def __init__(self, width: int):
        super().__init__()
        self.carry = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.queries, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))

    def forward(self, former: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[rows, width]`` of the step before and of this one to mixed ones, and weights ``[rows, 2]``."""
        both = torch.stack([self.carry(former), own], 1)
        scores = torch.linalg.vecdot(self.queries(both), self.keys(both)) / both.shape[-1] ** 0.5
        weights = scores.softmax(-1)
        return (weights.unsqueeze(-1).to(own) * self.values(both)).sum(1), weights
