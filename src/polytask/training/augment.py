"""Random changes of a training batch's images that move boxes and pixels' labels along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polytask.data.batch import Batch, map_tensors
from polytask.errors import DataError
from polytask.tasks.task import Task
from polytask.training.settings import AugmentSettings

VISIBLE = 0.25
"""Part of a box that has to stay in the image; a box that keeps less is left out."""


class Windows:
    """For every row the part of the image that it shows, as ends along x and y from 0 to 1; swapped ends mirror.

    Args:
        low: Where the left and the upper side of the result lie in the image, ``[rows, 2]``.
        high: Where the right and the lower side lie, ``[rows, 2]``.

    Example:
        >>> mirrored = Windows(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        >>> mirrored.boxes(torch.tensor([[[2.0, 1.0, 0.0, 4.0, 5.0]]]), (10, 10))
        tensor([[[2., 6., 0., 9., 5.]]])
    """

    def __init__(self, low: Tensor, high: Tensor):
        self.low, self.high = low, high

    @classmethod
    def drawn(cls, rows: int, settings: AugmentSettings, generator: torch.Generator) -> Windows:
        """Windows as the settings say."""
        share = torch.rand(rows, 5, generator=generator)
        flips = share[:, :2] < torch.tensor([settings.flip, settings.flip_vertical])
        size = 1 + settings.crop * (2 * share[:, 2:3] - 1)
        middle = 0.5 + settings.crop * (share[:, 3:] - 0.5)
        low, high = middle - size / 2, middle + size / 2
        return cls(torch.where(flips, high, low), torch.where(flips, low, high))

    def images(self, images: Tensor) -> Tensor:
        """Floating images ``[rows, c, h, w]``, bilinear; 0 beyond the border, where going on would stretch things."""
        height, width = images.shape[-2:]
        x, y = (_centres(side, images) for side in (width, height))
        low, high = (2 * end.to(images) - 1 for end in (self.low, self.high))
        along_x = low[:, :1] + x * (high - low)[:, :1]
        along_y = low[:, 1:] + y * (high - low)[:, 1:]
        shape = (len(images), height, width)
        grid = torch.stack([along_x[:, None].expand(shape), along_y[:, :, None].expand(shape)], -1)
        return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)

    def nearest(self, maps: Tensor, outside: float | int) -> Tensor:
        """Maps ``[rows, h, w]``, each pixel from its nearest one; ``outside`` beyond the border."""
        height, width = maps.shape[-2:]
        found, known = maps, torch.ones((), dtype=torch.bool, device=maps.device)
        for axis, side in ((1, height), (0, width)):
            low, high = (end[:, axis : axis + 1].to(maps.device) for end in (self.low, self.high))
            place = ((low + _centres(side, low) * (high - low)) * side).floor().long()
            within = (place >= 0) & (place < side)
            place = place.clamp(0, side - 1)
            index = place[:, :, None].expand_as(found) if axis else place[:, None].expand_as(found)
            found = found.gather(1 if axis else 2, index)
            known = known & (within[:, :, None] if axis else within[:, None])
        return found.where(known, outside)

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes ``[rows, n, 5]`` in pixels of images of a size; those that leave the image become padding."""
        sides = boxes.new_tensor([size[1], size[0]])
        low, span = (end[:, None].to(boxes) for end in (self.low, self.high - self.low))
        ends = torch.stack([(boxes[..., at : at + 2] / sides - low) / span * sides for at in (1, 3)])
        first, last = ends.amin(0), ends.amax(0)
        inside = torch.minimum(first.clamp_min(0), sides), torch.minimum(last.clamp_min(0), sides)
        seen, whole = (inside[1] - inside[0]).prod(-1), (last - first).prod(-1)
        moved = torch.cat([boxes[..., :1], *inside], -1)
        padding = boxes.new_tensor([-1.0, 0, 0, 0, 0])
        stays = ((seen >= VISIBLE * whole) & (seen > 0) & (boxes[..., 0] >= 0)).unsqueeze(-1)
        # A row without a label is NaN throughout and has to stay so.
        return torch.where(stays, moved, torch.where(boxes.isnan(), boxes, padding))


def _centres(side: int, like: Tensor) -> Tensor:
    """Centres of pixels along a side, from 0 to 1, ``[side]``."""
    return (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side


class Augment:
    """Changes batches as the settings say.

    Flips and crops move boxes, masks and maps of the same rows. Colours change by factors of contrast and of each
    channel; noise comes last. Images of bytes become floats from 0 to 1 and stay in that range; floats are taken to
    be of that order and are not cut. Labels of whole images stay what they are.

    Args:
        settings: What is changed, and how much.
        tasks: The tasks by name.
        generator: Draws all random numbers.
    """

    def __init__(self, settings: AugmentSettings, tasks: Mapping[str, Task], generator: torch.Generator):
        self.settings, self.tasks, self.generator = settings, tasks, generator

    def __call__(self, batch: Batch) -> Batch:
        """The batch with other images, on the devices where its tensors are.

        Raises:
            DataError: if none of the inputs is an image.
        """
        found: list[Tensor] = []
        map_tensors(batch.inputs, lambda t: found.append(t) if is_image(t) else None)  # type: ignore[arg-type,return-value]
        if not found:
            raise DataError(
                "training.augment is for images [rows, 1 or 3, height, width], and no input is one. Leave it out, or "
                "use input_noise for numbers."
            )
        windows = Windows.drawn(len(batch), self.settings, self.generator)
        inputs = map_tensors(batch.inputs, lambda t: self._image(t, windows) if is_image(t) else t)
        targets = {name: self._target(self.tasks[name], target, windows) for name, target in batch.targets.items()}
        return Batch(inputs, targets, batch.weights)

    def _image(self, image: Tensor, windows: Windows) -> Tensor:
        settings, of_bytes = self.settings, image.dtype == torch.uint8
        values = image.float() / 255 if of_bytes else image
        if settings.moves:
            values = windows.images(values)
        if settings.colour:
            values = self._coloured(values)
        if settings.noise:
            values = values + settings.noise * self._random(torch.randn, values.shape, values)
        return values.clamp(0, 1) if of_bytes else values

    def _coloured(self, values: Tensor) -> Tensor:
        shares = self._random(torch.rand, (*values.shape[:2], 2), values)
        # A factor of contrast for each row, and one of brightness for each of its channels.
        factors = 1 + self.settings.colour * (2 * shares - 1)
        gain, contrast = factors[..., 0, None, None], factors[:, :1, 1, None, None]
        middle = values.mean((1, 2, 3), keepdim=True)
        return ((values - middle) * contrast + middle) * gain

    def _random(self, draw: Callable[..., Tensor], shape: Any, like: Tensor) -> Tensor:
        return draw(shape, generator=self.generator, dtype=torch.float32).to(like)

    def _target(self, task: Task, target: Tensor, windows: Windows) -> Tensor:
        form = task.target.form
        if not self.settings.moves or form not in ("boxes", "mask", "map"):
            return target
        if form == "boxes":
            return windows.boxes(target, tuple(task.options["size"]))
        return windows.nearest(target, -1 if form == "mask" else float("nan"))


def is_image(tensor: Tensor) -> bool:
    """Whether a tensor looks like images, ``[rows, 1 or 3, h, w]``, of bytes or floats."""
    return (
        tensor.dim() == 4 and tensor.shape[1] in (1, 3) and (tensor.is_floating_point() or tensor.dtype == torch.uint8)
    )
