"""Planted groups are found, trained, written as recipes, and compared with one model and with separate ones."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

import polytask as pt
from polytask.analysis.group_jobs import pace
from polytask.analysis.rows import open_rows, write_rows
from polytask.analysis.splits import Grouping, Option, Trained
from polytask.analysis.subsets import subset_recipe
from polytask.errors import RecipeError
from polytask.recipes.build import build
from polytask.recipes.load import dump_recipe, load_recipe

ORDER = ("a0", "b0", "a1", "b1")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Two tasks of one direction and two of another; the one feature can follow one of the two only."""
    path = tmp_path_factory.mktemp("group") / "rows.csv"
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 6))
    sides = {"a": x[:, :3].sum(1), "b": x[:, 3:].sum(1)}
    tasks = {name: (1 + int(name[1])) * (sides[name[0]] + random.normal(size=500)) for name in ORDER}
    pl.DataFrame({f"x{i}": x[:, i] for i in range(6)} | tasks).write_csv(path)
    return {
        "data": {"table": str(path), "split": {"validation": 0.3, "test": 0.2}},
        "inputs": {f"x{i}": "number" for i in range(6)},
        "tasks": {name: {"type": "regression"} for name in ORDER},
        "model": {"encoder": {"name": "tabular", "hidden": [1]}},
        "training": {"batch_size": 64, "lr": 0.05, "epochs": 12, "select": "last", "monitor_every": 0},
    }


def split(plain, out, **options):
    return pt.group(plain, **{"models": 2, "seeds": 2, "steps": 40, "looks": 20, "jobs": 1, "out": out, **options})


@pytest.fixture(scope="module")
def done(plain, tmp_path_factory, here):
    return split(plain, tmp_path_factory.mktemp("done") / "out")


def test_planted_groups_are_recovered_and_pay(done):
    assert set(map(frozenset, done.groups)) == {frozenset({"a0", "a1"}), frozenset({"b0", "b1"})}
    # One feature is right for one side only, so a model for each side beats one for both.
    assert min(done.gains("groups", "together")) > 5
    assert done.trained["separate"].parameters > done.trained["groups"].parameters > done.trained["together"].parameters
    page = (done.path / "report.html").read_text()
    assert "The groups are" in page
    assert "better than one model of all tasks on the test rows" in page
    stored = json.loads((done.path / "results.json").read_text())
    assert stored["figures"]["groups against together"]["mean"] == pytest.approx(
        np.mean(done.gains("groups", "together"))
    )
    assert (done.path / "affinity" / "report.html").exists()


def test_the_recipe_of_a_group_trains_what_was_compared(done, tmp_path):
    members = done.groups[0]
    recipe = load_recipe(done.path / "group-1.yaml")
    assert tuple(recipe.tasks) == members
    run = pt.run(done.path / "group-1.yaml", out=tmp_path / "run", progress=False)
    scores = json.loads((run.path / "metrics.json").read_text())["test"]
    for task in members:
        assert scores[task]["rmse"] == pytest.approx(done.trained["groups"].scores[0][task], rel=1e-5)


def test_more_models_reuse_what_is_there(done, plain, tmp_path):
    heard, folder = [], tmp_path / "out"
    shutil.copytree(done.path, folder)
    again = split(plain, folder, models=4, say=heard.append)
    assert [len(group) for group in again.groups] == [1, 1, 1, 1]
    # The models of four groups are the separate ones: nothing is trained.
    assert not [text for text in heard if "seed" in text and "test" not in text]
    assert again.gains("groups", "separate") == [0.0, 0.0]
    assert sorted(path.name for path in folder.glob("group-*.yaml")) == [f"group-{n}.yaml" for n in (1, 2, 3, 4)]


