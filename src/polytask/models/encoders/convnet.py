"""A small convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from polytask import registry
from polytask.errors import RecipeError, unknown
from polytask.models.encoders.staged import Staged
from polytask.models.encoders.weights import pixels
from polytask.sharing.layers import GlobalPool, activation, check_dropout


def map_norm(name: str | None, channels: int) -> nn.Module:
    """A norm for feature maps: ``"batch"``, ``"group"`` (at most 32 groups) or none.

    Raises:
        RecipeError: for an unknown name.

    Example:
        >>> map_norm("group", 48).num_groups
        24
    """
    if name is None:
        return nn.Identity()
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        groups = max(count for count in range(1, 33) if channels % count == 0)
        return nn.GroupNorm(groups, channels)
    raise RecipeError(unknown("norm", name, ("batch", "group")))


class ConvNet(Staged):
    """A small convolutional network for images.

    Each stage is a convolution, a norm, an activation and a maximum over 2 x 2 positions, which halves
    height and width.

    Args:
        in_channels: Channels of the image ``[rows, in_channels, height, width]``.
        channels: Channels of the stages; the last is the width of the features.
        kernel_size: Height and width of the kernels, odd.
        norm: ``"batch"``, ``"group"`` or None.
        activation: Name of the activation.
        dropout: Probability that a whole channel is dropped after a stage.
        pool: Whether features are averaged over positions, ``[rows, d]``; else they are maps ``[rows, d, h, w]``.

    Raises:
        RecipeError: for an unknown name, no stage, or a number out of range.

    Example:
        >>> import torch
        >>> ConvNet(1, channels=[8, 16])(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (32, 64),
        kernel_size: int = 3,
        norm: str | None = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
        pool: bool = True,
    ):
        super().__init__()
        check_dropout(dropout)
        if not channels or min(in_channels, *channels) < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise RecipeError(
                f"A ConvNet needs channels from 1 and an odd kernel_size; found in_channels {in_channels}, channels "
                f"{list(channels)}, kernel_size {kernel_size}."
            )
        sizes = zip([in_channels, *channels], channels, strict=False)
        self.stages = nn.ModuleList(_stage(*size, kernel_size, norm, activation, dropout) for size in sizes)
        self.channel_dims = (1,) * len(channels)
        self.pool = GlobalPool() if pool else nn.Identity()
        # The size of a feature map depends on the image, so it comes from an example.
        self.out_features = channels[-1] if pool else None
        if type(self) is ConvNet:
            options = {"channels": list(channels), "kernel_size": kernel_size, "norm": norm, "activation": activation}
            registry.mark(self, "convnet", {"in_channels": in_channels, **options, "dropout": dropout, "pool": pool})

    def begin(self, inputs: Tensor) -> Tensor:
        """The images; those of bytes as floats from 0 to 1."""
        return pixels(inputs)

    def end(self, state: Tensor) -> Tensor:
        """The mean over positions, or the map itself."""
        return self.pool(state)  # type: ignore[no-any-return]


def _stage(before: int, after: int, kernel: int, norm: str | None, act: str, dropout: float) -> nn.Sequential:
    # A bias before a norm would be taken out again by it.
    parts: list[nn.Module] = [nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=norm is None)]
    parts += [map_norm(norm, after)] if norm else []
    parts += [activation(act), nn.MaxPool2d(2)]
    parts += [nn.Dropout2d(dropout)] if dropout else []
    return nn.Sequential(*parts)
