import math

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from polytask.data.arrays import DatasetSource, as_source
from polytask.data.batch import Batch
from polytask.data.convert import as_input, as_target
from polytask.data.loader import LoaderSource
from polytask.data.preprocess import InputSpec, TablePreprocessor
from polytask.data.source import TensorSource
from polytask.errors import DataError, ShapeError

NAN = math.nan


class Pairs(Dataset):
    def __init__(self, rows=7):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        return torch.full((2,), float(row)), {"y": None if row == 2 else float(row), "c": row % 3}


class Rows(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, row):
        return {"x": torch.full((2,), float(row)), "y": float(row)}


class Stream(IterableDataset):
    def __init__(self, rows=7, said=None):
        self.rows, self.said = rows, said or rows

    def __len__(self):
        return self.said

    def __iter__(self):
        return iter({"x": torch.full((2,), float(row)), "y": float(row)} for row in range(self.rows))


@pytest.fixture
def tasks(make_task):
    return [make_task("y", "number"), make_task("c", "class", ("u", "v", "w"))]


def test_single_input_is_a_tensor_several_are_a_dict(tasks):
    one = as_source({"x": np.ones((3, 2)), "y": [1, None, 2.5]}, tasks)
    assert isinstance(one, TensorSource)
    assert one.tasks == ("y",)
    assert one.example.dtype == torch.float32
    two = as_source({"x": np.ones((3, 2)), "k": np.arange(3, dtype=np.int32), "y": [1, 2, 3]}, tasks)
    assert {name: tensor.dtype for name, tensor in two.example.items()} == {"x": torch.float32, "k": torch.int64}
    named = as_source({"x": np.ones((3, 2)), "k": np.arange(3), "y": [1, 2, 3]}, tasks, inputs=["k"])
    assert named.example.tolist() == [0, 1]


def test_targets_of_many_forms(tasks, make_task, same):
    number, classes = tasks
    for value in ([1, None, 2.5], np.array([1, NAN, 2.5]), torch.tensor([1, NAN, 2.5], dtype=torch.float64)):
        got = as_target(value, number)
        assert got.dtype == torch.float32
        same(got, [1, NAN, 2.5])
    same(as_target(torch.tensor([0.5, NAN], dtype=torch.bfloat16), number), [0.5, NAN])
    for value in (["w", None, "u"], np.array(["w", None, "u"], dtype=object), [2, None, 0], [2.0, NAN, 0.0]):
        same(as_target(value, classes), [2, -1, 0])
    same(as_target(np.array([2, -7, 0], dtype=np.int8), classes), [2, -1, 0])
    same(as_target([torch.tensor(2), torch.tensor(0)], classes), [2, 0])
    labels = make_task("m", "labels", ("p", "q"))
    same(as_target([[1, 0], None, [0, NAN]], labels), [[1, 0], [NAN, NAN], [0, NAN]])
    same(as_target(np.array(["no", "yes"]), make_task("b", "binary")), [0, 1])
    same(as_target([True, None], make_task("b", "binary")), [1, NAN])


def test_targets_that_the_task_does_not_know(tasks, make_task):
    number, classes = tasks
    with pytest.raises(DataError, match=r"'x' is not among the classes: u, v, w"):
        as_target(["u", "x"], classes)
    with pytest.raises(DataError, match=r"Row 1 of task 'c': class number 3, but there are 3 classes: u, v, w"):
        as_target([0, 3], classes)
    with pytest.raises(DataError, match=r"Row 1 of task 'c': 0.5 is not a class number"):
        as_target([0.0, 0.5], classes)
    with pytest.raises(DataError, match="takes one class a row"):
        as_target(np.zeros((2, 2)), classes)
    with pytest.raises(DataError, match="Row 1 of task 'y': the target is infinite"):
        as_target([0.0, math.inf], number)
    with pytest.raises(DataError, match=r"Row 1 of task 'b': -1.0 is no 0, 1 or probability"):
        as_target([0, -1], make_task("b", "binary"))


def test_inputs_that_cannot_be_used(tasks):
    with pytest.raises(DataError, match="different lengths"):
        as_input([[1.0], [1.0, 2.0]])
    with pytest.raises(DataError, match="not numbers"):
        as_input(["a"])
    with pytest.raises(DataError, match=r"Input 'x' holds NaN or infinite values, the first in row 1"):
        as_source({"x": [1.0, NAN], "y": [1, 2]}, tasks)
    with pytest.raises(ShapeError, match="2 rows"):
        as_source({"x": [1.0, 2.0], "y": [1, 2, 3]}, tasks)
    with pytest.raises(DataError, match="no target for any of the tasks: y, c"):
        as_source({"x": [1.0]}, tasks)
    with pytest.raises(DataError, match="targets only"):
        as_source({"y": [1.0]}, tasks)
    with pytest.raises(DataError, match=r"no 'xx'. They have: x, y. Did you mean 'x'\?"):
        as_source({"x": [1.0], "y": [1.0]}, tasks, inputs=["xx"])


def test_weights_are_no_inputs(tasks):
    source = as_source({"x": [1.0, 2.0], "w": [3.0, 4.0], "y": [1, 2], "c": [0, 1]}, tasks, weight={"y": "w"})
    assert source.example.tolist() == [1.0, 2.0]
    assert source.weights("y").tolist() == [3.0, 4.0]
    assert source.weights("c") is None
    with pytest.raises(DataError, match="Unknown task 'z'"):
        as_source({"x": [1.0], "y": [1]}, tasks, weight={"z": "w"})