def test_budgets_limit_the_number_of_models(plain, tmp_path, here):
    # One hidden number of six inputs: 7 shared parameters a model, 2 for every task.
    found = split(plain, tmp_path / "a", models=3, parameters=2 * 7 + 8, check=False)
    assert len(found.groups) == 2
    assert "22 parameters allow 2 of 3 models" in repr(found).lower()
    with pytest.raises(RecipeError, match="parameters is 14, but one model of all tasks has 15"):
        split(plain, tmp_path / "b", parameters=14)
    with pytest.raises(RecipeError, match=r"seconds is 1e-06, but one model of all tasks takes about"):
        split(plain, tmp_path / "c", seconds=1e-6)
    assert len(split(plain, tmp_path / "d", models=3, seconds=1e6, check=False).groups) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": 5}, "models is 5; 4 tasks go into 1 to 4 models"),
        ({"models": 0}, "models is 0"),
        ({"by": "cosin"}, r"Unknown kind 'cosin'.*Did you mean 'cosine'\?"),
        ({"seeds": 0}, "seeds is 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(plain, tmp_path, options, message):
    with pytest.raises(RecipeError, match=message):
        split(plain, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_subset_recipes_name_only_what_is_left():
    plain = {
        "data": {"tables": {"a": {"table": "a.csv"}, "b": {"table": "b.csv"}}, "weight": {"a": "w", "b": "v"}},
        "inputs": {"x": "number"},
        "tasks": {"a": {"type": "binary"}, "b": {"type": "binary"}, "c.d": {"type": "binary"}},
        "model": {"sharing": {"name": "hierarchical", "feeds": {"b": ["a", "c.d"]}}, "encoder": "mlp"},
        "balancer": {"name": "static", "weights": [1.0, 2.0, 3.0]},
        "training": {
            "select": "c.d.auroc",
            "batch_sizes": {"a": 8, "b": 4},
            "strategy": {"name": "hierarchical", "levels": ["a", ["b"], ["a", "c.d"]]},
        },
        "index": "a + b",
        "decision": "yes if a > 0.5",
        "report": {"reference": {"a": {"paper": {"auroc": 0.9}}, "b": {}}},
    }
    cut = subset_recipe(plain, ["b", "c.d"])
    assert list(cut["data"]["tables"]) == ["b"]
    assert cut["data"]["weight"] == {"b": "v"}
    assert cut["model"]["sharing"]["feeds"] == {"b": ["c.d"]}
    assert cut["balancer"] == {"name": "static", "weights": [2.0, 3.0]}
    strategy = {"name": "hierarchical", "levels": [["b"], ["c.d"]]}
    assert cut["training"] == {"select": "c.d.auroc", "batch_sizes": {"b": 4}, "strategy": strategy}
    phases = [{"tasks": ["a"], "epochs": 1}, {"tasks": ["b", "a"], "epochs": 2}, {"tasks": "all"}]
    staged = {**plain, "training": {"strategy": {"name": "hierarchical", "phases": phases}}}
    assert subset_recipe(staged, ["b", "c.d"])["training"]["strategy"]["phases"] == [
        {"tasks": ["b"], "epochs": 2},
        {"tasks": "all"},
    ]
    assert "strategy" not in subset_recipe(staged, ["b"])["training"]
    assert "index" not in cut
    assert "decision" not in cut
    assert cut["report"]["reference"] == {"b": {}}
    assert subset_recipe(plain, ["a"])["training"]["select"] == "mean_improvement"
    assert subset_recipe(plain, ["a"])["balancer"] == "equal"
    with pytest.raises(RecipeError, match="needs the input columns by name"):
        subset_recipe({**plain, "inputs": None}, ["a"])


def grouping(gains, seeds=(0, 1, 2)):
    metrics = {"a": ("auroc", True), "b": ("rmse", False)}
    base = {seed: {"a": 0.8, "b": 2.0} for seed in seeds}
    ours = {seed: {"a": 0.8 * (1 + g / 100), "b": 2.0 * (1 - g / 100)} for seed, g in zip(seeds, gains, strict=True)}
    option = Option((("a",), ("b",)), tuple(0.0 for _ in seeds))
    trained = {
        "groups": Trained(ours, 3, (1.0,)),
        "together": Trained(base, 2, (1.0,)),
        "separate": Trained(base, 4, (1.0,)),
    }
    return Grouping("x", ("a", "b"), "tag", (option,), seeds, "test", metrics, trained=trained)


def test_the_conclusion_follows_the_numbers():
    better, worse, noise = grouping([5, 5.1, 4.9]), grouping([-5, -5.1, -4.9]), grouping([5, -4, 0])
    assert "The groups are 5.0000 % better than one model of all tasks on the test rows" in better.conclusion[2]
    assert "beyond the noise of seeds" in better.conclusion[2]
    assert "worse than" in worse.conclusion[2]
    assert "no more than noise" in noise.conclusion[2]
    assert "no interval can be given" in grouping([5], (0,)).conclusion[2]


def test_pace_is_a_time_for_each_size(plain, tmp_path):
    built = build(load_recipe(plain))
    write_rows(built, tmp_path / "rows", ("train", "validation"))
    rows = open_rows(str(tmp_path / "rows"))
    found = pace(rows, recipe=dump_recipe(built.recipe), sizes=[1, 4], result=str(tmp_path / "pace.json"))
    assert len(found["seconds"]) == 2
    assert all(value >= 0 for value in found["seconds"])
