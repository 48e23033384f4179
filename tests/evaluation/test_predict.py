"""Collecting outputs and scoring them."""

import dataclasses
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, roc_auc_score
from torch import nn

from polytask import tasks
from polytask.data.source import TensorSource
from polytask.errors import DataError
from polytask.evaluation import Scores, collect, evaluate, score_outputs
from polytask.tasks.metrics import Derived, averaged, confusion_matrix
from polytask.tasks.task import Metric

NAN = float("nan")
TASKS = {
    "up": tasks.binary("up"),
    "size": tasks.regression("size"),
    "kind": tasks.multiclass("kind", 3),
}


class Model(nn.Module):
    """Raw outputs are known functions of the inputs; calls are recorded."""

    def __init__(self):
        super().__init__()
        self.tasks = TASKS
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.9)
        self.frozen = nn.BatchNorm1d(1).eval()
        self.calls = []

    def forward(self, inputs, wanted):
        self.calls.append((len(inputs), tuple(wanted), torch.is_inference_mode_enabled()))
        x = self.dropout(inputs) * self.scale
        made = {"up": x[:, 0], "size": 10 * x[:, 1], "kind": x[:, 2:5]}
        return {name: made[name] for name in wanted}


def data(rows, seed, names, missing=0.3, weighted=False):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(rows, 5)), dtype=torch.float32)
    up = torch.tensor((rng.random(rows) < 0.5).astype(np.float32))
    size = torch.tensor(rng.normal(size=rows), dtype=torch.float32)
    kind = torch.tensor(rng.integers(0, 3, rows))
    gone = torch.tensor(rng.random(rows) < missing)
    targets = {"up": up.masked_fill(gone, NAN), "size": size, "kind": kind.masked_fill(gone, -1)}
    weights = {"size": torch.tensor(rng.random(rows), dtype=torch.float32)} if weighted else {}
    return TensorSource(x, {name: targets[name] for name in names}, weights)


def test_only_labelled_rows_are_kept_and_batches_do_not_matter():
    source = data(101, 0, ["up", "size", "kind"])
    model = Model()
    small, large = (collect(model, [source], batch_size=size) for size in (7, 1000))
    for name in TASKS:
        torch.testing.assert_close(small[name].raw, large[name].raw)
        np.testing.assert_array_equal(small[name].target, large[name].target)
    known = ~source.targets("up").isnan()
    whole = source.take(torch.arange(101))
    torch.testing.assert_close(large["up"].raw, whole.inputs[known, 0])
    np.testing.assert_array_equal(large["up"].target, source.targets("up")[known])
    np.testing.assert_allclose(large["up"].score, whole.inputs[known, 0].double().sigmoid())
    assert len(large["kind"]) == int((source.targets("kind") >= 0).sum())


def test_each_source_runs_once_for_its_own_tasks():
    model = Model()
    sources = [data(10, 0, ["up", "size"]), data(6, 1, ["size"], weighted=True), data(4, 2, ["kind"])]
    found = collect(model, sources, {name: TASKS[name] for name in ("size", "up")}, batch_size=8)
    assert [(rows, names) for rows, names, _ in model.calls] == [
        (8, ("size", "up")),
        (2, ("size", "up")),
        (6, ("size",)),
    ]
    assert all(inference for *_, inference in model.calls)
    assert list(found) == ["size", "up"]
    assert len(found["size"]) == 16
    # Rows without weights count once beside those with weights.
    np.testing.assert_array_equal(found["size"].weight[:10], 1.0)
    np.testing.assert_allclose(found["size"].weight[10:], sources[1].weights("size"))
    assert found["up"].weight is None


@pytest.mark.parametrize("fails", [False, True])
def test_training_modes_come_back(fails):
    model = Model().train()
    model.frozen.eval()
    source = data(4, 0, ["up"])
    if fails:
        model.forward = lambda inputs, wanted: {}
        with pytest.raises(KeyError):
            collect(model, [source])
    else:
        collect(model, [source])
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training


def test_the_autocast_context_is_used_for_every_forward():
    entered = []

    @contextmanager
    def autocast():
        entered.append(True)
        with torch.autocast("cpu", torch.bfloat16):
            yield

    found = collect(Model(), [data(10, 0, ["kind"])], batch_size=4, autocast=autocast, device="cpu")
    assert len(entered) == 3
    assert found["kind"].score.dtype == np.float64


def test_bfloat16_outputs_can_be_scored():
    scores = evaluate(Model().to(torch.bfloat16), [data(30, 0, ["up", "kind"])], device="cpu")
    assert 0 <= scores["up"]["auroc"] <= 1


