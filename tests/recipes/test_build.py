"""From a recipe to tensors and a model; errors name the record of the file that a person can open."""

import numpy as np
import polars as pl
import pytest
import torch

from polytask.errors import DataError, RecipeError
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe
from polytask.training.fit import prepare_model


def frame(rows=200):
    random = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "age": random.integers(18, 80, rows).astype(str),
            "job": random.choice(["cook", "nurse"], rows),
            "sold": random.choice(["yes", "no"], rows),
            "size": random.normal(50, 10, rows).round(1).astype(str),
        }
    )


def put(table: pl.DataFrame, column: str, record: int, value: str | None) -> pl.DataFrame:
    values = table[column].to_list()
    values[record - 1] = value
    return table.with_columns(pl.Series(column, values))


def made(tmp_path, table, **changes):
    path = tmp_path / "people.csv"
    table.write_csv(path)
    plain = {
        "data": {"table": str(path)},
        "tasks": {"sold": {"type": "binary"}, "size": {"type": "regression"}},
        **changes,
    }
    return build(load_recipe(plain))


def test_shares_are_as_asked_and_stratified(tmp_path):
    data = {"table": str(tmp_path / "people.csv"), "split": {"validation": 0.25, "test": 0.2, "stratify": "sold"}}
    built = made(tmp_path, frame(), data=data)
    sizes = {part: len(sources[0]) for part, sources in built.sources.items()}
    assert sizes == {"train": 120, "validation": 40, "test": 40}
    shares = [sources[0].targets("sold").mean().item() for sources in built.sources.values()]
    assert max(shares) - min(shares) < 0.03


def test_statistics_come_from_training_rows_only(tmp_path):
    built = made(tmp_path, frame())
    numbers = built.sources["train"][0].take(torch.arange(len(built.sources["train"][0]))).inputs["numbers"]
    assert numbers.mean(0).abs().max() < 1e-6
    assert built.schema.numbers[0].name == "age"


def test_inference_is_told(tmp_path):
    table = frame().with_columns(pl.lit("x").alias("unit"), pl.Series("key", [f"id{i}" for i in range(200)]))
    notes = "\n".join(made(tmp_path, table).notes)
    assert "age: number" in notes
    assert "job: category" in notes
    assert "unit: left out" in notes
    assert "key: left out" in notes


def test_targets_and_weights_are_never_inputs(tmp_path):
    table = frame().with_columns(pl.Series("w", np.linspace(0.5, 2, 200).round(3)))
    data = {"table": str(tmp_path / "people.csv"), "weight": "w"}
    built = made(tmp_path, table, data=data)
    assert {column.name for column in built.columns} == {"age", "job"}
    assert built.sources["train"][0].weights("size") is not None
    with pytest.raises(RecipeError, match=r"inputs.size is the target of a task"):
        made(tmp_path, table, inputs={"age": "number", "size": "number"})


def test_rows_without_any_label_are_skipped_and_counted(tmp_path):
    table = put(put(frame(), "sold", 7, None), "size", 7, None)
    built = made(tmp_path, table)
    assert built.skipped == 1
    assert "Skipped 1 rows: they have no label for any task." in built.notes
    assert sum(len(s[0]) for s in built.sources.values()) == 199


def test_a_split_column_divides_and_is_no_input(tmp_path):
    part = ["train"] * 120 + ["validation"] * 40 + ["test"] * 40
    data = {"table": str(tmp_path / "people.csv"), "split": {"by": "part"}}
    built = made(tmp_path, frame().with_columns(pl.Series("part", part)), data=data)
    assert {p: len(s[0]) for p, s in built.sources.items()} == {"train": 120, "validation": 40, "test": 40}
    assert "part" not in {column.name for column in built.columns}


