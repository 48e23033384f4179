"""FiLM: a task embedding scales and shifts the channels of a common trunk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.sharing.conditioned import Change, Conditioned, channels_of, stage_paths
from polytask.sharing.layers import task_key
from polytask.sharing.mixture import at_least
from polytask.sharing.towers import along


class FiLM(Conditioned):
    r"""One trunk whose channels each task scales and shifts, as its embedding says.

    After a named stage with output h, task k with embedding :math:`e_k` goes on with

    .. math:: (1 + \gamma_k) \odot h + \beta_k, \qquad (\gamma_k, \beta_k) = V e_k,

    one number a channel. V is shared and starts at zero, so that all tasks start from the trunk as given.
    Embeddings belong to one task each. Features of m tasks cost m forwards of the trunk.

    Args:
        encoder: The trunk, any module.
        stages: Paths of the modules whose outputs change; the stages of a staged encoder if None.
        embedding: Width of a task's embedding.
        freeze: Whether the trunk's weights stay as they are.

    Raises:
        ShapeError: for an unknown stage.
        RecipeError: for no stage, or a width below 1.

    Example:
        >>> sharing = FiLM(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), stages=["0"])
        >>> sharing.setup(["a", "b"], torch.zeros(2, 3))
        {'a': (4,), 'b': (4,)}
        >>> sharing(torch.zeros(5, 3), ["b"])["b"].shape
        torch.Size([5, 4])

    Reference:
        Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer" (AAAI 2018), equations 1
        and 2, with a task's embedding as the condition.
    """

    def __init__(
        self, encoder: nn.Module, stages: Sequence[str] | None = None, *, embedding: int = 16, freeze: bool = False
    ):
        super().__init__(encoder, freeze)
        self.stages = stage_paths(encoder, stages)
        self.width = at_least(1, "embedding", embedding)
        self.embeddings = nn.ParameterDict()
        if type(self) is FiLM:
            options = {"embedding": embedding, "freeze": freeze}
            registry.mark(self, "film", {"stages": None if stages is None else list(stages), **options})

    def places(self) -> list[str]:
        """Paths of the modules whose outputs change."""
        return self.stages

    def make_change(self, path: str, tasks: Sequence[str], output: Tensor | None) -> Change:
        """The modulation of one stage."""
        channels, dim = channels_of(path, output, self.encoder.get_submodule(path))
        return Modulation(self.embeddings, self.width, channels, dim)

    def setup(self, tasks: Sequence[str], example: object) -> dict[str, tuple[int, ...]]:
        """Draw the embeddings and build the modulations; return each task's feature shape."""
        self.embeddings = nn.ParameterDict({task_key(t): nn.Parameter(torch.randn(self.width)) for t in tasks})
        return super().setup(tasks, example)

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """The task's embedding."""
        key = task_key(task)
        return [self.embeddings[key]] if key in self.embeddings else []

    def inspect(self) -> dict[str, Tensor]:
        """How each stage scales its channels, ``[tasks, channels]``."""
        if not self.embeddings:
            return {}
        with torch.no_grad():
            everyone = torch.stack(list(self.embeddings.values()))
            changes = zip(self.stages, self.changes, strict=True)
            return {f"scales after {p}": 1 + cast(Modulation, c).maps(everyone).chunk(2, -1)[0] for p, c in changes}


class Modulation(Change):
    """Scales and shifts the channels of one output."""

    def __init__(self, embeddings: nn.ParameterDict, width: int, channels: int, dim: int):
        super().__init__()
        # In a tuple: the embeddings are registered once, with the sharing.
        self._embeddings = (embeddings,)
        self.dim = dim
        self.maps = nn.Linear(width, 2 * channels, bias=False)
        nn.init.zeros_(self.maps.weight)

    def forward(self, task: str, inputs: Tensor, output: Tensor) -> Tensor:
        """The scaled and shifted output."""
        gamma, beta = self.maps(self._embeddings[0][task_key(task)]).chunk(2, -1)
        return output * (1 + along(gamma, output, self.dim)) + along(beta, output, self.dim)
