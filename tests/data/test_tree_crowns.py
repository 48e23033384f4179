"""Tiles of aerial pictures, from small pictures of one's own."""

import numpy as np
import pytest
from PIL import Image

from polytask.data.datasets import tree_crowns
from polytask.errors import DataError

BOX = "<object><name>Tree</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_crowns, "VALIDATION_FROM", 1)
    generator = np.random.default_rng(0)
    for name in (tree_crowns.TRAINING, *tree_crowns.TESTED):
        pixels = generator.integers(0, 256, (140, 300, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        # In the first tile; across the border, mostly in the first; mostly in the second; in the rest at the border.
        boxes = [(10, 20, 30, 60), (108, 0, 138, 40), (118, 60, 158, 80), (270, 10, 290, 20)]
        text = "".join(BOX.format(*box) for box in boxes)
        (tmp_path / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
    return tmp_path


def test_tiles_hold_the_pixels_and_the_boxes_that_lie_in_them(folder):
    found = tree_crowns.load(folder)
    assert {part: frame.height for part, frame in found.items()} == {"train": 1, "validation": 1, "test": 6}
    first, second = found["train"].row(0, named=True), found["validation"].row(0, named=True)
    sides = [[box[side] for side in ("x1", "y1", "x2", "y2")] for box in first["boxes"]]
    assert sides == [[5, 10, 15, 30], [54, 0, 64, 20]]
    assert [[box[side] for side in ("x1", "y1", "x2", "y2")] for box in second["boxes"]] == [[0, 30, 15, 40]]
    assert (first["trees"], second["trees"]) == (2, 1)
    assert {box["label"] for box in first["boxes"]} == {"tree"}
    pixels = np.asarray(Image.open(folder / f"{tree_crowns.TRAINING}.png")).astype(float)
    image = np.array(found["validation"]["image"].to_list()[0])
    assert image.shape == (3, 64, 64)
    assert image[1, 0, 3] == np.round(pixels[:2, 134:136, 1].mean())
    assert set(found["test"]["picture"]) == set(tree_crowns.TESTED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "no file of boxes in the Pascal VOC format"),
        ("<annotation><object/></annotation>", "no file of boxes in the Pascal VOC format"),
        ("<annotation></annotation>", "has no box"),
    ],
)
def test_files_of_boxes_that_cannot_be_used(folder, text, message):
    (folder / "OSBS_029.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        tree_crowns.load(folder)
