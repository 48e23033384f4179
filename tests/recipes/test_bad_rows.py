"""Rows that cannot be used: an error that names the first, or skipped with a warning that counts them."""

import json

import polars as pl
import pytest
from click.testing import CliRunner

from polytask.cli import main
from polytask.errors import DataError, RecipeError
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe, write_yaml

ENCODER = {"name": "bilstm", "embedding": 4, "characters": 0, "hidden": 4}
PARTS = ["train", "train", "validation", "test"] * 6


def write(frame, path, on_bad, tasks, inputs, encoder="tabular"):
    frame.write_parquet(path)
    data = {"table": str(path), "split": {"by": "part"}, "on_bad": on_bad}
    return load_recipe({"data": data, "tasks": tasks, "inputs": inputs, "model": {"encoder": encoder}})


def numbers(changes, column):
    """A table of text, as a CSV is read, with other values in some records."""
    rows = {"age": [str(n) for n in range(24)], "visits": [str(n % 5) for n in range(24)], "kind": ["a", "b", "c"] * 8}
    for record, value in changes.items():
        rows[column][record - 1] = value
    return pl.DataFrame({**rows, "part": PARTS})


TASKS = {"visits": {"type": "counts"}, "kind": {"type": "multiclass"}}


@pytest.mark.parametrize(
    ("column", "changes", "message", "sizes"),
    [
        ("age", {2: "old", 9: "x"}, r"Record 2, .*column 'age': 'old' is not a number", (10, 6, 6)),
        ("age", {3: "inf"}, r"Column 'age' has 1 infinite values, the first in record 3", (12, 5, 6)),
        ("visits", {4: "-1", 8: "0.5"}, r"Record 4, .*column 'visits': -1 is no count", (12, 6, 4)),
        ("visits", {4: "many"}, r"Record 4, .*'visits': 'many' is not a number", (12, 6, 5)),
        # A class that no training row has.
        ("kind", {3: "d"}, r"Record 3, .*column 'kind': 'd' is not among the classes", (12, 5, 6)),
    ],
)
def test_rows_of_a_table(tmp_path, column, changes, message, sizes):
    frame, inputs = numbers(changes, column), {"age": {"kind": "number"}}
    with pytest.raises(DataError, match=message):
        build(write(frame, tmp_path / "a.parquet", "error", TASKS, inputs))
    with pytest.raises(DataError, match=message):
        build(write(frame, tmp_path / "a.parquet", None, TASKS, inputs))
    with pytest.warns(UserWarning, match=rf"a.parquet: Skipped {len(changes)} of 24 rows .* Record {min(changes)}, "):
        built = build(write(frame, tmp_path / "a.parquet", "skip", TASKS, inputs))
    assert tuple(len(built.sources[part][0]) for part in ("train", "validation", "test")) == sizes
    # What is left is what a table without these rows gives.
    rest = frame.with_row_index().filter(~pl.col("index").is_in([record - 1 for record in changes])).drop("index")
    whole = build(write(rest, tmp_path / "b.parquet", "error", TASKS, inputs))
    for part, (source,) in built.sources.items():
        assert source.rows.inputs["numbers"].equal(whole.sources[part][0].rows.inputs["numbers"])
        for task in TASKS:
            assert source.rows.targets[task].equal(whole.sources[part][0].rows.targets[task])


def test_faults_of_every_kind_are_counted_together_by_their_records(tmp_path):
    frame = numbers({5: "old"}, "age").with_columns(
        kind=pl.when(pl.int_range(pl.len()) == 6).then(pl.lit("d")).otherwise("kind"),
        visits=pl.when(pl.int_range(pl.len()) == 19).then(pl.lit("-2")).otherwise("visits"),
    )
    with pytest.warns(UserWarning, match="Skipped 3 of 24 rows") as caught:
        built = build(write(frame, tmp_path / "a.parquet", "skip", TASKS, {"age": {"kind": "number"}}))
    told = str(caught[0].message)
    assert "Record 5, column 'age': 'old' is not a number." in told
    assert "Record 7, task 'kind', column 'kind': 'd' is not among the classes." in told
    assert "Record 20, task 'visits', column 'visits': -2 is no count (0, 1, 2, ...)." in told
    assert told in built.notes


def test_a_part_without_usable_rows_is_an_error(tmp_path):
    frame = numbers(dict.fromkeys(range(3, 25, 4), "x"), "age")
    with pytest.raises(DataError, match=r"no row of 'validation' can be used. Skipped 6 of 24 .* Record 3, .* \.\.\."):
        build(write(frame, tmp_path / "a.parquet", "skip", TASKS, {"age": {"kind": "number"}}))


def texts(**changes):
    rows = {"words": ["fly to Oslo now"] * 24, "slots": ["O O B-CITY O"] * 24}
    for column, cells in changes.items():
        for record, value in cells.items():
            rows[column][record - 1] = value
    return pl.DataFrame({**rows, "part": PARTS})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": {2: "O O I-CITY O"}}, r"Record 2, task 'slots', .* word 3: 'I-CITY' stands behind 'O'"),
        ({"slots": {3: "O O O"}}, r"Record 3, task 'slots', .* there are 3 tags for the 4 words of 'words'"),
        ({"words": {4: None}}, r"Record 4, column 'words': there is no text"),
        ({"slots": {8: "O O B-TOWN O"}}, r"Record 8, task 'slots', .*'B-TOWN' is not among the tags"),
    ],
)
def test_rows_of_texts_and_tags(tmp_path, changes, message):
    tasks, inputs = {"slots": {"type": "tagging"}}, {"words": {"kind": "text"}}
    with pytest.raises(DataError, match=message):
        build(write(texts(**changes), tmp_path / "a.parquet", "error", tasks, inputs, ENCODER))
    with pytest.warns(UserWarning, match=f"Skipped 1 of 24 rows that cannot be used. {message}"):
        built = build(write(texts(**changes), tmp_path / "a.parquet", "skip", tasks, inputs, ENCODER))
    assert sum(len(sources[0]) for sources in built.sources.values()) == 23
    assert all((source.rows.targets["slots"] >= 0).all() for (source,) in built.sources.values())


