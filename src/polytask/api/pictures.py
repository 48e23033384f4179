"""Sample images for the report: what is true of them, and what the model says."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.source import Source
from polytask.evaluation import TaskOutputs
from polytask.tasks.task import Task, labelled

COUNT = 6
"""Images that are shown of a task."""
SEARCHED = 64
"""Rows among which labelled ones are looked for."""


def pictures(task: Task, outputs: TaskOutputs, sources: Sequence[Source]) -> dict[str, Any]:
    """The figure ``pictures`` of a task with boxes or pixels; nothing for other tasks, or without images.

    Args:
        task: The task.
        outputs: Its outputs over the sources, in their order.
        sources: Where the rows came from, as this process evaluated them.
    """
    if task.target.form not in _SHOWN:
        return {}
    mine = next((source for source in sources if task.name in source.tasks and source.random_access), None)
    if mine is None:
        return {}
    batch = mine.take(torch.arange(min(SEARCHED, len(mine))))
    images = _images(batch.inputs)
    if images is None:
        return {}
    # The first labelled rows of the first source are the first rows of the outputs.
    rows = labelled(batch.targets[task.name]).nonzero().flatten()[:COUNT]
    truth = batch.targets[task.name][rows]
    size = list(images.shape[-2:])
    shown = [{"image": png(_bytes(image)), "size": size} for image in images[rows]]
    told = _SHOWN[task.target.form](task, outputs.raw[: len(rows)], truth)
    return {"pictures": [picture | more for picture, more in zip(shown, told, strict=True)]}


def _images(inputs: Any) -> Tensor | None:
    """The first input that looks like images: ``[rows, 1 or 3, h, w]``."""
    found = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    return next((t for t in found if isinstance(t, Tensor) and t.dim() == 4 and t.shape[1] in (1, 3)), None)


def _bytes(image: Tensor) -> NDArray[np.uint8]:
    """An image ``[1 or 3, h, w]`` as bytes ``[h, w, 3]``; numbers outside of 0 to 1 are stretched to that."""
    values = image.detach().cpu().float().numpy()
    if image.dtype == torch.uint8:
        values = values / 255
    elif values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
    whole = np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0)
    return np.round(255 * whole).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> str:
    """Pixels ``[h, w, 3 or 4]`` as a PNG image, in base 64."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(pixels), format="png")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _boxes(task: Task, raw: Tensor, truth: Tensor) -> list[dict[str, Any]]:
    names = task.target.classes or ()
    said = [json.loads(text) for text in task.decode(raw)[""]]
    shown = []
    for boxes, predicted in zip(truth.tolist(), said, strict=True):
        true = [{"label": names[int(box[0])], "box": box[1:]} for box in boxes if box[0] >= 0]
        shown.append({"boxes": {"true": true, "predicted": predicted}, "within": task.options["size"]})
    return shown


def _masks(task: Task, raw: Tensor, truth: Tensor) -> list[dict[str, Any]]:
    palette = _palette(len(task.target.classes or ()))
    pairs = zip(truth.numpy(), raw.numpy(), strict=True)
    return [{"masks": {"true": png(palette[true]), "predicted": png(palette[said])}} for true, said in pairs]


def _palette(count: int) -> NDArray[np.uint8]:
    """Half-transparent colours of the classes; the first class, and the last row for no label, are clear."""
    from matplotlib import colormaps

    colours = colormaps["tab10" if count <= 11 else "tab20"](np.arange(max(count, 1)) - 1)
    found = np.round(255 * np.vstack([colours, np.zeros(4)])).astype(np.uint8)
    found[1:-1, 3] = 150
    found[0] = 0
    return found


def _maps(task: Task, raw: Tensor, truth: Tensor) -> list[dict[str, Any]]:
    from matplotlib import colormaps

    known = truth[~truth.isnan()]
    low, high = float(known.min()), float(known.max())

    def coloured(values: Tensor) -> str:
        share = (values.float().numpy() - low) / max(high - low, 1e-12)
        pixels = np.round(255 * colormaps["viridis"](np.nan_to_num(share))).astype(np.uint8)
        pixels[np.isnan(share)] = 0
        return png(pixels)

    return [{"masks": {"true": coloured(t), "predicted": coloured(r)}} for t, r in zip(truth, raw, strict=True)]


_SHOWN = {"boxes": _boxes, "mask": _masks, "map": _maps}
