"""Sample images with what is true of them and what the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH = 260
"""Pixels of the page that an image is wide."""


def pictures_view(pictures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Drawings of sample images, each with a caption.

    Args:
        pictures: The figure ``pictures`` of a task, as ``TaskRecord`` describes it.
    """
    return [view for picture in pictures for view in (_with_boxes if "boxes" in picture else _with_masks)(picture)]


def _with_boxes(picture: Mapping[str, Any]) -> list[dict[str, Any]]:
    boxes = picture["boxes"]
    height, width = picture["within"]
    # All boxes are drawn over the image, so that each thing stands beside what was said of it.
    body = _image(picture["image"], width, height)
    body += "".join(_rectangle(box, width, true=True) for box in boxes["true"])
    body += "".join(_rectangle(box, width, true=False) for box in boxes["predicted"])
    caption = f"{len(boxes['true'])} true (dashed), {len(boxes['predicted'])} predicted"
    return [{"drawing": _drawing(body, width, height, caption), "caption": caption}]


def _with_masks(picture: Mapping[str, Any]) -> list[dict[str, Any]]:
    height, width = picture["size"]
    views = []
    for what, masks in (("image", ()), ("true", ("true",)), ("predicted", ("predicted",))):
        body = _image(picture["image"], width, height)
        body += "".join(_image(picture["masks"][mask], width, height) for mask in masks)
        views.append({"drawing": _drawing(body, width, height, what), "caption": what})
    return views


def _drawing(body: str, width: float, height: float, label: str) -> Markup:
    head = f'<svg viewBox="0 0 {width:g} {height:g}" style="width:{WIDTH}px;max-width:100%" role="img" '
    return Markup(f'{head}aria-label="{escape(label)}">{body}</svg>')


def _image(data: str, width: float, height: float) -> str:
    source = f"data:image/png;base64,{escape(data)}"
    return (
        f'<image href="{source}" width="{width:g}" height="{height:g}" preserveAspectRatio="none" '
        'style="image-rendering:pixelated"/>'
    )


def _rectangle(box: Mapping[str, Any], width: float, *, true: bool) -> str:
    x1, y1, x2, y2 = box["box"]
    unit = width / WIDTH
    place = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}" fill="none"'
    if true:
        # White over black is seen on any ground.
        dashes = f'stroke-dasharray="{5 * unit:g} {4 * unit:g}"'
        return (
            f'<rect {place} stroke="#000" stroke-width="{2.6 * unit:g}" opacity="0.6"/>'
            f'<rect {place} stroke="#fff" stroke-width="{1.6 * unit:g}" {dashes}/>'
        )
    size = 11 * unit
    text = escape(f"{box['label']} {box['score']:.2f}")
    top = y1 - 3 * unit if y1 > size + 3 * unit else y1 + size
    outline = f'stroke="#000" stroke-width="{2.4 * unit:g}" paint-order="stroke" fill="#ffb000"'
    return (
        f'<rect {place} stroke="#ffb000" stroke-width="{1.8 * unit:g}"/>'
        f'<text x="{x1 + 2 * unit:g}" y="{top:g}" font-size="{size:g}" {outline}>{text}</text>'
    )