def test_lines_of_a_column_file(tmp_path):
    good, poor = "fly O\nOslo B-CITY\n", "go O\nRome B-CITY extra\nnow O\n"
    files = {"train": [good, poor, good], "validation": ["only\n", good, good], "test": [good, good]}
    for part, found in files.items():
        (tmp_path / part).write_text("-DOCSTART- O\n\n" + "\n".join(found))
    data = {part: str(tmp_path / part) for part in files} | {"format": "conll", "columns": ["words", "slots"]}
    plain = {"tasks": {"slots": {"type": "tagging"}}, "inputs": {"words": "text"}, "model": {"encoder": ENCODER}}
    with pytest.raises(DataError, match=r"Line 7 of '.*train' has 3 fields, but 2 were expected \(words, slots\)"):
        build(load_recipe({**plain, "data": data}))
    with pytest.warns(UserWarning, match=r"Skipped 1 of 3 rows .* Record \d, line \d has \d fields") as caught:
        built = build(load_recipe({**plain, "data": {**data, "on_bad": "skip"}}))
    assert [len(built.sources[part][0]) for part in files] == [2, 2, 2]
    assert "Record 2, line 7 has 3 fields, but 2 were expected (words, slots): 'Rome B-CITY extra'." in str(
        caught[0].message
    )
    assert "Record 1, line 3 has 1 fields, but 2 were expected (words, slots): 'only'." in str(caught[1].message)
    assert built.schema.texts[0].words == ("fly", "oslo")


def test_boxes_outside_of_their_image(tmp_path):
    boxes = [json.dumps([{"label": "cup", "box": [1, 1, 5, 6]}])] * 24
    boxes[0], boxes[3], boxes[6] = "[{}]", boxes[3].replace("[1, 1", "[-1, 1"), "no json"
    frame = pl.DataFrame({"image": [[[[0.5] * 8] * 8]] * 24, "boxes": boxes, "part": PARTS})
    encoder = {"name": "convnet", "in_channels": 1, "channels": [4], "pool": False}
    tasks, inputs = {"boxes": {"type": "detection", "size": [8, 8]}}, {"image": {"kind": "image"}}
    with pytest.raises(DataError, match=r"a.parquet: Record 1 of column 'boxes': \{\} is no box"):
        build(write(frame, tmp_path / "a.parquet", "error", tasks, inputs, encoder))
    with pytest.warns(UserWarning, match=r"Skipped 3 of 24 .*Record 4, task 'boxes': .* reaches outside .*Record 7, "):
        built = build(write(frame, tmp_path / "a.parquet", "skip", tasks, inputs, encoder))
    assert [len(built.sources[part][0]) for part in ("train", "validation", "test")] == [11, 5, 5]


def test_each_table_may_say_it_for_itself(tmp_path):
    numbers({2: "old"}, "age").write_parquet(tmp_path / "a.parquet")
    entry = {"table": str(tmp_path / "a.parquet"), "split": {"by": "part"}}
    plain = {"tasks": TASKS, "inputs": {"age": "number"}}
    tables = {"visits": entry, "kind": {**entry, "on_bad": "error"}}
    with pytest.raises(DataError, match=r"Record 2, .*'old' is not a number"):
        build(load_recipe({**plain, "data": {"tables": tables, "on_bad": "skip"}}))
    tables["kind"] = entry
    with pytest.warns(UserWarning, match="Skipped 1 of 24 rows") as caught:
        build(load_recipe({**plain, "data": {"tables": tables, "on_bad": "skip"}}))
    assert len(caught) == 2


def test_the_command_line_says_how_many_rows_were_skipped(tmp_path):
    numbers({2: "old"}, "age").write_csv(tmp_path / "a.csv")
    plain = {
        "data": {"table": str(tmp_path / "a.csv"), "split": {"by": "part"}},
        "tasks": TASKS,
        "inputs": {"age": "number"},
        "training": {"epochs": 1, "device": "cpu"},
    }
    (tmp_path / "a.yaml").write_text(write_yaml(plain))
    asked = ["fit", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "run")]
    failed = CliRunner().invoke(main, asked)
    assert failed.exit_code
    assert "Record 2, column 'age': 'old' is not a number" in failed.output
    with pytest.warns(UserWarning, match="Skipped 1 of 24 rows"):
        done = CliRunner().invoke(main, [*asked, "--set", "data.on_bad=skip"])
    assert done.exit_code == 0, done.output
    assert "Skipped 1 of 24 rows that cannot be used. Record 2, column 'age': 'old' is not a number." in done.output


def test_an_unknown_way_is_named():
    with pytest.raises(RecipeError, match=r"data.on_bad: Unknown way 'skp'. Known: error, skip. Did you mean 'skip'"):
        load_recipe({"data": {"table": "a.csv", "on_bad": "skp"}, "tasks": {"a": {"type": "binary"}}})
