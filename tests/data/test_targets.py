import math

import polars as pl
import pytest
import torch

from polytask import registry
from polytask.data.targets import drop_unlabelled, encode_target, encode_weight, fit_target, infer_classes
from polytask.errors import DataError

NAN = math.nan


def test_classes(make_task, same):
    task = make_task("c", "class", ("low", "high"))
    got = encode_target(pl.DataFrame({"c": ["high", None, "low"]}), task)
    assert got.dtype == torch.int64
    same(got, [1, -1, 0])


def test_label_outside_of_the_classes_is_named(make_task):
    task = make_task("c", "class", ("low", "high"))
    text = r"Record 2, task 'c', column 'c': 'hihg' is not among the classes: low, high. .*Did you mean 'high'\?"
    with pytest.raises(DataError, match=text):
        encode_target(pl.DataFrame({"c": ["low", "hihg"]}), task)
    with pytest.raises(DataError, match="2 records hold classes outside of them: x, y"):
        encode_target(pl.DataFrame({"c": ["low", "x", "y"]}), task)


@pytest.mark.parametrize(
    ("values", "classes"),
    [(["b", None, "a"], ("a", "b")), (["10", "9", "2"], ("2", "9", "10")), ([3, 1, 2], ("1", "2", "3"))],
)
def test_inferred_classes(make_task, values, classes):
    assert infer_classes(pl.DataFrame({"c": values}), make_task("c", "class")) == classes


def test_one_class_is_none(make_task):
    with pytest.raises(DataError, match=r"has 1 classes in the training rows: a. There have to be two"):
        infer_classes(pl.DataFrame({"c": ["a", None]}), make_task("c", "class"))


def test_unknown_classes_are_asked_for(make_task):
    with pytest.raises(DataError, match="classes of task 'c' are not known yet"):
        encode_target(pl.DataFrame({"c": ["a"]}), make_task("c", "class"))


def test_fit_target_builds_the_task_with_its_classes(make_task, monkeypatch):
    built = []

    def build(*given, **named):
        built.append((given, named))
        return make_task("c", "class", tuple(given[2]["classes"]))

    monkeypatch.setattr(registry, "build", build)
    fitted = fit_target(pl.DataFrame({"c": ["b", "a"]}), make_task("c", "class"))
    assert fitted.target.classes == ("a", "b")
    assert built == [(("tasks", "class", {"columns": (), "classes": ["a", "b"]}), {"name": "c"})]
    declared = make_task("c", "class", ("a", "b", "z"))
    assert fit_target(pl.DataFrame({"c": ["b", "a"]}), declared) is declared


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["1", "0", None], [1, 0, NAN]),
        (["Yes", " no", "TRUE"], [1, 0, 1]),
        ([True, False, None], [1, 0, NAN]),
        ([1.0, 0.25, NAN], [1, 0.25, NAN]),
        (["0.5", None, "f"], [0.5, NAN, 0]),
    ],
)
def test_binary(make_task, same, values, wanted):
    got = encode_target(pl.DataFrame({"b": values}), make_task("b", "binary"))
    assert got.dtype == torch.float32
    same(got, wanted)


def test_declared_positive_value_against_all_others(make_task, same):
    task = make_task("b", "binary", positive="never")
    same(encode_target(pl.DataFrame({"b": ["never", "once", None, "twice"]}), task), [1, 0, NAN, 0])
    assert fit_target(pl.DataFrame({"b": ["never", "once"]}), task) is task
    with pytest.raises(
        DataError, match=r"positive is 'never', which no training row has.*It has: Never, once. Did you"
    ):
        fit_target(pl.DataFrame({"b": ["Never", "once"]}), task)


@pytest.mark.parametrize("value", ["high", "2", "inf", -1])
def test_binary_asks_for_positive(make_task, value):
    frame = pl.DataFrame({"b": [0 if isinstance(value, int) else "0", value]})
    with pytest.raises(DataError, match=r"Record 2, task 'b', column 'b': .* is none of 0/1.* positive: "):
        fit_target(frame, make_task("b", "binary"))


