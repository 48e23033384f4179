"""The head of maps, and tasks with a label at every pixel from rows to a bundle."""

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import polytask as pt
from polytask.data.maps import as_map, as_mask
from polytask.data.targets import encode_target
from polytask.errors import DataError, ShapeError
from polytask.models.encoders.convnet import ConvNet
from polytask.models.heads import MapHead, make_head
from polytask.tasks.task import HeadSpec

NAN = float("nan")


def test_a_map_head_is_a_convolution_resizing_and_an_affine_map():
    spec = HeadSpec(outputs=2, form="map", size=(6, 6), shift=(1.0, -2.0), scale=3.0)
    head = make_head(spec, (4, 3, 3))
    assert isinstance(head, MapHead)
    features = torch.randn(2, 4, 3, 3)
    plain = nn.functional.conv2d(features, head.output.weight, head.output.bias)
    wide = nn.functional.interpolate(plain, (6, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(features), 3 * wide + torch.tensor([1.0, -2.0]).view(1, 2, 1, 1))


def test_private_layers_and_half_precision():
    head = make_head(HeadSpec(outputs=2, form="map", hidden=(8,), dropout=0.5), (4, 3, 3)).eval()
    assert [type(part) for part in head.layers] == [nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.Dropout2d]
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.randn(2, 4, 3, 3)).dtype == torch.float32


def test_a_map_head_needs_maps():
    with pytest.raises(ShapeError, match=r"features have the shape \(8,\).*pool: false"):
        make_head(HeadSpec(outputs=2, form="map"), (8,))


def test_masks_come_in_many_forms():
    expected = [[[0, -1], [2, 1]]]
    for rows in (
        np.array([[[0, 255], [2, 1]]], dtype=np.uint8),
        np.array([[[0.0, NAN], [2.0, 1.0]]]),
        torch.tensor(expected),
        [[[0, -1], [2, 1]]],
    ):
        assert as_mask(rows, "task 't'").tolist() == expected
    both = as_mask([None, np.array([[7, 255]], dtype=np.uint8)], "task 't'")
    assert both.tolist() == [[[-1, -1]], [[7, -1]]]
    assert as_map([None, [[1.5, NAN]]], "task 't'").isnan().tolist() == [[[True, True]], [[False, True]]]


@pytest.mark.parametrize(
    ("make", "rows", "message"),
    [
        (as_mask, np.zeros((2, 3)), r"shape \[2, 3\]; it has to be \[rows, height, width\]"),
        (as_mask, np.array([[[0.0]], [[0.5]]]), "Row 1 of task 't': a pixel has the class number 0.5"),
        (as_mask, [np.zeros((2, 2)), np.zeros((2, 3))], r"Row 1 of task 't' has a map of \[2, 3\]"),
        (as_mask, [None], "no label at all"),
        (as_map, np.array([[[np.inf]]]), "Row 0 of task 't': a pixel is infinite"),
    ],
)
def test_masks_that_cannot_be_used(make, rows, message):
    with pytest.raises(DataError, match=message):
        make(rows, "task 't'")


def test_columns_of_arrays_are_masks_and_maps():
    frame = pl.DataFrame({"parts": [[[0, 1]], None], "depth": [[[1.0, None]], [[2.0, 3.0]]], "word": ["a", "b"]})
    assert encode_target(frame, pt.tasks.segmentation("parts", 2)).tolist() == [[[0, 1]], [[-1, -1]]]
    assert encode_target(frame, pt.tasks.dense_regression("depth"))[1].tolist() == [[2.0, 3.0]]
    with pytest.raises(DataError, match=r"column 'word' there is String; it has to hold one array"):
        encode_target(frame, pt.tasks.dense_regression("word"))
    with pytest.raises(DataError, match=r"column 'word': there is no image file 'a'"):
        encode_target(frame, pt.tasks.segmentation("word", 2))


def squares(rows=48, side=16, seed=0):
    """Images with one bright square each: where it is, how bright, and whether it is on the left."""
    generator = np.random.default_rng(seed)
    image = generator.normal(0, 0.1, (rows, 1, side, side)).astype(np.float32)
    mask = np.zeros((rows, side, side), dtype=np.int8)
    depth = np.full((rows, side, side), NAN, dtype=np.float32)
    for row in range(rows):
        top, left = generator.integers(0, side - 6, 2)
        level = generator.uniform(1, 2)
        place = (slice(top, top + 6), slice(left, left + 6))
        image[row, 0][place] += level
        mask[row][place] = 1
        depth[row][place] = level
    mask[3], depth[5:9] = -1, NAN
    return {"image": image, "parts": mask, "depth": depth, "left": (mask[:, :, :8] == 1).any((1, 2)).astype(int)}


def test_pixels_and_rows_are_learned_from_one_map_and_survive_a_bundle(tmp_path):
    torch.manual_seed(0)
    made = [
        pt.tasks.segmentation("parts", ["ground", "square"], dice=0.5),
        pt.tasks.dense_regression("depth"),
        pt.tasks.binary("left"),
    ]
    data = squares()
    model = pt.MultiTaskModel(pt.sharing.Hard(ConvNet(1, [16, 16], pool=False)), made)
    run = pt.fit(
        model, data, data, epochs=15, batch_size=16, lr=0.01, out=tmp_path / "run", device="cpu", progress=False
    )
    assert run.scores["parts"]["miou"] > 0.8
    assert run.scores["depth"]["mae"] < 0.2
    predictor = pt.load(tmp_path / "run" / "bundle")
    found = predictor.predict(data["image"])
    assert found["parts"].dtype.shape == (16, 16)
    again = pt.evaluate(predictor.model, data)
    assert again["parts"]["miou"] == pytest.approx(run.scores["parts"]["miou"])
    report = (tmp_path / "run" / "report.html").read_text()
    assert "iou" in report.lower()
