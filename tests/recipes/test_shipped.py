"""The recipes that come with polytask can be read, and those on pictures run from files of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest

from polytask.data.datasets import multi_mnist
from polytask.recipes.build import build, make_tasks
from polytask.recipes.load import load_recipe
from polytask.training.fit import train

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_can_be_read(path):
    recipe = load_recipe(path)
    assert set(make_tasks(recipe)) == set(recipe.tasks)


def test_pictures_of_ones_own_train_the_convolutional_network(tmp_path, monkeypatch):
    monkeypatch.setattr(multi_mnist, "PICTURES", 60)
    monkeypatch.setattr(multi_mnist, "PARTS", {"train": 40, "validation": 8, "test": 12})
    random = np.random.default_rng(0)
    for digit in range(10):
        (tmp_path / f"{digit}.json").write_text(json.dumps({"data": random.random(6 * 784).round(2).tolist()}))
    path = next(path for path in RECIPES if path.stem == "multi_mnist")
    recipe = load_recipe(path, [f"data.root={tmp_path}", "training.epochs=1", "training.device=cpu"])
    built = build(recipe)
    assert {part: len(source) for part, (source,) in built.sources.items()} == multi_mnist.PARTS
    inputs = built.sources["train"][0].example
    assert inputs.shape == (2, 1, 36, 36)
    assert 0 <= inputs.min() < inputs.max() <= 1
    run = train(built.model, built.sources["train"], built.sources["validation"], settings=recipe.training)
    state = inputs
    for stage in run.model.sharing.encoder.stages:
        state = stage(state)
    # A mean over several positions would forget which garment lies where.
    assert state.shape == (2, 64, 1, 1)
