"""The recipes on real texts reach what the results page says: minutes of one core each."""

import json
import time
from pathlib import Path

import pytest
import torch

import polytask as pt

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("recipe", "least"),
    [
        ("conll", {("ner", "f1"): 0.85, ("pos", "accuracy"): 0.95}),
        ("atis", {("intent", "accuracy"): 0.965, ("slots", "f1"): 0.945}),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_a_recipe_reaches_its_bars_in_forty_minutes_of_one_core(recipe, least, tmp_path):
    began = time.process_time()
    run = pt.run(RECIPES / f"{recipe}.yaml", out=tmp_path / "run", progress=False)
    assert time.process_time() - began < 40 * 60
    scores = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["test"]
    found = {(task, metric): scores[task][metric] for task, metric in least}
    assert all(found[key] >= bar for key, bar in least.items()), found
