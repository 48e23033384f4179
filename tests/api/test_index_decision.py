"""Index and decision from the recipe to history, scores, bundle, predictions and report."""

import csv
import json

import polars as pl
import pytest
import torch
from torch import nn

import polytask as pt
from polytask.api import evaluate_run, predict_file, summary
from polytask.errors import RecipeError
from polytask.reporting import RunRecord

INDEX = "0.5*buys.auroc + 0.5*segment.accuracy - 0.001*spends.rmse"
RULES = ["call if buys > 0.5 and spends > 100", "write if segment.label == 'A' or visits > 3", "else nothing"]
ASKED = {"buys", "segment", "spends", "visits"}


@pytest.fixture
def done(recipe, tmp_path):
    chosen = {name: task for name, task in recipe["tasks"].items() if name in ASKED}
    whole = {
        **recipe, "tasks": chosen, "index": INDEX, "decision": RULES,
        "training": {**recipe["training"], "select": "index", "epochs": 3},
    }  # fmt: skip
    return pt.run(whole, out=tmp_path / "run", progress=False)


def of(scores):
    return 0.5 * scores["buys"]["auroc"] + 0.5 * scores["segment"]["accuracy"] - 0.001 * scores["spends"]["rmse"]


def test_the_index_is_in_history_scores_and_report_and_selects(done):
    metrics = json.loads((done.path / "metrics.json").read_text())
    assert metrics["index"]["test"] == pytest.approx(of(metrics["test"]), rel=1e-12)
    assert evaluate_run(done.path).index == metrics["index"]["test"]
    assert f"index: {metrics['index']['test']:.4f} ({INDEX})" in summary(done.path)
    with (done.path / "history.csv").open() as file:
        course = {int(r["epoch"]): float(r["index"]) for r in csv.DictReader(file) if r["scope"] == "epoch"}
    assert max(course, key=course.__getitem__) == done.best_epoch
    assert done.scores.index == pytest.approx(max(course.values()), rel=1e-12)
    page = (done.path / "report.html").read_text()
    assert f"index ↑ on the test rows: {INDEX}" in page
    assert "validation index" in page


def test_scores_of_another_table_have_the_index(done, people, tmp_path):
    people(80, seed=3).write_csv(tmp_path / "more.csv")
    scores = evaluate_run(done.path, tmp_path / "more.csv")
    assert scores.index == pytest.approx(of(scores), rel=1e-12)


def test_predictions_have_the_decision(done, people, tmp_path):
    frame = people(120, seed=5)
    frame.write_csv(tmp_path / "new.csv")
    predict_file(done.path, tmp_path / "new.csv", tmp_path / "out.parquet")
    found = pl.read_parquet(tmp_path / "out.parquet")
    wanted = found.select(
        pl.when((pl.col("buys_probability") > 0.5) & (pl.col("spends") > 100)).then(pl.lit("call"))
        .when((pl.col("segment") == "A") | (pl.col("visits") > 3)).then(pl.lit("write"))
        .otherwise(pl.lit("nothing"))
    ).to_series()  # fmt: skip
    assert found["decision"].to_list() == wanted.to_list()
    assert found["decision"].n_unique() > 1
    assert "decision" not in pt.load(done.path / "bundle").predict(frame, ["buys"]).columns


def test_the_report_counts_decisions_and_true_outcomes(done):
    record = RunRecord.load(done.path / "report.json").decision
    assert record.labels == ("call", "write", "nothing")
    assert sum(record.rows) == 60
    outcomes = {outcome.task: outcome for outcome in record.outcomes}
    assert outcomes["segment"].columns == ("A", "B", "C")
    assert all(sum(shares) == pytest.approx(1) for shares in outcomes["segment"].values)
    labelled = RunRecord.load(done.path / "report.json").tasks
    assert {task.name: task.labelled["test"] for task in labelled} == {t: sum(o.labelled) for t, o in outcomes.items()}
    page = (done.path / "report.html").read_text()
    assert "what it did on 60 test rows" in page
    assert "call if buys &gt; 0.5 and spends &gt; 100" in page


def test_from_python(tmp_path):
    x = torch.randn(96, 3, generator=torch.Generator().manual_seed(0))
    data = {"x": x, "up": (x[:, 0] > 0).float(), "size": x.norm(dim=1)}
    tasks = [pt.tasks.binary("up"), pt.tasks.regression("size")]
    model = pt.MultiTaskModel(pt.sharing.Hard(pt.ref("torch.nn:Linear", in_features=3, out_features=8)), tasks)
    chosen = {"epochs": 3, "batch_size": 16, "lr": 0.05, "progress": False, "select": "index"}
    done = pt.fit(
        model, data, data, test=data, out=tmp_path / "run",
        index={"weights": {"up": 3}}, decision="big if up > 0.5 and size > 1", **chosen,
    )  # fmt: skip
    assert done.scores.index == pytest.approx((3 * done.scores["up"]["auroc"] - done.scores["size"]["rmse"]) / 4)
    predicted = pt.load(tmp_path / "run" / "bundle").predict(x)
    wanted = ((predicted["up_probability"] > 0.5) & (predicted["size"] > 1)).to_list()
    assert [value == "big" for value in predicted["decision"]] == wanted
    record = RunRecord.load(tmp_path / "run" / "report.json").decision
    # Rows without a decision have a line of their own, and outcomes are means of the true values.
    chosen = torch.tensor(wanted)
    assert record.labels == ("big", "")
    assert record.rows == (int(chosen.sum()), int((~chosen).sum()))
    by_task = {outcome.task: outcome for outcome in record.outcomes}
    for task, truth in (("up", data["up"]), ("size", data["size"])):
        means = [values[0] for values in by_task[task].values]
        assert means == pytest.approx([truth[chosen].double().mean().item(), truth[~chosen].double().mean().item()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": "buys.aurok"}, r"index: 'buys.aurok': unknown name.*Did you mean 'buys.auroc'\?"),
        ({"index": {"kind": "wrst"}}, "index"),
        ({"index": {"wieghts": {}}}, r"Unknown key 'wieghts'.*Did you mean 'weights'\?"),
        ({"decision": "call if buy > 0.5"}, r"decision: 'buy > 0.5': unknown name 'buy'.*Did you mean 'buys'\?"),
        ({"decision": {"rule": []}}, r"Unknown key 'rule'.*Did you mean 'rules'\?"),
        ({"training": {"select": "index"}}, "training.select is 'index', but no index is defined"),
    ],
)
def test_a_mistake_is_found_before_anything_trains(recipe, tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        pt.run({**recipe, **change}, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_decision_from_python_needs_a_bundle():
    data = {"x": torch.randn(8, 3), "up": torch.ones(8)}
    model = pt.MultiTaskModel(pt.sharing.Hard(nn.Linear(3, 8)), [pt.tasks.binary("up")])
    with pytest.raises(RecipeError, match="A decision goes into the bundle"):
        pt.fit(model, data, decision="yes if up > 0.5", progress=False)
