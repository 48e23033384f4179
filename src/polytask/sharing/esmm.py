"""Entire-space model: a step's probability is a product along the funnel, so it is trained on all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.sharing.base import Tap, identity
from polytask.sharing.funnel import Funnel


class ESMM(Funnel):
    r"""Towers on common embeddings; a step's probability is the product of its own and those of the steps before.

    With :math:`a_t` the logit of step t's head, the model predicts

    .. math:: P(\text{steps 1 to } t) = \prod_{s \le t} \sigma(a_s),

    in the paper pCTCVR = pCTR x pCVR. Every step is trained on all rows, so its target says whether a row got so
    far: 0, and not missing, for rows that left the funnel before. :math:`\sigma(a_t)`, the chance of step t after
    the one before it, has no target of its own; it is the quotient of two predictions.

    Outputs are logits of the products. They are computed from logits, so they neither overflow nor cancel:
    :math:`\sigma(a)\,\sigma(b)` has the logit :math:`-\log(e^{-a} + e^{-b} + e^{-a-b})`.

    Of a staged encoder the towers share the beginning (embeddings, a stem) and are copies of the rest; of any other
    one they are whole copies. The loss of a step reaches the towers and heads of all steps before it, so these
    count as shared, and a forward for one task runs them.

    Args:
        encoder: What towers are copies of.
        order: The steps, such as ``["click", "conversion"]``: binary tasks, at least two. Other tasks may stand
            beside them.
        reset: Whether all towers but the first draw initial weights of their own.

    Raises:
        RecipeError: for fewer than two steps or one named twice; in the model for a step that is no binary task.

    Example:
        >>> from polytask.models import MultiTaskModel
        >>> from polytask.tasks import binary
        >>> sharing = ESMM(nn.Linear(3, 4), order=["click", "buy"])
        >>> model = MultiTaskModel(sharing, [binary("click"), binary("buy")])
        >>> chances = {name: raw.sigmoid() for name, raw in model(torch.randn(5, 3)).items()}
        >>> bool((chances["buy"] <= chances["click"]).all())
        True

    Reference:
        Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion
        Rate" (SIGIR 2018), equation 1.
    """

    def __init__(self, encoder: nn.Module, order: Sequence[str], *, reset: bool = True):
        super().__init__(encoder, order, reset, "esmm")
        if type(self) is ESMM:
            registry.mark(self, "esmm", {"order": list(self.order), "reset": reset})

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``, each from its own tower."""
        tap({})  # a step's loss reaches the features of several tasks
        state = self.begin(inputs)
        return {task: self.climb(task, state) for task in tasks}

    def reads(self, task: str) -> tuple[str, ...]:
        """The steps before the task."""
        return self.before(task)

    def outputs(self, raw: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Logits of the products along the funnel."""
        steps = [step for step in self.order if step in raw]
        reached = dict(zip(steps, accumulate((raw[step] for step in steps), product_logit), strict=True))
        return {task: reached.get(task, raw[task]) for task in tasks}


def product_logit(a: Tensor, b: Tensor) -> Tensor:
    r"""The logit of :math:`\sigma(a)\,\sigma(b)`.

    Args:
        a: Logits, any shape.
        b: Logits of the same shape.

    Example:
        >>> product_logit(torch.tensor(0.0), torch.tensor(0.0)).sigmoid()
        tensor(0.2500)
    """
    return -torch.logsumexp(torch.stack([-a, -b, -a - b]), 0)
