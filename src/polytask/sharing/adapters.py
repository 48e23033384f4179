"""Adapters: small private layers inside of a common trunk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from polytask import registry
from polytask.sharing.conditioned import Change, Conditioned, channels_of, stage_paths
from polytask.sharing.layers import activation as make_activation
from polytask.sharing.layers import per_task, task_key
from polytask.sharing.mixture import at_least


class Adapters(Conditioned):
    r"""One trunk with a narrow residual layer for each task after its stages.

    After a named stage with output h, task k goes on with

    .. math:: h + U_k \, \sigma(D_k h + d_k) + u_k,

    along the channels: D maps them to ``width`` numbers and U back. U and u start at zero, so that all
    tasks start from the trunk as given. Features of m tasks cost m forwards of the trunk.

    Args:
        encoder: The trunk, any module.
        stages: Paths of the modules whose outputs change; the stages of a staged encoder if None.
        width: Of the narrow layer.
        activation: Name of the activation between the two maps.
        freeze: Whether the trunk's weights stay as they are.

    Raises:
        ShapeError: for an unknown stage.
        RecipeError: for no stage, a width below 1 or an unknown activation.

    Example:
        >>> import torch
        >>> sharing = Adapters(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), stages=["1"], width=2)
        >>> sharing.setup(["a", "b"], torch.zeros(2, 3))
        {'a': (4,), 'b': (4,)}
        >>> sum(p.numel() for p in sharing.task_parameters("a"))
        22

    Reference:
        Houlsby et al., "Parameter-Efficient Transfer Learning for NLP" (ICML 2019), section 2.1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        stages: Sequence[str] | None = None,
        *,
        width: int = 16,
        activation: str = "gelu",
        freeze: bool = False,
    ):
        super().__init__(encoder, freeze)
        self.stages = stage_paths(encoder, stages)
        self.width, self.activation = at_least(1, "width", width), activation
        make_activation(activation)
        if type(self) is Adapters:
            options = {"width": width, "activation": activation, "freeze": freeze}
            registry.mark(self, "adapters", {"stages": None if stages is None else list(stages), **options})

    def places(self) -> list[str]:
        """Paths of the modules whose outputs change."""
        return self.stages

    def make_change(self, path: str, tasks: Sequence[str], output: Tensor | None) -> Change:
        """The adapters after one stage."""
        channels, dim = channels_of(path, output, self.encoder.get_submodule(path))
        return Bottlenecks(tasks, channels, self.width, dim, self.activation)


class Bottlenecks(Change):
    """A narrow residual layer for each task."""

    def __init__(self, tasks: Sequence[str], channels: int, width: int, dim: int, activation: str):
        super().__init__()
        self.dim = dim
        layers = {
            t: nn.Sequential(nn.Linear(channels, width), make_activation(activation), nn.Linear(width, channels))
            for t in tasks
        }
        for layer in layers.values():
            for parameter in layer[2].parameters():
                nn.init.zeros_(parameter)
        self.layers = per_task(layers)

    def forward(self, task: str, inputs: Tensor, output: Tensor) -> Tensor:
        """The output and the task's correction of it."""
        narrow = self.layers[task_key(task)](output.movedim(self.dim, -1))
        return output + cast(Tensor, narrow).movedim(-1, self.dim)

    def own(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's layer."""
        return self.layers[task_key(task)].parameters()