def test_labels_from_columns(make_task, same):
    task = make_task("m", "labels", ("p", "q"), columns=("p", "q"))
    got = encode_target(pl.DataFrame({"p": [1, 0, None], "q": ["yes", None, None]}), task)
    same(got, [[1, 1], [0, NAN], [NAN, NAN]])


def test_labels_from_one_column(make_task, same):
    frame = pl.DataFrame({"m": ["b|a", "b", None, "a | c", "|"]})
    assert infer_classes(frame, make_task("m", "labels")) == ("a", "b", "c")
    task = make_task("m", "labels", ("a", "b", "c"))
    same(encode_target(frame, task), [[1, 1, 0], [0, 1, 0], [NAN] * 3, [1, 0, 1], [0, 0, 0]])
    lists = pl.DataFrame({"m": [["b", "a"], [], None]})
    same(encode_target(lists, task), [[1, 1, 0], [0, 0, 0], [NAN] * 3])
    same(encode_target(pl.DataFrame({"m": ["a;c"]}), task, separator=";"), [[1, 0, 1]])
    same(encode_target(pl.DataFrame({"m": [None, None]}, schema={"m": pl.String}), task), [[NAN] * 3] * 2)
    with pytest.raises(DataError, match=r"Record 3, task 'm', column 'm': 'd' is not among the labels: a, b, c."):
        encode_target(pl.DataFrame({"m": ["a|b", "|", "c|d"]}), task)


def test_numbers(make_task, same):
    same(encode_target(pl.DataFrame({"y": ["1.5", None]}), make_task("y", "number")), [1.5, NAN])
    two = make_task("y", "number", columns=("u", "v"))
    same(encode_target(pl.DataFrame({"u": [1, 2], "v": [3.0, NAN]}), two), [[1, 3], [2, NAN]])
    with pytest.raises(DataError, match="Record 2, target column of task 'y' 'y': 'x' is not a number"):
        encode_target(pl.DataFrame({"y": ["1", "x"]}), make_task("y", "number"))
    with pytest.raises(DataError, match="Record 1, target column of task 'y' 'y': the value is infinite"):
        encode_target(pl.DataFrame({"y": ["inf", "1"]}), make_task("y", "number"))
    with pytest.raises(DataError, match=r"no target column of task 'y' 'v'. It has: u"):
        encode_target(pl.DataFrame({"u": [1]}), two)


def test_counts(make_task, same):
    task = make_task("n", "count")
    same(encode_target(pl.DataFrame({"n": ["3", None, "0"]}), task), [3, NAN, 0])
    for wrong in (-1, 0.5):
        with pytest.raises(DataError, match=f"Record 2, task 'n', column 'n': {wrong} is no count"):
            encode_target(pl.DataFrame({"n": [1.0, wrong]}), task)


def test_soft_labels(make_task, same):
    task = make_task("s", "distribution", ("p", "q"), columns=("p", "q"))
    same(encode_target(pl.DataFrame({"p": [0.25, None], "q": [0.75, None]}), task), [[0.25, 0.75], [NAN, NAN]])
    for q in (0.9, None, -0.25):
        with pytest.raises(DataError, match="Record 1, task 's': the soft labels are"):
            encode_target(pl.DataFrame({"p": [0.25], "q": [q]}, schema={"p": pl.Float64, "q": pl.Float64}), task)


def test_weights():
    for wrong, shown in ((-1.0, "-1"), (None, "a missing value")):
        with pytest.raises(DataError, match=f"Record 2, weight column 'w': {shown} is no weight"):
            encode_weight(pl.DataFrame({"w": [1.0, wrong]}), "w")
    with pytest.raises(DataError, match="All weights in column 'w' are 0"):
        encode_weight(pl.DataFrame({"w": [0.0]}), "w")


def test_rows_without_labels():
    targets = {"a": torch.tensor([NAN, 1.0]), "b": torch.tensor([-1, -1])}
    rows, line = drop_unlabelled(targets)
    assert rows.tolist() == [1]
    assert line == "Skipped 1 of 2 rows: they have no label for any task."
    assert drop_unlabelled({"a": torch.ones(2)})[1] is None
    with pytest.raises(DataError, match=r"No row has a label for any of the tasks: b"):
        drop_unlabelled({"b": torch.tensor([-1])})
