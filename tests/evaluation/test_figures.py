"""Confusion matrices, curves and histograms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve as sk_calibration

from polytask import tasks
from polytask.data.source import TensorSource
from polytask.errors import DataError
from polytask.evaluation import (
    Confusion,
    TaskOutputs,
    calibration_curve,
    collect,
    confusion,
    error_histogram,
    precision_recall_curve,
    roc_curve,
)
from polytask.tasks.metrics_classes import median_class

NAN = float("nan")


def outputs(task, raw, target, weight=None):
    raw = torch.as_tensor(raw)
    return TaskOutputs(raw, task.score(raw), np.asarray(target), weight)


def case(rows=400, k=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, rows)
    return rng.normal(size=(rows, k)) + np.eye(k)[y], y, rng.random(rows)


@pytest.mark.parametrize("weighted", [False, True])
def test_multiclass_confusion_is_scikit_learns(weighted):
    raw, y, w = case()
    w = w if weighted else None
    task = tasks.multiclass("t", ["a", "b", "c", "d", "never"])
    raw = np.pad(raw, ((0, 0), (0, 1)), constant_values=-99.0)
    found = confusion(task, outputs(task, raw, y, w))[""]
    hard, every = raw.argmax(1), range(5)
    np.testing.assert_allclose(found.matrix, sk.confusion_matrix(y, hard, labels=every, sample_weight=w))
    assert found.classes == ("a", "b", "c", "d", "never")
    per_class = sk.multilabel_confusion_matrix(y, hard, labels=every, sample_weight=w)
    for at, ((tn, fp), (fn, tp)) in enumerate(per_class[:4]):
        rates = found.per_class()[at]
        expected = [tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn), fp / (fp + tn)]
        np.testing.assert_allclose([rates[key] for key in ("tpr", "tnr", "ppv", "npv", "fpr")], expected)
        np.testing.assert_allclose(rates["support"], tp + fn)
    never = found.per_class()[4]
    assert never["class"] == "never"
    assert np.isnan([never["tpr"], never["ppv"], never["f1"]]).all()
    assert never["tnr"] == never["npv"] == pytest.approx(1.0)
    assert never["support"] == 0.0


@pytest.mark.parametrize("kind", ["micro", "macro", "weighted"])
def test_averages_are_scikit_learns(kind):
    raw, y, w = case()
    task = tasks.multiclass("t", 4)
    found = confusion(task, outputs(task, raw, y, w))[""].average(kind)
    expected = sk.precision_recall_fscore_support(y, raw.argmax(1), labels=range(4), average=kind, sample_weight=w)
    np.testing.assert_allclose([found["precision"], found["recall"], found["f1"]], expected[:3])
    np.testing.assert_allclose(found["support"], w.sum())


def test_confusion_of_binary_ordinal_and_soft_targets():
    raw, y, w = case()
    binary = tasks.binary("t", positive="yes", negative="no")
    found = confusion(binary, outputs(binary, raw[:, 0], (y == 0).astype(float), w))[""]
    expected = sk.confusion_matrix(y == 0, raw[:, 0] >= 0, sample_weight=w)
    np.testing.assert_allclose(found.matrix, expected)
    assert found.classes == ("no", "yes")
    ordinal = tasks.ordinal("t", 5)
    of = outputs(ordinal, raw, y)
    found = confusion(ordinal, of)[""]
    np.testing.assert_allclose(found.matrix, sk.confusion_matrix(y, median_class(of.score), labels=range(5)))
    soft = tasks.multiclass("t", 4, soft_labels=True)
    found = confusion(soft, outputs(soft, raw, 0.7 * np.eye(4)[y] + 0.075))[""]
    np.testing.assert_allclose(found.matrix, sk.confusion_matrix(y, raw.argmax(1)))


def test_confusion_of_labels_leaves_missing_entries_out():
    task = tasks.multilabel("t", ["a", "b"])
    found = confusion(task, outputs(task, [[1.0, 1], [-1, 1], [1, -1]], [[1.0, 0], [NAN, 1], [0, NAN]]))
    assert found["a"].matrix.tolist() == [[0, 1], [0, 1]]
    assert found["b"].matrix.tolist() == [[0, 1], [0, 1]]
    assert found["b"].classes == ("not b", "b")


def test_confusion_errors():
    task = tasks.regression("t")
    with pytest.raises(DataError, match="'t' of type 'regression' has no classes"):
        confusion(task, outputs(task, np.zeros(2), np.zeros(2)))
    with pytest.raises(DataError, match=r"2 classes is \[2, 2\]; found \[3, 3\]"):
        Confusion(np.zeros((3, 3)), ("a", "b"))
    with pytest.raises(DataError, match="found 'mean'"):
        Confusion(np.zeros((2, 2)), ("a", "b")).average("mean")


def test_confusion_follows_from_collected_outputs():
    task = tasks.multiclass("t", 3)
    source = TensorSource(torch.eye(3).repeat(4, 1), {"t": torch.tensor([0, 1, 1] * 4)})
    model = torch.nn.Identity()
    model.forward = lambda inputs, wanted: {"t": inputs}
    found = confusion(task, collect(model, [source], {"t": task})["t"])[""]
    assert found.matrix.tolist() == [[4, 0, 0], [0, 4, 4], [0, 0, 0]]


def scored(rows, seed=0, digits=6):
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.3).astype(float)
    return np.round(1 / (1 + np.exp(-(rng.normal(size=rows) + 1.5 * y))), digits), y, rng.integers(0, 4, rows) * 1.0


@pytest.mark.parametrize("weighted", [False, True])
def test_short_curves_are_scikit_learns(weighted):
    p, y, w = scored(60, digits=2)
    w = w if weighted else None
    found = roc_curve(p, y, w)
    fpr, tpr, _ = sk.roc_curve(y, p, sample_weight=w, drop_intermediate=False)
    expected = np.unique(np.stack([fpr, tpr], 1), axis=0)
    np.testing.assert_allclose(np.unique(np.stack([found.x, found.y], 1), axis=0), expected, atol=1e-12)
    assert found.area == pytest.approx(sk.auc(fpr, tpr))
    found = precision_recall_curve(p, y, w)
    precision, recall, _ = sk.precision_recall_curve(y, p, sample_weight=w)
    steps = np.abs(np.diff(found.x)) @ found.y[1:]
    assert found.area == pytest.approx(steps)  # average precision is the sum of its steps
    assert found.area == pytest.approx(-np.diff(recall) @ precision[:-1])
    assert found.base == pytest.approx(np.average(y, weights=w))


def test_thinned_curves_keep_ends_shape_and_area():
    p, y, _ = scored(50_000)
    for curve, whole in (
        (roc_curve(p, y), roc_curve(p, y, points=10**6)),
        (precision_recall_curve(p, y), precision_recall_curve(p, y, points=10**6)),
    ):
        assert len(curve.x) <= 200 < len(whole.x)
        assert curve.area == whole.area
        assert (curve.x[0], curve.x[-1], curve.y[0]) == (0.0, 1.0, whole.y[0])
        assert (np.diff(curve.x) >= 0).all()
        # Neighbours lie at most a two-hundredth of the curve's length apart, so the drawing is the same.
        redrawn = np.interp(whole.x[whole.x > 0.01], curve.x, curve.y)
        assert np.abs(redrawn - whole.y[whole.x > 0.01]).max() < 0.02


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 2)), min_size=1, max_size=40),
    st.integers(2, 12),
)
@settings(max_examples=100, deadline=None)
def test_curves_hold_for_any_rows(rows, points):
    p, y, w = (np.array(column, float) for column in zip(*rows, strict=True))
    positive, negative = (w * y).sum(), (w * (1 - y)).sum()
    roc, pr = roc_curve(p / 10, y, w, points), precision_recall_curve(p / 10, y, w, points)
    if positive == 0 or negative == 0:
        assert len(roc.x) == 0
        assert np.isnan(roc.area)
    else:
        assert 2 <= len(roc.x) <= points
        assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == pytest.approx((0, 0, 1, 1))
        assert (np.diff(roc.x) >= 0).all()
        assert (np.diff(roc.y) >= 0).all()
    if positive == 0:
        assert len(pr.x) == 0
    else:
        assert len(pr.x) <= points
        assert pr.x[-1] == pytest.approx(1.0)
        assert ((pr.y >= 0) & (pr.y <= 1)).all()


def test_calibration_is_scikit_learns():
    p, y, w = scored(2000)
    found = calibration_curve(p, y, bins=10)
    observed, predicted = sk_calibration(y, p, n_bins=10)
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.predicted, predicted)
    assert found.rows.sum() == 2000
    expected = np.abs(observed - predicted) @ found.rows / 2000
    assert found.error == pytest.approx(expected)
    weighted, repeated = calibration_curve(p, y, w), calibration_curve(*(np.repeat(v, w.astype(int)) for v in (p, y)))
    np.testing.assert_allclose(weighted.observed, repeated.observed)
    assert weighted.error == pytest.approx(repeated.error)


def test_error_histogram_counts_every_row_once():
    rng = np.random.default_rng(0)
    score, target, weight = rng.normal(size=5000), rng.normal(size=5000), rng.random(5000)
    score[0], target[1] = 1e9, NAN
    found = error_histogram(score, target, weight)
    known = ~np.isnan(target)
    assert found.counts.sum() + found.below + found.above == pytest.approx(weight[known].sum())
    assert found.edges[-1] < 10
    assert found.above > 0
    error = (score - target)[known]
    inside = np.abs(error) <= found.edges[-1]
    expected, _ = np.histogram(error[inside], found.edges, weights=weight[known][inside])
    np.testing.assert_allclose(found.counts, expected)
    assert len(error_histogram(score, np.full(5000, NAN)).counts) == 0
    perfect = error_histogram(target[2:], target[2:])
    assert perfect.counts.sum() == 4998
    assert perfect.edges[-1] == 1.0
