"""Boxes as people write them."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from polytask.data.boxes import as_boxes
from polytask.data.convert import as_target
from polytask.data.targets import encode_target, fit_target
from polytask.errors import DataError
from polytask.tasks import detection
from polytask.tasks.task import labelled

TASK = detection("things", ["cup", "dog"], size=[20, 30])
NAMED = [{"label": "dog", "box": [1, 2, 11.5, 9]}, {"label": "cup", "box": [0, 0, 30, 20]}]
FLAT = [{"label": "dog", "x1": 1.0, "y1": 2.0, "x2": 11.5, "y2": 9.0}, *[dict(NAMED[1], extra=1)]]
ROW = [[1, 1, 2, 11.5, 9], [0, 0, 0, 30, 20]]


@pytest.mark.parametrize("row", [NAMED, json.dumps(NAMED), FLAT, [["dog", 1, 2, 11.5, 9], ("cup", 0, 0, 30, 20)]])
def test_the_forms_of_a_row(row):
    found = as_target([row, [], None], TASK)
    assert found.dtype == torch.float32
    assert found[0].tolist() == ROW
    assert found[1].tolist() == [[-1, 0, 0, 0, 0]] * 2
    assert found[2].isnan().all()
    assert labelled(found).tolist() == [True, True, False]


def test_numbers_name_classes_without_names_and_tensors_stay():
    task = detection("things", 2, size=[20, 30])
    assert as_target([ROW], task)[0].tolist() == ROW
    whole = torch.tensor([ROW], dtype=torch.float64)
    assert torch.equal(as_target(whole, task), whole.float())
    assert torch.equal(as_target(whole.numpy(), task), whole.float())


def test_columns_of_text_and_of_structs():
    text = pl.DataFrame({"things": [json.dumps(NAMED), "[]", None]})
    floats = [dict(box, box=[float(side) for side in box["box"]]) for box in NAMED]
    structs = pl.DataFrame({"things": [floats, [], None]})
    assert isinstance(structs.schema["things"], pl.List)
    open_task = detection("things", size=[20, 30])
    for frame in (text, structs):
        task = fit_target(frame, open_task)
        assert task.target.classes == ("cup", "dog")
        assert torch.equal(encode_target(frame, task).nan_to_num(7), as_boxes([NAMED, [], None], TASK).nan_to_num(7))
    numbered = pl.DataFrame({"things": ["[[10, 1, 1, 3, 3], [2, 1, 1, 4, 4]]"]})
    assert fit_target(numbered, open_task).target.classes == ("2", "10")


def test_boxes_of_larger_images_are_scaled():
    found = as_boxes([[["dog", 10, 20, 40, 40]]], TASK, sizes=np.array([[40, 90]]))
    np.testing.assert_allclose(found[0, 0], [1, 10 / 3, 10, 40 / 3, 20], rtol=1e-6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[{", "Record 1 of task 'things': the boxes are not JSON"),
        ("3", "found int, not a list of boxes"),
        ('[{"label": "dog", "box": [1, 2, 3]}]', r"is no box. Write"),
        ('[{"label": "dog", "box": [1, 2, 3, "x"]}]', r"is no box. Write"),
        ('[{"box": [1, 2, 3, 4]}]', r"is no box. Write"),
        ('[["dgo", 1, 2, 3, 4]]', "'dgo' is not among the classes: cup, dog. Did you mean 'dog'"),
        ('[["dog", 1, 2, 31, 4]]', r"box \(1, 2, 31, 4\) reaches outside of the image of 30 x 20 pixels.*clip or drop"),
        ('[["dog", 5, 2, 5, 4]]', r"box \(5, 2, 5, 4\) has no area"),
    ],
)
def test_boxes_that_cannot_be_used_name_the_record(row, message):
    with pytest.raises(DataError, match=message):
        encode_target(pl.DataFrame({"things": [row]}), TASK)


def test_classes_have_to_be_known_before_names_are_read():
    with pytest.raises(DataError, match=r"classes of task 'things' are not known yet. Declare them"):
        as_target([[]], detection("things", size=[20, 30]))


def test_rows_count_from_zero_outside_of_tables():
    with pytest.raises(DataError, match="Row 1 of task 'things'"):
        as_target([[], [["dog", 5, 2, 5, 4]]], TASK)
    with pytest.raises(DataError, match="there is Int64; boxes are JSON text or lists"):
        encode_target(pl.DataFrame({"things": [1]}), TASK)


def test_bad_boxes_are_clipped_or_dropped():
    rows = [[["dog", -5, 2, 40, 4], ["cup", 35, 0, 40, 5], ["cup", 1, 1, 2, 2], ["cup", 3, 3, 3, 9]]]
    clipped = as_target(rows, TASK.with_options(on_bad="clip"))
    assert clipped[0].tolist() == [[1, 0, 2, 30, 4], [0, 1, 1, 2, 2]]
    assert as_target(rows, TASK.with_options(on_bad="drop"))[0].tolist() == [[0, 1, 1, 2, 2]]
