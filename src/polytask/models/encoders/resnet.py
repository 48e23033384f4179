"""Residual networks whose parameters have the names that published weights use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from polytask import registry
from polytask.errors import RecipeError, unknown
from polytask.models.encoders.convnet import map_norm
from polytask.models.encoders.staged import Staged
from polytask.models.encoders.weights import Normalise, load_weights, pixels
from polytask.sharing.layers import GlobalPool

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        stride: Of the first convolution.
        norm: ``"batch"`` or ``"group"``.
    """

    def __init__(self, before: int, after: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = map_norm(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = map_norm(norm, after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), map_norm(norm, after))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[rows, before, h, w]`` to ``[rows, after, h / stride, w / stride]``."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        inner = self.bn1(self.conv1(maps)).relu()
        return (self.bn2(self.conv2(inner)) + shortcut).relu()  # type: ignore[no-any-return]


class ResNet(Staged):
    """A residual network of basic blocks.

    Parameters are named ``conv1``, ``bn1``, ``layer1`` to ``layer4`` as in published weights, which load
    without their last layer ``fc``.

    Args:
        blocks: Blocks of each of the four layers.
        in_channels: Channels of the image.
        small_images: Start with a 3 x 3 convolution at full size (for images such as 32 x 32) in place of a
            7 x 7 convolution with stride 2 and a pooling.
        norm: ``"batch"`` or ``"group"``.
        pool: Whether features are averaged over positions, ``[rows, 512]``; else they are maps ``[rows, 512, h, w]``.
        normalise: Whether images from 0 to 1 are standardised by ImageNet's means and deviations, as published weights
            want.

    Raises:
        RecipeError: for an unknown norm, or numbers of blocks that are not four numbers from 1.

    Reference:
        He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016), table 1.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        in_channels: int = 3,
        small_images: bool = False,
        norm: str = "batch",
        pool: bool = True,
        normalise: bool = False,
    ):
        super().__init__()
        if norm not in ("batch", "group"):
            raise RecipeError(unknown("norm", str(norm), ("batch", "group")))
        if len(blocks) != len(WIDTHS) or min(blocks) < 1:
            raise RecipeError(f"A ResNet has four layers of one or more blocks; found {list(blocks)}.")
        if normalise and in_channels != 3:
            raise RecipeError(f"normalise is for images with 3 channels; found in_channels {in_channels}.")
        self.normalise = Normalise() if normalise else nn.Identity()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = map_norm(norm, WIDTHS[0])
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1)
        before = WIDTHS[0]
        for number, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=1):
            first = BasicBlock(before, width, 1 if number == 1 else 2, norm)
            rest = [BasicBlock(width, width, 1, norm) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            before = width
        self.channel_dims = (1,) * len(WIDTHS)
        self.pool = GlobalPool() if pool else nn.Identity()
        self.out_features = WIDTHS[-1] if pool else None
        self.reset_parameters()

    @property
    def stages(self) -> list[nn.Module]:  # type: ignore[override]
        """The four layers; they are not registered twice, so that published names hold."""
        return [self.get_submodule(f"layer{number}") for number in range(1, 5)]

    def reset_parameters(self) -> None:
        """Draw convolutions as the paper's successor does: normal, scaled by the outputs (fan out)."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
                part.reset_parameters()

    def begin(self, inputs: Tensor) -> Tensor:
        """The stem; images of bytes become floats from 0 to 1 first."""
        return self.maxpool(self.bn1(self.conv1(self.normalise(pixels(inputs)))).relu())  # type: ignore[no-any-return]

    def end(self, state: Tensor) -> Tensor:
        """The mean over positions, or the map itself."""
        return self.pool(state)  # type: ignore[no-any-return]


def resnet18(
    in_channels: int = 3,
    small_images: bool = False,
    norm: str = "batch",
    pool: bool = True,
    normalise: bool = False,
    weights: str | None = None,
) -> ResNet:
    """ResNet-18; see ``ResNet`` for the other arguments.

    Args:
        in_channels: Channels of the image.
        small_images: Start with a 3 x 3 convolution.
        norm: ``"batch"`` or ``"group"``.
        pool: Whether features are averaged over positions.
        normalise: Whether images are standardised as published weights want.
        weights: File of published weights, ``.safetensors`` or ``.pth``; those of its last layer ``fc`` are left out.

    Raises:
        RecipeError: if the weights are not those of this network.

    Example:
        >>> import torch
        >>> resnet18(small_images=True).eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """
    own = {"in_channels": in_channels, "small_images": small_images, "norm": norm, "pool": pool, "normalise": normalise}
    return _made("resnet18", (2, 2, 2, 2), own, weights)


def resnet34(
    in_channels: int = 3,
    small_images: bool = False,
    norm: str = "batch",
    pool: bool = True,
    normalise: bool = False,
    weights: str | None = None,
) -> ResNet:
    """ResNet-34; see ``resnet18`` for the arguments.

    Example:
        >>> resnet34(in_channels=1).out_features
        512
    """
    own = {"in_channels": in_channels, "small_images": small_images, "norm": norm, "pool": pool, "normalise": normalise}
    return _made("resnet34", (3, 4, 6, 3), own, weights)


def _made(name: str, blocks: tuple[int, ...], options: dict[str, Any], weights: str | None) -> ResNet:
    network = ResNet(blocks, **options)
    if weights is not None:
        load_weights(network, weights, skip=("fc.",))
    # A bundle holds the weights itself, so the file is not noted.
    return registry.mark(network, name, options)
