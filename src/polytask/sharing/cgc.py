"""Customized gate control: shared experts and each task's own."""

from __future__ import annotations

from torch import nn

from polytask import registry
from polytask.sharing.mixture import Mixture, at_least


class CGC(Mixture):
    r"""Customized gate control: a task's gate mixes shared experts and experts of its own.

    Task k gets

    .. math:: f^k(x) = w^k(x)^\top S^k(x), \qquad w^k(x) = \mathrm{softmax}(W^k x),

    where the rows of :math:`S^k` are the outputs of the shared experts, then those of task k's own. No
    other task reads these. Experts are copies of the encoder; of a staged one its beginning is shared.

    Args:
        encoder: What experts are copies of.
        shared: How many experts serve all tasks.
        per_task: How many experts each task has of its own.
        gate_input: What gates read of maps and sequences: ``"flat"`` (all numbers) or ``"pooled"`` (means
            over positions). Vectors are read as they are.
        reset: Whether experts draw initial weights of their own. The first shared one keeps the encoder's.

    Raises:
        RecipeError: for a number of experts below 1 or an unknown word.

    Example:
        >>> import torch
        >>> sharing = CGC(nn.Linear(8, 4), shared=1, per_task=1)
        >>> sharing.setup(["a", "b"], None)
        {'a': (4,), 'b': (4,)}
        >>> sharing(torch.zeros(5, 8), ["b"])["b"].shape
        torch.Size([5, 4])

    Reference:
        Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for
        Personalized Recommendations" (RecSys 2020), equations 1 to 4.
    """

    def __init__(
        self, encoder: nn.Module, shared: int = 2, per_task: int = 2, *, gate_input: str = "flat", reset: bool = True
    ):
        counts = at_least(1, "shared", shared), at_least(1, "per_task", per_task)
        super().__init__(encoder, *counts, gate_input, reset)
        if type(self) is CGC:
            options = {"shared": shared, "per_task": per_task, "gate_input": gate_input, "reset": reset}
            registry.mark(self, "cgc", options)
