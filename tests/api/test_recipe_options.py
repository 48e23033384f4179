"""Every option of a recipe that the reference names does something in a run."""

import json

import polars as pl
import pytest

import polytask as pt

TASKS = {"buys": {"type": "binary"}, "segment": {"type": "multiclass"}, "spends": {"type": "regression"}}


def go(recipe, folder, **changes):
    merged = {**recipe, "tasks": TASKS, **changes}
    merged["training"] = {"epochs": 1, "batch_size": 64, **changes.get("training", {})}
    done = pt.run(merged, out=folder, progress=False)
    return done, json.loads((done.path / "metrics.json").read_text())


@pytest.mark.parametrize(
    "model",
    [
        {"sharing": {"name": "hard", "private": [8], "dropout": 0.1}},
        {"sharing": "separate"},
        {"encoder": {"name": "tabular", "numbers": "piecewise_linear", "norm": "batch", "embedding": 4}},
        {"encoder": {"name": "tabular", "norm": "layer", "dropout": 0.2, "embedding_dropout": 0.1}},
        {"heads": {"hidden": [8], "dropout": 0.1}},
    ],
    ids=["private", "separate", "piecewise", "layer norm", "heads"],
)
def test_models(recipe, tmp_path, model):
    done, metrics = go(recipe, tmp_path / "run", model=model)
    assert set(metrics["test"]) == set(TASKS)
    predictor = pt.load(done.path / "bundle")
    frame = pl.read_csv(recipe["data"]["table"])
    assert predictor.predict(frame).height == 300


@pytest.mark.parametrize(
    "options",
    [
        {"buys": {"type": "binary", "class_weights": "balanced", "focal_gamma": 2.0}},
        {"segment": {"type": "multiclass", "class_weights": "balanced", "label_smoothing": 0.1}},
        {"spends": {"type": "regression", "loss": "mae"}},
        {"spends": {"type": "regression", "weight": "income_weight"}},
        {"interests": {"type": "multilabel", "positive_weights": "balanced"}},
    ],
    ids=["focal", "smoothing", "mae", "row weight", "multilabel"],
)
def test_tasks(recipe, tmp_path, options):
    path = recipe["data"]["table"]
    pl.read_csv(path).with_columns((pl.col("age") / 50).alias("income_weight")).write_csv(path)
    _, metrics = go(recipe, tmp_path / "run", tasks={**TASKS, **options})
    assert set(options) <= set(metrics["test"])


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": {"name": "sgd", "options": {"momentum": 0.9}}, "schedule": {"name": "cosine", "warmup": 0.2}},
        {"optimizer": "torch.optim:NAdam", "clip": 1.0, "accumulate": 2},
        {"penalties": {"l1": 0.001, "l2": 0.001, "elastic_net": 0.001}, "input_noise": 0.1},
        {"precision": "bf16-mixed", "steps": 3},
        {"select": "spends.rmse", "patience": 1, "epochs": 3},
        {"loggers": ["tensorboard"], "log_every": 2, "checkpoint_every": 2, "validate_every": 2, "epochs": 2},
        {"strategy": "alternating"},
        {"strategy": {"name": "hierarchical", "levels": ["segment", ["buys", "spends"]]}},
        {
            "strategy": {"name": "hierarchical", "phases": [{"tasks": ["buys"], "epochs": 1}, {"tasks": "all"}]},
            "epochs": 2,
        },
        {"freeze": ["encoder.cat*"], "rates": {"encoder": 0.5, "heads": 2, "layer_decay": 0.9}},
        {"unfreeze_every": 1, "epochs": 2, "freeze": "encoder.categories"},
    ],
    ids=[
        "sgd", "nadam", "penalties", "bf16", "patience", "loggers", "alternating", "levels", "phases", "rates", "thaw",
    ],
)  # fmt: skip
def test_training(recipe, tmp_path, training):
    done, metrics = go(recipe, tmp_path / "run", training=training)
    assert set(metrics) == {"test", "validation"}
    assert (done.path / "tensorboard").exists() == ("loggers" in training)


