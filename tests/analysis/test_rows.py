"""Rows that a worker maps are the rows that the recipe stands for."""

import polars as pl
import pytest
import torch

from polytask.analysis.rows import digest, open_rows, write_rows
from polytask.data.batch import map_tensors
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe


@pytest.fixture
def recipe(tmp_path):
    """Two tasks with a table each, one with row weights, gaps and categories."""
    rows = range(40)
    up = {
        "x": [i / 7 if i % 5 else None for i in rows],
        "job": ["ab"[i % 2] for i in rows],
        "up": [i % 3 % 2 for i in rows],
    }
    pl.DataFrame(up | {"w": [1 + i % 4 for i in rows]}).write_csv(tmp_path / "up.csv")
    pl.DataFrame({"x": [-i for i in rows], "job": ["b"] * 40, "size": [2.5 * i for i in rows]}).write_csv(
        tmp_path / "size.csv"
    )
    return {
        "data": {
            "tables": {
                "up": {"table": str(tmp_path / "up.csv"), "weight": "w"},
                "size": {"table": str(tmp_path / "size.csv")},
            }
        },
        "tasks": {"up": {"type": "binary"}, "size": {"type": "regression"}},
        "inputs": {"x": "number", "job": "category"},
    }


def tensors(batch):
    found = []
    map_tensors(
        [batch.inputs, list(batch.targets.values()), list(batch.weights.values())], lambda t: found.append(t) or t
    )
    return found


def test_what_is_written_comes_back_and_stays_on_disk(recipe, tmp_path):
    built = build(load_recipe(recipe))
    write_rows(built, tmp_path / "rows", ("train", "validation"))
    found = open_rows(str(tmp_path / "rows"))
    assert found.schema == built.schema
    assert [task.name for task in found.tasks] == ["up", "size"]
    assert [dict(task.options) for task in found.tasks] == [dict(task.options) for task in built.model.tasks.values()]
    for part in ("train", "validation"):
        for ours, theirs in zip(found.sources[part], built.sources[part], strict=True):
            assert ours.tasks == theirs.tasks
            pairs = list(zip(tensors(ours.rows), tensors(theirs.rows), strict=True))
            assert len(pairs) > 2
            for mapped, given in pairs:
                assert mapped.dtype == given.dtype
                assert torch.equal(mapped.nan_to_num(9.0), given.nan_to_num(9.0))


def test_the_fingerprint_follows_every_value(recipe, tmp_path):
    def found(**changes):
        return digest(build(load_recipe({**recipe, **changes})))

    first = found()
    assert found() == first
    assert found(model={"encoder": {"name": "tabular", "hidden": [4]}}) == first
    table = tmp_path / "size.csv"
    table.write_text(table.read_text().replace("97.5", "97.6"))
    assert found() != first
    assert found(inputs={"x": "number"}) != found()
