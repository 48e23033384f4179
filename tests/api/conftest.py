"""A small table with every type of task, and runs of it."""

import numpy as np
import polars as pl
import pytest

RECIPE = {
    "tasks": {
        "buys": {"type": "binary"},
        "segment": {"type": "multiclass", "label_smoothing": 0.1},
        "spends": {"type": "regression", "loss": "huber"},
        "visits": {"type": "counts"},
        "rating": {"type": "ordinal"},
        "interests": {"type": "multilabel"},
    },
    "model": {"encoder": {"name": "tabular", "hidden": [16]}},
    "training": {"epochs": 2, "batch_size": 64, "lr": 0.01},
}


def make_people(rows: int = 300, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    age = random.integers(18, 80, rows)
    job = random.choice(["cook", "nurse", "smith", "teacher"], rows)
    income = random.lognormal(3, 0.5, rows).round(2)
    buys = (age + random.normal(0, 10, rows) > 50).astype(int)
    spends = (5 * income + random.normal(0, 3, rows)).round(2)
    interests = [
        "|".join(w for w, on in zip(("art", "food", "sport"), random.random(3) < 0.4, strict=True) if on)
        for _ in range(rows)
    ]
    frame = pl.DataFrame(
        {
            "age": age,
            "job": job,
            "income": income,
            "buys": buys,
            "segment": np.where(job == "cook", "A", np.where(age > 50, "B", "C")),
            "spends": spends,
            "visits": random.poisson(age / 20),
            "rating": np.clip((income / 10).astype(int), 1, 5),
            "interests": interests,
        }
    )
    hidden = pl.Series(random.random(rows) < 0.3)
    return frame.with_columns(
        pl.when(hidden).then(None).otherwise(pl.col("buys")).alias("buys"),
        pl.when(~hidden).then(pl.col("spends")).alias("spends"),
        pl.when(pl.Series(random.random(rows) < 0.1)).then(None).otherwise(pl.col("income")).alias("income"),
    )


@pytest.fixture
def people():
    return make_people


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "people.csv"
    make_people().write_csv(path)
    return path


@pytest.fixture
def recipe(table):
    return {"data": {"table": str(table)}, **RECIPE}