@pytest.mark.parametrize("balancer", ["equal", {"name": "static", "weights": {"buys": 2, "segment": 1, "spends": 0.5}}])
def test_balancers(recipe, tmp_path, balancer):
    done, _ = go(recipe, tmp_path / "run", balancer=balancer)
    history = pl.read_csv(done.path / "history.csv").filter(pl.col("scope") == "step")
    expected = [1, 1, 1] if balancer == "equal" else [2, 1, 0.5]
    assert [history[f"weight.{task}"][0] for task in TASKS] == expected


@pytest.mark.parametrize(
    "balancer",
    [
        {"name": "conicgrad", "c": 0.8, "at": "features"},
        {"name": "imtl", "optimizer": {"lr": 0.1}},
        {"name": "modo", "gamma": 0.5, "rho": 0.1, "at": "last"},
        {"name": "sdmgrad", "lambda": 0.5, "sampled": True, "gamma": 0.5, "n_steps": 5},
        {"name": "ldc_mtl", "penalty": 0.5, "compare": "plain", "normalize": "first"},
        {"name": "auto_lambda", "virtual_lr": 0.05, "init": 0.5, "primary": ["buys"], "optimizer": {"lr": 0.01}},
    ],
    ids=lambda balancer: balancer["name"],
)
def test_methods_that_learn_or_look_at_two_halves(recipe, tmp_path, balancer):
    done, _ = go(recipe, tmp_path / "run", balancer=balancer, training={"epochs": 2, "accumulate": 2})
    history = pl.read_csv(done.path / "history.csv").filter(pl.col("scope") == "step")
    weights = history.select(f"weight.{task}" for task in TASKS).to_numpy()
    assert (weights[0] != weights[-1]).any()


def test_an_encoder_of_ones_own_by_import_path(recipe, tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(
        "import torch\n"
        "class Encoder(torch.nn.Module):\n"
        "    def __init__(self, schema, width):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(len(schema.numbers), width)\n"
        "    def forward(self, inputs):\n"
        "        return self.layer(inputs['numbers']).tanh()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    encoder = {"name": "own_encoder:Encoder", "width": 6}
    done, _ = go(recipe, tmp_path / "run", model={"encoder": encoder})
    frame = pl.read_csv(recipe["data"]["table"])
    assert pt.load(done.path / "bundle").predict(frame, ["buys"]).height == 300


def test_a_strategy_of_ones_own_by_import_path(recipe, tmp_path, monkeypatch):
    (tmp_path / "own_strategy.py").write_text(
        "from polytask.training.strategies import Strategy, Turn\n"
        "class HeadsFirst(Strategy):\n"
        "    def __init__(self, tasks, epochs):\n"
        "        self.tasks, self.epochs = tasks, epochs\n"
        "    def turn(self, step, steps_per_epoch):\n"
        "        return Turn('heads' if step < self.epochs * steps_per_epoch else 'all')\n"
        "    def describe(self):\n"
        "        return f'Heads of {self.tasks} first.'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    done, _ = go(recipe, tmp_path / "run", training={"strategy": {"name": "own_strategy:HeadsFirst", "epochs": 1}})
    assert done.notes[1] == "Heads of ['buys', 'segment', 'spends'] first."


def test_files_that_come_divided(people, tmp_path):
    for name, rows, seed in (("train", 200, 0), ("validation", 60, 1), ("test", 60, 2)):
        people(rows, seed).write_parquet(tmp_path / f"{name}.parquet")
    data = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "validation", "test")}
    done, _ = go({"data": data}, tmp_path / "run")
    record = json.loads((done.path / "report.json").read_text())
    assert record["data"]["sizes"] == {"train": 200, "validation": 60, "test": 60}
    # Without validation rows of their own, a share of the training rows is held out.
    del data["validation"]
    done, _ = go({"data": data}, tmp_path / "held")
    record = json.loads((done.path / "report.json").read_text())
    assert record["data"]["sizes"] == {"train": 180, "validation": 20, "test": 60}


def test_no_validation_keeps_the_last_weights(recipe, tmp_path):
    data = {**recipe["data"], "split": {"validation": 0, "test": 0.2}}
    done, metrics = go(recipe, tmp_path / "run", data=data)
    assert set(metrics) == {"test"}
    assert done.best_epoch is None