def test_gather_joins_the_shares_of_processes():
    whole, shares = data(20, 0, ["up", "size"], weighted=True), []
    rows = [torch.arange(0, 20, 2), torch.arange(1, 20, 2)]
    for part in rows:
        batch = whole.take(part)
        shares.append(TensorSource(batch.inputs, batch.targets, batch.weights))
    shares.append(TensorSource(torch.zeros(1, 5), {"up": torch.tensor([NAN]), "size": torch.tensor([NAN])}))
    sent = []
    for share in shares:
        collect(Model(), [share], gather=lambda value: sent.append(value) or [value])
    assert "up" not in sent[2]
    joined = collect(Model(), [shares[0]], gather=lambda value: sent)
    alone = collect(Model(), [whole])
    order = torch.cat(rows)
    torch.testing.assert_close(joined["size"].raw, alone["size"].raw[order])
    np.testing.assert_allclose(joined["size"].weight, alone["size"].weight[order])
    first = evaluate(Model(), [shares[0]], gather=lambda value: sent)
    assert first["up"]["auroc"] == pytest.approx(evaluate(Model(), [whole])["up"]["auroc"])
    assert first.counts == evaluate(Model(), [whole]).counts


def test_scores_are_scikit_learns():
    source = data(200, 0, ["up", "size", "kind"], weighted=True)
    scores = evaluate(Model(), [source], batch_size=64)
    x = source.take(torch.arange(200)).inputs
    known = ~source.targets("up").isnan()
    expected = roc_auc_score(source.targets("up")[known], x[known, 0])
    assert scores["up"]["auroc"] == pytest.approx(expected)
    expected = mean_absolute_error(source.targets("size"), 10 * x[:, 1], sample_weight=source.weights("size"))
    assert scores["size"]["mae"] == pytest.approx(expected)
    assert scores.counts == {"up": int(known.sum()), "size": 200, "kind": int(known.sum())}
    assert scores.left_out == {}
    assert isinstance(scores, Scores)


def test_absent_classes_are_counted():
    x = torch.tensor([[0.0, 0, 9, 0, 0], [0, 0, 0, 9, 0]])
    scores = evaluate(Model(), [TensorSource(x, {"kind": torch.tensor([0, 1])})])
    assert scores["kind"]["auroc"] == scores["kind"]["macro_f1"] == 1.0
    assert scores.left_out == {"kind": dict.fromkeys(("macro_f1", "macro_precision", "macro_recall", "auroc"), 1)}


def test_a_task_without_labels_is_undefined():
    source = TensorSource(torch.zeros(3, 5), {"up": torch.full((3,), NAN), "size": torch.zeros(3)})
    scores = evaluate(Model(), [source])
    assert list(scores) == ["up", "size"]
    assert scores.counts == {"up": 0, "size": 3}
    assert all(math.isnan(value) for value in scores["up"].values())
    assert "up" not in collect(Model(), [source])


def test_a_model_that_has_diverged_is_undefined_and_raises_nothing():
    model = Model()
    nn.init.constant_(model.scale, NAN)
    scores = evaluate(model, [data(20, 0, ["up", "size"])])
    assert all(math.isnan(value) for of in scores.values() for value in of.values())
    assert scores.counts["size"] == 20


def test_rows_without_any_weight_are_undefined():
    source = TensorSource(torch.zeros(3, 5), {"size": torch.zeros(3)}, {"size": torch.zeros(3)})
    assert all(math.isnan(value) for value in evaluate(Model(), [source])["size"].values())


def test_data_of_other_tasks_are_an_error():
    with pytest.raises(DataError, match=r"labels for: kind. None of the tasks is among them: up"):
        evaluate(Model(), [data(3, 0, ["kind"])], {"up": TASKS["up"]})
    with pytest.raises(DataError, match="labels for: no task"):
        collect(Model(), [])


def test_outputs_that_do_not_fit_their_rows_are_an_error():
    model = Model()
    model.forward = lambda inputs, wanted: {"up": inputs[:1, 0]}
    with pytest.raises(DataError, match="gave 1 outputs for 'up' but the batch has 3 rows"):
        collect(model, [data(3, 0, ["up"])])


def test_what_metrics_share_is_made_once():
    calls = []

    def matrix(score, target, weight):
        calls.append(len(score))
        return confusion_matrix(target >= 0.5, score >= 0.5, 2, weight)

    rate = Metric("rate", True, Derived(matrix, lambda found: found.trace() / found.sum()))
    metrics = {"rate": rate, "parts": averaged("parts", Derived(matrix, lambda found: found.diagonal() / found.sum(1)))}
    task = dataclasses.replace(TASKS["up"], metrics=metrics)
    outputs = collect(Model(), [data(50, 0, ["up"])])["up"]
    values, _ = score_outputs(task, outputs)
    assert calls == [len(outputs)]
    arrays = (outputs.score, outputs.target, outputs.weight)
    assert values == {name: metric.compute(*arrays) for name, metric in metrics.items()}
