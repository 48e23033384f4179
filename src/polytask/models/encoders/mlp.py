"""Fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from polytask import registry
from polytask.errors import RecipeError
from polytask.models.encoders.staged import Staged
from polytask.sharing.layers import dense_stages


class MLP(Staged):
    """Fully connected layers over one vector a row.

    Args:
        in_features: Width of the input.
        hidden: Widths of the layers; the last is the width of the features.
        activation: ``"relu"``, ``"gelu"``, ``"silu"``, ``"elu"`` or ``"tanh"``, after each layer.
        norm: ``"batch"``, ``"layer"`` or None, before each activation.
        dropout: Probability that an entry is dropped, after each activation.

    Raises:
        RecipeError: for an unknown name, no layer, or a width or probability out of range.

    Example:
        >>> import torch
        >>> MLP(3, hidden=[16, 8])(torch.zeros(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (256, 128),
        activation: str = "relu",
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if not hidden:
            raise RecipeError("An MLP needs at least one layer: hidden is empty.")
        blocks = dense_stages(in_features, hidden, act=activation, norm=norm, dropout=dropout)
        self.stages = nn.ModuleList(blocks)
        self.channel_dims = (-1,) * len(blocks)
        self.out_features = hidden[-1]
        if type(self) is MLP:
            options = {"hidden": list(hidden), "activation": activation, "norm": norm, "dropout": dropout}
            registry.mark(self, "mlp", {"in_features": in_features, **options})
