"""Small building blocks that sharings, heads and encoders have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from polytask.errors import RecipeError, ShapeError, unknown
from polytask.fused.pool import POOLS

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def activation(name: str) -> nn.Module:
    """A new activation module by name.

    Raises:
        RecipeError: for an unknown name.

    Example:
        >>> activation("relu")
        ReLU()
    """
    if name not in ACTIVATIONS:
        raise RecipeError(unknown("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]()


def dense_stages(
    in_features: int, widths: Sequence[int], *, act: str = "relu", norm: str | None = None, dropout: float = 0.0
) -> list[nn.Sequential]:
    """One block a width: linear, norm, activation, dropout.

    Args:
        in_features: Width of the input.
        widths: Widths of the blocks in order.
        act: Name of the activation.
        norm: ``"batch"``, ``"layer"`` or None.
        dropout: Probability that an entry is dropped, from 0 to below 1.

    Raises:
        RecipeError: for an unknown name, or a width or probability out of range.
    """
    check_dropout(dropout)
    if norm is not None and norm not in NORMS:
        raise RecipeError(unknown("norm", norm, NORMS))
    blocks = []
    for before, width in zip([in_features, *widths], widths, strict=False):
        if width < 1 or before < 1:
            raise RecipeError(f"A layer of width {min(width, before)} cannot be built; widths start at 1.")
        parts: list[nn.Module] = [nn.Linear(before, width)]
        parts += [NORMS[norm](width)] if norm else []
        parts += [activation(act)]
        parts += [nn.Dropout(dropout)] if dropout else []
        blocks.append(nn.Sequential(*parts))
    return blocks


def channel_norm(channels: int) -> nn.GroupNorm:
    """A group norm of feature maps with at least 8 channels a group, if there are as many.

    Norms of single channels would take out how much of a channel there is in the whole map.

    Example:
        >>> channel_norm(48).num_groups
        6
    """
    groups = [count for count in range(1, 33) if channels % count == 0 and channels // count >= 8]
    return nn.GroupNorm(max(groups, default=1), channels)


def check_dropout(dropout: float) -> None:
    """Raise a RecipeError for a dropout probability outside of [0, 1)."""
    if not 0 <= dropout < 1:
        raise RecipeError(f"dropout is {dropout}; it is a probability, from 0 to below 1.")


class GlobalPool(nn.Module):
    """The mean over all positions of a feature map: ``[rows, c, ...]`` to ``[rows, c]``."""

    pool: ClassVar[str] = "mean"

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[rows, c, ...]`` to ``[rows, c]``."""
        return POOLS[self.pool].read(features)


ANY = -1
"""In a feature shape: as many as the batch has. A text has features ``(ANY, d)``: of the whole, then of its words."""


class FirstPosition(nn.Module):
    """The features of a text as a whole: ``[rows, 1 + words, d]`` to ``[rows, d]``."""

    pool: ClassVar[str] = "first"

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[rows, 1 + words, d]`` to ``[rows, d]``."""
        return POOLS[self.pool].read(features)


def private_from(shape: tuple[int, ...], norm: str | None) -> tuple[list[nn.Module], int, tuple[int, ...]]:
    """What dense layers for one task need of features of ``shape``.

    Args:
        shape: The shape without the rows.
        norm: Of the layers.

    Returns:
        What makes vectors of the features, their width, and what comes before the width in the shape of what the
        layers return: a text keeps its positions, a feature map does not.

    Raises:
        ShapeError: for features that are neither vectors, texts nor feature maps.
        RecipeError: for batch norm on the positions of texts, which are not all there in every row.

    Example:
        >>> private_from((ANY, 8), None)
        ([], 8, (-1,))
    """
    if len(shape) == 2 and shape[0] == ANY:
        if norm == "batch":
            raise RecipeError("norm: batch does not go with the positions of texts. Use norm: layer, or none.")
        return [], shape[1], (ANY,)
    return (*vector_from(shape), ())


def vector_from(shape: tuple[int, ...]) -> tuple[list[nn.Module], int]:
    """What turns features of ``shape`` into one vector a row, and that vector's width.

    Args:
        shape: The shape without the rows: ``(d,)``, ``(c, h, w)`` and ``(c, d, h, w)`` of feature maps, or
            ``(ANY, d)`` of texts.

    Raises:
        ShapeError: for features that are neither vectors, texts nor feature maps.
    """
    if len(shape) == 1:
        return [], shape[0]
    if len(shape) == 2 and shape[0] == ANY:
        return [FirstPosition()], shape[1]
    if len(shape) in (3, 4):
        return [GlobalPool()], shape[0]
    raise ShapeError(
        f"Heads read vectors (d,) or feature maps (channels, height, width); the encoder's features have the shape "
        f"{shape} without the rows. Let the encoder pool or flatten them."
    )


def task_key(task: str) -> str:
    """The name of a task's module: without dots, and never an attribute that modules have anyway.

    Example:
        >>> task_key("income"), task_key("a.b"), task_key("type")
        ('income', 'a%2Eb', 'type%')
    """
    key = task.replace("%", "%25").replace(".", "%2E")
    return f"{key}%" if not key or hasattr(nn.ModuleDict(), key) else key


def per_task(modules: Mapping[str, nn.Module] | Iterable[tuple[str, nn.Module]]) -> nn.ModuleDict:
    """Modules by task name, whatever the names are; read them with ``task_key``."""
    return nn.ModuleDict({task_key(name): module for name, module in dict(modules).items()})
