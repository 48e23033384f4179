"""Texts, images, numbers and categories in one model."""

import polars as pl
import pytest
import torch

import polytask as pt
from polytask.data.schema import TableSchema
from polytask.errors import DataError, RecipeError
from polytask.models.encoders import ConvNet, Fusion
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe

INPUTS = {"note": "text", "photo": "image", "age": "number", "shop": "category"}


@pytest.fixture
def table(tmp_path):
    """Each kind of column knows one part of the answer, so only a model that reads all of them gets it right."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (400, 4), generator=generator)
    photos = [[[[float(bit)] * 4] * 4] for bit in bits[:, 1].tolist()]
    frame = {
        "note": [["a good day", "a bad day"][bit] for bit in bits[:, 0].tolist()],
        "photo": photos,
        "age": bits[:, 2].float() + 0.1 * torch.randn(400, generator=generator),
        "shop": ["xy"[bit] for bit in bits[:, 3].tolist()],
        "count": bits.sum(1).tolist(),
    }
    path = tmp_path / "mixed.parquet"
    pl.DataFrame(
        {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in frame.items()}
    ).write_parquet(path)
    return path


def recipe_of(table, parts, **changes):
    plain = {
        "data": {"table": str(table)},
        "tasks": {"count": {"type": "regression"}},
        "inputs": INPUTS,
        "model": {"encoder": {"name": "fusion", "parts": parts, "hidden": [32]}},
        "training": {"epochs": 12, "batch_size": 32, "lr": 0.01, "device": "cpu"},
    }
    return {**plain, **changes}


def test_all_kinds_of_columns_together(table, folder, tmp_path):
    photo = {"name": "convnet", "in_channels": 1, "channels": [4]}
    note = {"name": "bilstm", "hidden": 6, "embedding": 6, "characters": 0, "dropout": 0.0, "word_dropout": 0.0}
    run = pt.run(recipe_of(table, {"photo": photo, "note": note}), out=tmp_path / "run", progress=False)
    assert run.scores["count"]["r2"] > 0.95
    predictor = pt.load(tmp_path / "run" / "bundle")
    frame = pl.read_parquet(table)
    found = predictor.predict(frame)["count"]
    assert (found - frame["count"]).abs().mean() < 0.3
    # A pretrained text model as a part: its tokenizer is found, and lies in the bundle.
    inputs = {**INPUTS, "note": {"kind": "text", "longest": 30}}
    parts = {"photo": photo, "note": {"name": "hub", "model": str(folder)}, "table": {"name": "tabular", "hidden": [4]}}
    pt.run(recipe_of(table, parts, inputs=inputs), overrides=["training.steps=2"], out=tmp_path / "hub", progress=False)
    assert len(pt.load(tmp_path / "hub" / "bundle").predict(frame)) == 400


def test_wrong_parts_are_named(table):
    photo = {"name": "convnet", "in_channels": 1}
    for parts, text in (
        ({"foto": photo}, "Unknown column 'foto'. .*Did you mean 'photo'"),
        ({"photo": {"in_channels": 1}}, "parts.photo has no name of an encoder"),
        ({"photo": {**photo, "colour": 1}}, "parts.photo: 'convnet': Unknown option 'colour'"),
        ({"photo": {**photo, "pool": False}}, "parts.photo: ConvNet has no out_features"),
    ):
        with pytest.raises(RecipeError, match=text):
            build(load_recipe(recipe_of(table, parts)))
    with pytest.raises(DataError, match="the image column 'photo' has no encoder"):
        build(load_recipe(recipe_of(table, {})))
    with pytest.raises(DataError, match="needs columns to read"):
        Fusion(TableSchema())
    with pytest.raises(RecipeError, match="hidden is empty"):
        Fusion(TableSchema(arrays={"photo": (1, 4, 4)}), {"photo": photo}, hidden=[])
    encoder = Fusion(TableSchema(arrays={"photo": (1, 4, 4)}), {"photo": photo})
    assert isinstance(encoder.parts["photo"], ConvNet)
    with pytest.raises(DataError, match="lack the column 'photo'; found: other"):
        encoder({"other": torch.zeros(1)})