def test_a_csv_without_header_with_other_separator_and_missing_marks(tmp_path):
    path = tmp_path / "p.csv"
    put(frame(), "age", 3, "?").write_csv(path, include_header=False, separator=";")
    built = build(
        load_recipe(
            {
                "data": {"table": str(path), "header": False, "separator": ";", "na": ["?"]},
                "tasks": {"sold": {"type": "binary", "column": "column_3"}},
                "inputs": {"column_1": "number", "column_2": "category"},
            }
        )
    )
    assert built.schema.missing == ("column_1",) or built.schema.missing == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: put(t, "age", 57, "forty"), r"people.csv: Record 57, .*'age'.*'forty'"),
        (lambda t: put(t, "size", 123, "big"), r"people.csv: Record 123, .*'size'.*'big'"),
        (lambda t: put(t, "sold", 99, "maybe"), r"Record 99, .*'maybe'"),
        (lambda t: put(t, "age", 12, "inf"), r"'age'.*infinite"),
    ],
)
def test_bad_values_are_named_with_the_record_of_the_file(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        made(tmp_path, change(frame()), inputs={"age": "number", "job": "category"})


def test_a_task_without_any_label_is_named(tmp_path):
    table = frame().with_columns(pl.lit(None, dtype=pl.String).alias("size"))
    built = made(tmp_path, table, inputs={"age": "number", "job": "category"})
    with pytest.raises(DataError, match=r"'size' has no label at all in the \d+ training rows"):
        prepare_model(built.model, built.sources["train"])


def test_a_class_that_only_validation_has_is_named(tmp_path):
    part = ["train"] * 150 + ["validation"] * 50
    table = put(frame(), "job", 180, "pilot").with_columns(pl.Series("part", part))
    with pytest.raises(DataError, match=r"Record 180, .*'pilot' is not among the classes: cook, nurse"):
        made(
            tmp_path,
            table,
            data={"table": str(tmp_path / "people.csv"), "split": {"by": "part"}},
            tasks={"job": {"type": "multiclass"}},
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"agee": "number"}}, r"inputs.agee: the table has no such column. Did you mean 'age'\?"),
        ({"tasks": {"sodl": {"type": "binary"}}}, r"no target column of task 'sodl' 'sodl'|Did you mean 'sold'"),
        ({"tasks": {"sold": {"type": "binry"}}}, r"tasks.sold: Unknown task 'binry'.*Did you mean 'binary'"),
        ({"tasks": {"sold": {"type": "binary", "smoothing": 1}}}, r"tasks.sold: 'binary': Unknown option 'smoothing'"),
        ({"model": {"encoder": "tabulr"}}, r"Unknown encoder 'tabulr'.*Did you mean 'tabular'"),
        ({"model": {"encoder": {"name": "tabular", "hiden": [3]}}}, r"Unknown option 'hiden'.*Did you mean 'hidden'"),
        ({"model": {"sharing": "hrad"}}, r"Unknown sharing 'hrad'.*Did you mean 'hard'"),
        ({"preprocessing": {"scal": "none"}}, r"preprocessing: Unknown option 'scal'.*Did you mean 'scale'"),
        ({"data": {"dataset": "census"}}, r"Unknown dataset 'census'.*Did you mean 'census_income'"),
        ({"data": {"table": "peopel.csv"}}, r"peopel.csv"),
    ],
)
def test_names_that_do_not_exist(tmp_path, changes, message):
    with pytest.raises((DataError, RecipeError), match=message):
        made(tmp_path, frame(), **changes)


def test_tables_and_tasks_have_to_agree(tmp_path):
    frame().write_csv(tmp_path / "a.csv")
    entry = {"table": str(tmp_path / "a.csv")}
    with pytest.raises(RecipeError, match=r"data.tables: Unknown task 'solde'.*Did you mean 'sold'"):
        made(tmp_path, frame(), data={"tables": {"sold": entry, "solde": entry}})
    with pytest.raises(RecipeError, match=r"Task 'size' has no table"):
        made(tmp_path, frame(), data={"tables": {"sold": entry}})


def test_images_in_parquet_reach_a_convolutional_encoder(tmp_path):
    random = np.random.default_rng(0)
    images = random.random((60, 1, 8, 8)).astype(np.float32)
    path = tmp_path / "images.parquet"
    pl.DataFrame({"image": images.tolist(), "bright": (images.mean((1, 2, 3)) > 0.5).astype(int)}).write_parquet(path)
    built = build(
        load_recipe(
            {
                "data": {"table": str(path)},
                "inputs": {"image": "image"},
                "tasks": {"bright": {"type": "binary"}},
                "model": {"encoder": {"name": "convnet", "in_channels": 1, "channels": [4, 8]}},
            }
        )
    )
    inputs = built.sources["train"][0].example
    assert inputs.shape == (2, 1, 8, 8)
    built.model.build(inputs)
    assert built.model(inputs)["bright"].shape == (2,)
