"""Progressive layered extraction: levels of shared and own experts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from polytask import registry
from polytask.sharing.mixture import Mixture, at_least
from polytask.sharing.parts import stage_numbers


class PLE(Mixture):
    r"""Progressive layered extraction: customized gate control in levels, with a shared gate between them.

    At level j task k has

    .. math:: g^{k,j} = \mathrm{softmax}(W^{k,j} g^{k,j-1})^\top S^{k,j},

    where the rows of :math:`S^{k,j}` are the outputs of the shared experts, which read the shared state
    :math:`g^{s,j-1}`, and those of task k's own experts, which read :math:`g^{k,j-1}`. Below the last level
    a shared gate, which reads :math:`g^{s,j-1}`, mixes the shared experts and those of all tasks into
    :math:`g^{s,j}`. Both states start as the input x, or as what a staged encoder's beginning returns.

    Below the last level every task's experts feed every task, so they count as shared parameters, and a
    forward for one task runs them too.

    Args:
        encoder: A staged encoder, or an ``nn.Sequential``, whose stages are the experts of the levels.
        shared: How many shared experts a level has.
        per_task: How many experts each task has of its own in a level.
        levels: The stages that a level starts with, by name or number, from the second level on. None
            starts one with every stage.
        gate_input: What gates read of maps and sequences: ``"pooled"`` (means over positions) or ``"flat"``
            (all numbers). Vectors are read as they are.
        reset: Whether experts draw initial weights of their own. The first shared ones keep the encoder's.

    Raises:
        RecipeError: for a number of experts below 1 or an unknown word.
        ShapeError: for an encoder that does not run in stages, or an unknown stage.

    Example:
        >>> import torch
        >>> layers = nn.Sequential(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        >>> sharing = PLE(layers, shared=1, per_task=1)
        >>> sharing.setup(["a", "b"], torch.zeros(2, 8))
        {'a': (4,), 'b': (4,)}
        >>> sharing(torch.zeros(5, 8), ["b"])["b"].shape
        torch.Size([5, 4])

    Reference:
        Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for
        Personalized Recommendations" (RecSys 2020), equations 5 and 6.
    """

    def __init__(
        self,
        encoder: nn.Module,
        shared: int = 2,
        per_task: int = 2,
        *,
        levels: Sequence[str | int] | None = None,
        gate_input: str = "pooled",
        reset: bool = True,
    ):
        counts = at_least(1, "shared", shared), at_least(1, "per_task", per_task)
        super().__init__(encoder, *counts, gate_input, reset)
        starts = stage_numbers(encoder, levels)
        self._cuts = tuple(number for number in starts if number > 0)
        if type(self) is PLE:
            options = {"shared": shared, "per_task": per_task, "gate_input": gate_input, "reset": reset}
            registry.mark(self, "ple", {**options, "levels": None if levels is None else list(levels)})

    def cuts(self) -> tuple[int, ...]:
        """Numbers of the stages before which a new level starts."""
        return self._cuts
