import datetime

import polars as pl
import pytest

from polytask.data.infer import FEW, describe_inference, guess_inputs, infer_inputs


def guess(values):
    return guess_inputs(pl.DataFrame({"x": values}, strict=False))[0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([str(i / 4) for i in range(50)], "number"),
        ([i * 7 % 90 for i in range(80)] * 2, "number"),
        (["0.5", "0.25", None] * 10, "number"),
        (list(range(FEW)) * 3, "category"),
        (list(range(FEW + 1)) * 3, "number"),
        ([True, False, True], "category"),
        (["f", "m", None], "category"),
        (["a", None], "category"),
        ([[1.0, 2.0], [3.0, 4.0]], "image"),
        ([f"city {i % 40}" for i in range(100)], "category"),
        (["a", "a"], None),
        ([None, None], None),
        (list(range(100, 200)), None),
        ([f"person {i}" for i in range(50)], None),
        ([f"a long remark about the weather, number {i % 30}" for i in range(50)], None),
        ([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)], None),
    ],
)
def test_rules(values, kind):
    assert guess(values).kind == kind
    assert guess(values).reason


def test_small_tables_are_not_taken_for_ids():
    assert guess(["ann", "bob", "eve"]).kind == "category"
    assert guess([1, 2, 3]).kind == "category"


def test_columns_named_like_ids():
    values = [7919 * i % 1000003 for i in range(60)]
    frame = pl.DataFrame({"Customer_ID": values, "amount": values})
    assert infer_inputs(frame) == {"amount": "number"}


def test_a_mark_for_missing_values_is_pointed_out():
    found = guess([str(i / 3) for i in range(60)] + ["-"])
    assert found.kind is None or "'-'" in found.reason
    often = guess([str(i % 9) for i in range(60)] + ["-"])
    assert often.kind == "category"
    assert "such as '-'; if that means missing, add it to na" in often.reason


def test_excluded_columns_and_lines():
    frame = pl.DataFrame({"y": [0, 1], "age": [1.5, 2.5], "unit": ["a", "a"]})
    lines = describe_inference(guess_inputs(frame, exclude=["y"]))
    assert lines == [
        "age: number (numbers from 1.5 to 2.5)",
        "unit: left out (every row has the value 'a'). Name it among the inputs to use it.",
    ]
