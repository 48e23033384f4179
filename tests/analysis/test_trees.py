"""Gradient-boosted trees against scikit-learn used by hand."""

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import accuracy_score, roc_auc_score, root_mean_squared_error

from polytask.analysis import trees
from polytask.analysis.methods import TREE_DEFAULTS
from polytask.analysis.rows import open_rows, write_rows
from polytask.data.schema import TableSchema
from polytask.errors import RecipeError
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe


@pytest.fixture
def frame():
    random = np.random.default_rng(1)
    x, job = random.normal(size=500), random.choice(["cook", "nurse", "smith"], 500)
    gaps = random.random(500) < 0.2
    return pl.DataFrame(
        {
            "x": pl.Series(x).set(pl.Series(gaps), None),
            "job": job,
            "part": np.where(np.arange(500) < 300, "train", np.where(np.arange(500) < 400, "validation", "test")),
            "up": (x + (job == "cook") + random.normal(size=500) > 0).astype(int),
            "size": 2 * x + (job == "nurse") + random.normal(size=500),
            "kind": random.choice(["p", "q", "r"], 500, p=[0.7, 0.2, 0.1]),
            "visits": random.poisson(np.exp(0.5 * x)),
            "grade": np.clip((x + 3).astype(int), 1, 4),
            "tags": ["|".join(t for t, on in zip("mn", random.random(2) < 0.5, strict=True) if on) for _ in range(500)],
        }
    )


KINDS = {
    "up": "binary",
    "size": "regression",
    "kind": "multiclass",
    "visits": "counts",
    "grade": "ordinal",
    "tags": "multilabel",
}


@pytest.fixture
def rows(frame, tmp_path):
    frame.write_csv(tmp_path / "rows.csv")
    plain = {
        "data": {"table": str(tmp_path / "rows.csv"), "split": {"by": "part"}},
        "tasks": {name: {"type": kind} for name, kind in KINDS.items()},
        "inputs": {"x": "number", "job": "category"},
    }
    built = build(load_recipe(plain))
    write_rows(built, tmp_path / "rows", ("train", "validation", "test"))
    return open_rows(str(tmp_path / "rows"))


def by_hand(frame):
    """Inputs as a person would hand them to scikit-learn: gaps as NaN, jobs as numbers."""
    jobs = {name: number for number, name in enumerate(["cook", "nurse", "smith"])}
    inputs = np.column_stack([frame["x"].cast(pl.Float64).fill_null(np.nan), frame["job"].replace_strict(jobs)])
    part = frame["part"].to_numpy()
    return {
        name: (inputs[part == name], frame.filter(pl.col("part") == name)) for name in ("train", "validation", "test")
    }


def test_scores_are_those_of_scikit_learn(rows, frame, tmp_path):
    options = {**TREE_DEFAULTS, "max_leaf_nodes": 7}
    result = trees.fit_trees(rows, options=options, seed=0, result=str(tmp_path / "r.json"))
    scored = trees.score_trees(rows, options=options, seed=0, rounds=result["rounds"], result=str(tmp_path / "t.json"))
    parts = by_hand(frame)
    given = {
        **options,
        "categorical_features": [False, True],
        "max_iter": 500,
        "n_iter_no_change": 20,
        "random_state": 0,
    }
    for task, make, score in (
        ("up", HistGradientBoostingClassifier, lambda m, x, y: ("auroc", roc_auc_score(y, m.predict_proba(x)[:, 1]))),
        ("size", HistGradientBoostingRegressor, lambda m, x, y: ("rmse", root_mean_squared_error(y, m.predict(x)))),
        ("kind", HistGradientBoostingClassifier, lambda m, x, y: ("accuracy", accuracy_score(y, m.predict(x)))),
    ):
        (x, train), (held, check), (new, test) = (parts[name] for name in ("train", "validation", "test"))
        model = make(**given, early_stopping=True).fit(x, train[task], X_val=held, y_val=check[task])
        assert result["rounds"][task] == [model.n_iter_]
        for found, inputs, answers in ((result["validation"], held, check[task]), (scored["test"], new, test[task])):
            metric, value = score(model, inputs, answers.to_numpy())
            assert found[task][metric] == pytest.approx(value, rel=1e-5), (task, metric)
    assert len(result["rounds"]["tags"]) == 2
    assert all(value is not None for task in ("visits", "grade", "tags") for value in scored["test"][task].values())


def test_a_task_without_two_classes_gets_dashes(rows, tmp_path):
    source = rows.sources["train"][0]
    source.rows.targets["up"].clamp_(max=0)
    result = trees.fit_trees(rows, options={**TREE_DEFAULTS}, seed=0, result=str(tmp_path / "r.json"))
    assert result["rounds"]["up"] == []
    assert set(result["validation"]["up"].values()) == {None}
    assert result["validation"]["size"]["rmse"] is not None


def test_images_are_refused():
    with pytest.raises(RecipeError, match="reads numbers and categories only, and the inputs have: picture"):
        trees.require_support(TableSchema(arrays={"picture": (1, 8, 8)}))
