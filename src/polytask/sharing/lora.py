"""LoRA: low-rank corrections of a trunk's linear layers, one a task."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask import registry
from polytask.errors import RecipeError, ShapeError, listed
from polytask.sharing.conditioned import Change, Conditioned, stage_paths
from polytask.sharing.layers import per_task, task_key
from polytask.sharing.mixture import at_least


class LoRA(Conditioned):
    r"""One trunk whose linear layers have a correction of low rank for each task.

    A linear layer with weight W, input x and bias b gives task k

    .. math:: W x + b + \frac{\alpha}{r} B_k A_k x, \qquad A_k\ [r, d_{in}],\ B_k\ [d_{out}, r].

    B starts at zero, so that all tasks start from the trunk as given. ``merge`` adds a task's corrections to
    a copy of the trunk, which then costs nothing more. Features of m tasks cost m forwards of the trunk.

    Args:
        encoder: The trunk, any module with ``nn.Linear`` layers. Those inside of ``nn.MultiheadAttention``
            cannot be corrected, because torch uses their weights without calling them.
        layers: Paths of the linear layers; all that can be corrected if None.
        rank: r.
        alpha: Scale of the corrections; ``rank`` if None, which makes their factor 1.
        freeze: Whether the trunk's weights stay as they are.

    Raises:
        ShapeError: for an unknown layer, one that is not linear, or a trunk without linear layers.
        RecipeError: for a rank below 1 or larger than a layer.

    Example:
        >>> sharing = LoRA(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), rank=2)
        >>> sharing.setup(["a", "b"], torch.zeros(2, 3))
        {'a': (4,), 'b': (4,)}
        >>> sum(p.numel() for p in sharing.task_parameters("a"))
        14

    Reference:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022), equation 3.
    """

    def __init__(
        self,
        encoder: nn.Module,
        layers: Sequence[str] | None = None,
        *,
        rank: int = 4,
        alpha: float | None = None,
        freeze: bool = True,
    ):
        # Before anything changes: an encoder that is refused stays as it was.
        self_paths = _linear_paths(encoder, layers)
        at_least(1, "rank", rank)
        for path in self_paths:
            layer = cast(nn.Linear, encoder.get_submodule(path))
            if rank > min(layer.in_features, layer.out_features):
                raise RecipeError(
                    f"rank is {rank}, but layer '{path}' maps {layer.in_features} to {layer.out_features} numbers. "
                    "Lower the rank, or name the layers without it."
                )
        super().__init__(encoder, freeze)
        self.paths, self.rank, self.alpha = self_paths, rank, float(rank if alpha is None else alpha)
        if type(self) is LoRA:
            options = {"rank": rank, "alpha": alpha, "freeze": freeze}
            registry.mark(self, "lora", {"layers": None if layers is None else list(layers), **options})

    def places(self) -> list[str]:
        """Paths of the corrected layers."""
        return self.paths

    def make_change(self, path: str, tasks: Sequence[str], output: Tensor | None) -> Change:
        """The corrections of one layer."""
        layer = cast(nn.Linear, self.encoder.get_submodule(path))
        return LowRank(tasks, layer.in_features, layer.out_features, self.rank, self.alpha / self.rank)

    def merge(self, task: str) -> nn.Module:
        """A plain copy of the trunk with the task's corrections added to its weights."""
        merged = copy.deepcopy(self.encoder)
        with torch.no_grad():
            for path, change in zip(self.paths, self.changes, strict=True):
                layer = cast(nn.Linear, merged.get_submodule(path))
                # The copy's hooks would correct it again.
                layer._forward_hooks.clear()
                layer.weight += cast(LowRank, change).correction(task).to(layer.weight)
        return merged


class LowRank(Change):
    """A correction of low rank for each task."""

    def __init__(self, tasks: Sequence[str], before: int, after: int, rank: int, factor: float):
        super().__init__()
        self.factor = factor
        pairs = {
            t: nn.ModuleList([nn.Linear(before, rank, bias=False), nn.Linear(rank, after, bias=False)]) for t in tasks
        }
        for _, up in pairs.values():
            nn.init.zeros_(cast(nn.Linear, up).weight)
        self.pairs = per_task(pairs)

    def forward(self, task: str, inputs: Tensor, output: Tensor) -> Tensor:
        """The output and the task's correction of it."""
        down, up = cast(nn.ModuleList, self.pairs[task_key(task)])
        return output + self.factor * functional.linear(down(inputs), cast(nn.Linear, up).weight)

    def correction(self, task: str) -> Tensor:
        """What is added to the layer's weight."""
        down, up = cast(nn.ModuleList, self.pairs[task_key(task)])
        return self.factor * cast(nn.Linear, up).weight @ cast(nn.Linear, down).weight

    def own(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's correction."""
        return self.pairs[task_key(task)].parameters()


def _linear_paths(encoder: nn.Module, layers: Sequence[str] | None) -> list[str]:
    modules = dict(encoder.named_modules())
    hidden = {id(p) for m in modules.values() if isinstance(m, nn.MultiheadAttention) for p in m.modules()}
    open_to = [n for n, m in modules.items() if isinstance(m, nn.Linear) and id(m) not in hidden]
    if not open_to:
        raise ShapeError(
            f"'lora' corrects nn.Linear layers, and {type(encoder).__name__} has none that can be corrected. Use "
            "'adapters', which works on any stage."
        )
    if layers is None:
        return open_to
    named = stage_paths(encoder, layers)
    wrong = [path for path in named if path not in open_to]
    if wrong:
        raise ShapeError(f"'lora' cannot correct {listed(wrong)}. Linear layers that it can: {listed(open_to)}.")
    return named
