"""Metrics against scikit-learn and SciPy with ``labels=`` all classes; undefined is NaN and nothing warns."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from polytask import tasks
from polytask.tasks.metrics import auroc, average_precision, correlation, mean_defined, spearman
from polytask.tasks.metrics_classes import BINARY, MULTICLASS, ORDINAL, median_class
from polytask.tasks.metrics_values import COUNTS, MULTILABEL, REGRESSION

NAN = float("nan")
K = 5


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def weights_of(rng, rows, weighted):
    return rng.integers(1, 4, rows).astype(float) if weighted else None


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def weighted(request):
    return request.param


@pytest.mark.parametrize("seed", range(3))
def test_binary_metrics_are_scikit_learns(seed, weighted):
    rng = np.random.default_rng(seed)
    y = (rng.random(300) < 0.3).astype(float)
    p = np.round(np.clip(0.3 * y + rng.random(300) * 0.7, 0, 1), 2)  # rounded, so that scores tie
    w = weights_of(rng, 300, weighted)
    hard = p >= 0.5
    expected = {
        "auroc": sk.roc_auc_score(y, p, sample_weight=w),
        "average_precision": sk.average_precision_score(y, p, sample_weight=w),
        "accuracy": sk.accuracy_score(y, hard, sample_weight=w),
        "balanced_accuracy": sk.balanced_accuracy_score(y, hard, sample_weight=w),
        "f1": sk.f1_score(y, hard, sample_weight=w),
        "precision": sk.precision_score(y, hard, sample_weight=w),
        "recall": sk.recall_score(y, hard, sample_weight=w),
        "log_loss": sk.log_loss(y, p, sample_weight=w, labels=[0, 1]),
        "brier": sk.brier_score_loss(y, p, sample_weight=w),
        "mcc": sk.matthews_corrcoef(y, hard, sample_weight=w),
    }
    for name, value in expected.items():
        close(BINARY[name].compute(p, y, w), value)
    assert set(BINARY) == {*expected, "ece"}


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.booleans(), st.sampled_from([0.0, 1.0, 2.5, 1e-6])), min_size=1, max_size=12
    )
)
@settings(max_examples=150, deadline=None)
def test_areas_are_what_counting_pairs_gives_whatever_the_ties_and_weights(rows):
    score, true, weight = (np.array(column) for column in zip(*rows, strict=True))
    for w in (None, weight):
        of = np.ones(len(rows)) if w is None else weight
        yes, no = of[true].sum(), of[~true].sum()
        higher = np.sign(score[:, None] - score[None, :])
        won = sum(of[i] * of[j] * (higher[i, j] + 1) / 2 for i in np.where(true)[0] for j in np.where(~true)[0])
        close(auroc(score, true, w), won / (yes * no) if yes > 0 and no > 0 else NAN)
        precise = [
            of[true & (score >= score[i])].sum() / max(of[score >= score[i]].sum(), 1e-9) for i in range(len(of))
        ]
        close(average_precision(score, true, w), (of * precise)[true].sum() / yes if yes > 0 else NAN)
        if yes > 0 and no > 0:
            close(average_precision(score, true, w), sk.average_precision_score(true, score, sample_weight=w))


def test_average_precision_keeps_the_digits_of_a_light_row_at_the_top():
    # Its precision is 1; taking the many rows below off the whole weight would leave nothing of 1e-12.
    score, true = np.array([0.9, 0.5, 0.4]), np.array([True, False, False])
    assert average_precision(score, true, np.array([1e-12, 3e7, 1e7])) == 1.0
    assert auroc(score, true, np.array([1e-12, 3e7, 1e7])) == 1.0


def test_calibration_error_by_hand():
    p, y = np.array([0.01, 0.05, 0.9, 0.92]), np.array([0.0, 1, 1, 1])
    # Two bins of 15 are used: mean probability 0.03 against 1/2, and 0.91 against 1.
    close(BINARY["ece"].compute(p, y, None), 0.5 * 0.47 + 0.5 * 0.09)
    close(BINARY["ece"].compute(p, y, np.array([1.0, 0, 1, 1])), 0.01 / 3 + 2 / 3 * 0.09)


def test_calibration_error_of_calibrated_scores_is_small():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    y = (rng.random(200_000) < p).astype(float)
    # The expected absolute deviation in a bin of 13,333 rows is at most 0.8 * 0.5 / sqrt(13333) = 0.0035.
    assert BINARY["ece"].compute(p, y, None) < 0.005


def test_soft_binary_targets_enter_the_proper_scores_as_they_are():
    p, y = np.array([0.3, 0.8]), np.array([0.25, 0.75])
    close(BINARY["brier"].compute(p, y, None), (0.05**2 + 0.05**2) / 2)
    expected = -(0.25 * math.log(0.3) + 0.75 * math.log(0.7) + 0.75 * math.log(0.8) + 0.25 * math.log(0.2)) / 2
    close(BINARY["log_loss"].compute(p, y, None), expected)
    assert BINARY["auroc"].compute(p, y, None) == 1.0


def multiclass_case(seed, weighted, absent=()):
    rng = np.random.default_rng(seed)
    y = rng.choice([c for c in range(K) if c not in absent], 200)
    logits = rng.normal(size=(200, K)) + 1.2 * np.eye(K)[y]
    logits[:, list(absent[:1])] = -9.0  # neither rows nor predictions
    return torch.tensor(logits).softmax(-1).numpy(), y, weights_of(rng, 200, weighted)


@pytest.mark.parametrize("absent", [(), (1,), (1, 3)], ids=str)
def test_multiclass_metrics_are_scikit_learns(weighted, absent):
    p, y, w = multiclass_case(0, weighted, absent)
    hard, every = p.argmax(1), range(K)
    options = {"labels": list(every), "sample_weight": w, "zero_division": np.nan}
    one_vs_rest = [sk.roc_auc_score(y == c, p[:, c], sample_weight=w) for c in every if c not in absent]
    expected = {
        "accuracy": sk.accuracy_score(y, hard, sample_weight=w),
        "macro_f1": sk.f1_score(y, hard, average="macro", **options),
        "micro_f1": sk.f1_score(y, hard, average="micro", **options),
        "weighted_f1": sk.f1_score(y, hard, average="weighted", **options),
        "macro_precision": sk.precision_score(y, hard, average="macro", **options),
        "macro_recall": sk.recall_score(y, hard, average="macro", **options),
        "log_loss": sk.log_loss(y, p, sample_weight=w, labels=every),
        "auroc": np.mean(one_vs_rest),
        "kappa": sk.cohen_kappa_score(y, hard, sample_weight=w, labels=every),
        "mcc": sk.matthews_corrcoef(y, hard, sample_weight=w),
        "top_3_accuracy": sk.top_k_accuracy_score(y, p, k=3, sample_weight=w, labels=every),
        "top_5_accuracy": 1.0,
    }
    for name, value in expected.items():
        close(MULTICLASS[name].compute(p, y, w), value)
    assert set(MULTICLASS) == set(expected)
    for name, count in {"auroc": len(absent), "macro_f1": len(absent[:1]), "macro_recall": len(absent)}.items():
        assert np.isnan(MULTICLASS[name].parts(p, y, w)).sum() == count


def test_soft_multiclass_targets():
    p, q = np.array([[0.5, 0.3, 0.2]]), np.array([[0.2, 0.7, 0.1]])
    close(MULTICLASS["log_loss"].compute(p, q, None), stats.entropy(q[0]) + stats.entropy(q[0], p[0]))
    assert MULTICLASS["accuracy"].compute(p, q, None) == 0.0


def test_top_k_breaks_ties_by_class_number():
    p = np.full((4, 4), 0.25)
    assert MULTICLASS["top_3_accuracy"].compute(p, np.arange(4), None) == 0.75


def test_ordinal_metrics_are_scikit_learns(weighted):
    p, y, w = multiclass_case(3, weighted)
    hard = median_class(p)
    expected = {
        "mae": sk.mean_absolute_error(y, hard, sample_weight=w),
        "accuracy": sk.accuracy_score(y, hard, sample_weight=w),
        "quadratic_kappa": sk.cohen_kappa_score(y, hard, weights="quadratic", labels=range(K), sample_weight=w),
        "spearman": repeated(lambda a, b: stats.spearmanr(a, b).statistic, hard, y, w),
        "log_loss": sk.log_loss(y, p, sample_weight=w, labels=range(K)),
    }
    for name, value in expected.items():
        close(ORDINAL[name].compute(p, y, w), value)
    assert set(ORDINAL) == set(expected)


def test_the_median_class_has_the_smallest_expected_distance():
    p = np.random.default_rng(0).dirichlet(np.ones(K) * 0.5, 200)
    distance = np.abs(np.subtract.outer(np.arange(K), np.arange(K)))
    expected = p @ distance
    best = median_class(p)
    close(expected[np.arange(200), best], expected.min(1))


def repeated(figure, first, second, weights):
    """A whole weight of n is the same as n equal rows."""
    times = np.ones(len(first), int) if weights is None else weights.astype(int)
    return figure(np.repeat(first, times), np.repeat(second, times))


def test_regression_metrics_are_scikit_learns(weighted):
    rng = np.random.default_rng(0)
    y, w = np.round(rng.normal(size=150), 1), weights_of(rng, 150, weighted)
    p = np.round(y + rng.normal(size=150), 1)
    expected = {
        "rmse": sk.root_mean_squared_error(y, p, sample_weight=w),
        "mae": sk.mean_absolute_error(y, p, sample_weight=w),
        "r2": sk.r2_score(y, p, sample_weight=w),
        "median_absolute_error": sk.median_absolute_error(y, p, sample_weight=w),
        "pearson": repeated(lambda a, b: stats.pearsonr(a, b).statistic, p, y, w),
        "spearman": repeated(lambda a, b: stats.spearmanr(a, b).statistic, p, y, w),
    }
    for name, value in expected.items():
        close(REGRESSION[name].compute(p, y, w), value)
    assert set(REGRESSION) == set(expected)


def test_regression_metrics_of_several_dimensions_are_means_over_known_entries():
    rng = np.random.default_rng(0)
    y, p, w = rng.normal(size=(80, 3)), rng.normal(size=(80, 3)), rng.random(80)
    y[:10, 0], y[:, 2] = NAN, NAN
    for name, metric in REGRESSION.items():
        columns = [metric.compute(p[10:, 0], y[10:, 0], w[10:]), metric.compute(p[:, 1], y[:, 1], w)]
        close(metric.compute(p, y, w), np.mean(columns))
        assert np.isnan(metric.parts(p, y, w)).tolist() == [False, False, True], name


def test_count_metrics_are_scikit_learns(weighted):
    rng = np.random.default_rng(0)
    y, p, w = rng.poisson(2.0, 150).astype(float), rng.gamma(2.0, size=150), weights_of(rng, 150, weighted)
    close(COUNTS["poisson_deviance"].compute(p, y, w), sk.mean_poisson_deviance(y, p, sample_weight=w))
    close(COUNTS["mae"].compute(p, y, w), sk.mean_absolute_error(y, p, sample_weight=w))
    close(COUNTS["rmse"].compute(p, y, w), sk.root_mean_squared_error(y, p, sample_weight=w))
    assert math.isfinite(COUNTS["poisson_deviance"].compute(np.zeros(2), np.array([0.0, 1.0]), None))


def multilabel_case(weighted):
    rng = np.random.default_rng(0)
    y = (rng.random((120, K)) < 0.3).astype(float)
    p = np.clip(0.4 * y + 0.7 * rng.random((120, K)), 0, 1)
    return p, y, weights_of(rng, 120, weighted)


def test_multilabel_metrics_are_scikit_learns(weighted):
    p, y, w = multilabel_case(weighted)
    hard = (p >= 0.5).astype(float)
    expected = {
        "macro_f1": sk.f1_score(y, hard, average="macro", sample_weight=w, zero_division=np.nan),
        "micro_f1": sk.f1_score(y, hard, average="micro", sample_weight=w, zero_division=np.nan),
        "macro_auroc": sk.roc_auc_score(y, p, average="macro", sample_weight=w),
        "macro_average_precision": sk.average_precision_score(y, p, average="macro", sample_weight=w),
        "hamming_loss": sk.hamming_loss(y, hard, sample_weight=w),
        "subset_accuracy": sk.accuracy_score(y, hard, sample_weight=w),
    }
    for name, value in expected.items():
        close(MULTILABEL[name].compute(p, y, w), value)
    assert set(MULTILABEL) == set(expected)


def test_missing_labels_leave_multilabel_metrics(weighted):
    p, y, w = multilabel_case(weighted)
    y[:40, 0], y[:, 4] = NAN, NAN
    known = slice(40, None)
    w0 = None if w is None else w[known]
    hard = p >= 0.5
    aurocs = [
        sk.roc_auc_score(y[known, 0], p[known, 0], sample_weight=w0),
        *(sk.roc_auc_score(y[:, c], p[:, c], sample_weight=w) for c in (1, 2, 3)),
    ]
    close(MULTILABEL["macro_auroc"].compute(p, y, w), np.mean(aurocs))
    assert np.isnan(MULTILABEL["macro_auroc"].parts(p, y, w)).sum() == 1
    there = ~np.isnan(y)
    entry = np.broadcast_to((np.ones(120) if w is None else w)[:, None], y.shape)[there]
    close(
        MULTILABEL["micro_f1"].compute(p, y, w),
        sk.f1_score(y[there], hard[there], sample_weight=entry),
    )
    close(MULTILABEL["hamming_loss"].compute(p, y, w), sk.zero_one_loss(y[there], hard[there], sample_weight=entry))
    right = ((hard == (y == 1)) | ~there).all(1)
    close(MULTILABEL["subset_accuracy"].compute(p, y, w), np.average(right, weights=w))


def test_one_class_only_leaves_ranking_metrics_undefined():
    p = np.array([0.2, 0.9, 0.4])
    zeros, ones = np.zeros(3), np.ones(3)
    found = {name: metric.compute(p, zeros, None) for name, metric in BINARY.items()}
    assert {name for name, value in found.items() if math.isnan(value)} == {
        "auroc",
        "average_precision",
        "recall",
        "mcc",
    }
    assert found["precision"] == found["f1"] == 0.0
    assert found["balanced_accuracy"] == found["accuracy"] == 2 / 3
    assert math.isnan(BINARY["auroc"].compute(p, ones, None))
    assert BINARY["average_precision"].compute(p, ones, None) == 1.0
    # A class whose rows all weigh nothing is as good as absent.
    assert math.isnan(BINARY["auroc"].compute(p, np.array([0.0, 0, 1]), np.array([1.0, 1, 0])))


def test_nothing_predicted_leaves_precision_undefined():
    p, y = np.array([0.1, 0.2]), np.array([0.0, 1.0])
    assert math.isnan(BINARY["precision"].compute(p, y, None))
    assert BINARY["f1"].compute(p, y, None) == BINARY["recall"].compute(p, y, None) == 0.0
    assert math.isnan(BINARY["f1"].compute(p, np.zeros(2), None))


def test_constant_targets_leave_correlations_undefined():
    y, p = np.full(4, 0.1), np.arange(4.0)
    found = {name: metric.compute(p, y, None) for name, metric in REGRESSION.items()}
    assert {name for name, value in found.items() if math.isnan(value)} == {"r2", "pearson", "spearman"}
    assert math.isnan(REGRESSION["r2"].compute(p[:1], y[:1], None))
    one = np.zeros(3, int)
    assert math.isnan(ORDINAL["quadratic_kappa"].compute(np.eye(3)[one], one, None))


def test_log_loss_of_certain_and_wrong_scores_is_finite():
    assert 30 < BINARY["log_loss"].compute(np.array([0.0]), np.array([1.0]), None) < 40
    assert 30 < MULTICLASS["log_loss"].compute(np.array([[1.0, 0.0]]), np.array([1]), None) < 40


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_weighted_correlations_are_those_of_repeated_rows(rows):
    first, second, weights = (np.array(column, float) for column in zip(*rows, strict=True))
    times = weights.astype(int)
    a, b = np.repeat(first, times), np.repeat(second, times)
    for found, reference in ((correlation, stats.pearsonr), (spearman, stats.spearmanr)):
        value = found(first, second, weights)
        if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
            assert math.isnan(value)
        else:
            np.testing.assert_allclose(value, reference(a, b).statistic, rtol=1e-7, atol=1e-9)


def test_correlation_does_not_depend_on_the_unit():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=50)
    close(correlation(1e-150 * a, 1e150 * b, None), correlation(a, b, None))


def test_mean_defined_of_nothing_is_nan():
    assert math.isnan(mean_defined([NAN, NAN]))
    assert mean_defined([1.0, NAN, 4.0], [2.0, 9.0, 1.0]) == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_metrics_of_100k_rows_and_17_classes_take_about_a_second(kind):
    rng = np.random.default_rng(0)
    rows, k = 100_000, 17
    task = getattr(tasks, kind)("x", k)
    y = rng.integers(0, k, rows) if kind == "multiclass" else (rng.random((rows, k)) < 0.1).astype(float)
    scores = task.score(torch.tensor(rng.normal(size=(rows, k))))
    start = time.process_time()
    for metric in task.metrics.values():
        metric.compute(scores, y, None)
    assert time.process_time() - start < 4.0