def test_frames(tasks):
    frame = pl.DataFrame({"a": [1.0, 3.0], "w": [1, 2], "c": ["w", None]})
    table = TablePreprocessor.fit(frame, {"a": InputSpec("number")})
    source = as_source(frame, tasks, preprocessor=table, weight="w")
    assert source.tasks == ("c",)
    assert source.targets("c").tolist() == [2, -1]
    assert source.weights("c").tolist() == [1.0, 2.0]
    assert source.example["numbers"].tolist() == [[-1.0], [1.0]]
    with pytest.raises(DataError, match="A frame needs a preprocessor"):
        as_source(frame, tasks)
    with pytest.raises(DataError, match="The frame has no target for any"):
        as_source(frame.drop("c"), tasks, preprocessor=table)
    with pytest.raises(DataError, match="found int"):
        as_source(3, tasks)


def test_mapping_by_task(tasks):
    sources = as_source({"c": {"x": [[1.0]], "c": ["u"]}, "y": Rows()}, tasks)
    assert [source.tasks for source in sources] == [("y",), ("c",)]
    assert [len(source) for source in sources] == [7, 1]


def test_options_that_do_not_apply_are_errors(tasks):
    with pytest.raises(DataError, match="weight is for frames and mappings of arrays, not for Pairs"):
        as_source(Pairs(), tasks, weight="w")


def test_dataset(tasks, same):
    source = as_source(Pairs(), tasks)
    assert isinstance(source, DatasetSource)
    assert source.tasks == ("y", "c")
    assert source.targets("y") is None
    batch = source.take(torch.tensor([4, 2]))
    same(batch.inputs, [[4, 4], [2, 2]])
    same(batch.targets["y"], [4, NAN])
    same(batch.targets["c"], [1, 2])


def test_dataset_faults(tasks, make_task):
    with pytest.raises(DataError, match="no rows"):
        as_source(Pairs(0), tasks)
    with pytest.raises(DataError, match=r"a target 'c', but the tasks are: y, cc. Did you mean 'cc'\?"):
        as_source(Pairs(), [tasks[0], make_task("cc", "class")])
    with pytest.raises(DataError, match=r"Expected \(inputs, targets by task\).*found tuple"):
        as_source(TensorDataset(torch.ones(2, 1), torch.ones(2)), tasks)
    with pytest.raises(DataError, match="Wrap it in a DataLoader"):
        as_source(Stream(), tasks)


def numbered(rows):
    return [{"x": torch.full((2,), float(row)), "y": float(row)} for row in range(rows)]


def test_loader_gives_its_batches_pass_after_pass(tasks):
    source = as_source(DataLoader(numbered(5), batch_size=2), tasks)
    assert isinstance(source, LoaderSource)
    assert (len(source), source.batches(100), source.tasks) == (5, 3, ("y",))
    got = [source.batch(index, 100, [0]).targets["y"].tolist() for index in range(4)]
    assert got == [[0, 1], [2, 3], [4], [0, 1]]
    assert source.take(torch.tensor([3, 0])).targets["y"].tolist() == [3, 0]


def test_loader_shares_a_batch_between_processes(tasks):
    parts = [LoaderSource(DataLoader(numbered(3), batch_size=3), tasks).batch(0, 3, [0], rank, 2) for rank in (0, 1)]
    assert [part.targets["y"].tolist() for part in parts] == [[0, 2], [1]]


def test_loader_goes_on_with_a_warning(tasks):
    source = LoaderSource(DataLoader(numbered(6), batch_size=2), tasks)
    with pytest.warns(UserWarning, match="Skipping 2 batches of a DataLoader"):
        assert source.batch(2, 2, [0]).targets["y"].tolist() == [4, 5]
    assert source.batch(0, 2, [0]).targets["y"].tolist() == [0, 1]


def test_loader_may_yield_batches(tasks):
    def collate(items):
        return Batch(torch.stack([item["x"] for item in items]), {"y": torch.tensor([item["y"] for item in items])})

    source = as_source(DataLoader(numbered(2), batch_size=2, collate_fn=collate), tasks)
    assert source.batch(0, 2, [0]).targets["y"].tolist() == [0, 1]


def test_stream_is_read_in_its_order(tasks):
    source = as_source(DataLoader(Stream(), batch_size=2), tasks)
    for _ in range(2):
        got = [source.take(torch.arange(start, min(start + 3, 7))).targets["y"].tolist() for start in (0, 3, 6)]
        assert got == [[0, 1, 2], [3, 4, 5], [6]]
    with pytest.raises(DataError, match="can only be read row after row"):
        source.take(torch.tensor([4]))
    short = as_source(DataLoader(Stream(3, said=5), batch_size=2), tasks)
    with pytest.raises(DataError, match="says it has 5 rows, but it ends after 3"):
        short.take(torch.arange(5))


def test_loader_without_batches(tasks):
    with pytest.raises(DataError, match="yields no batch"):
        as_source(DataLoader(numbered(1), batch_size=2, drop_last=True), tasks)
