"""Scores, the criterion, delta_m and mean rank."""

import json
import math

import pytest
from scipy.stats import rankdata

from polytask import tasks
from polytask.errors import DataError, RecipeError
from polytask.evaluation import Criterion, Scores, delta_m, mean_rank
from polytask.evaluation.criterion import relative_improvement

NAN = float("nan")
SCORES = Scores({"a": {"auroc": 0.9, "f1": NAN}, "b": {"rmse": 1234.5}}, {"a": 20, "b": 7}, {"a": {"auroc": 2}})


def test_scores_are_a_mapping():
    assert list(SCORES) == ["a", "b"]
    assert len(SCORES) == 2
    assert SCORES["a"]["auroc"] == 0.9
    assert SCORES.value("b", "rmse") == 1234.5
    assert "a" in SCORES
    assert "c" not in SCORES


def test_a_wrong_name_is_an_error_that_helps():
    with pytest.raises(DataError, match=r"Unknown task 'bb'. Known: a, b. Did you mean 'b'"):
        SCORES.value("bb", "rmse")
    with pytest.raises(DataError, match=r"Task 'a': Unknown metric 'aurok'.*Did you mean 'auroc'"):
        SCORES.value("a", "aurok")


def test_scores_survive_json():
    plain = json.loads(json.dumps(SCORES.to_dict(), allow_nan=False))
    assert plain["a"]["f1"] is None
    assert Scores.from_dict(plain, SCORES.counts, SCORES.left_out) == SCORES
    assert math.isnan(Scores.from_dict(plain)["a"]["f1"])
    assert Scores.from_dict(plain) != SCORES
    assert SCORES != "scores"


def test_the_table_shows_dashes_counts_and_what_was_left_out():
    lines = repr(SCORES).splitlines()
    assert [line.split() for line in lines] == [
        ["task", "rows", "metric", "value"],
        ["a", "20", "auroc", "0.9000", "(2", "left", "out)"],
        ["f1", "–"],
        ["b", "7", "rmse", "1234"],
    ]
    # Values end in the same column.
    assert {line.partition(" (2")[0].__len__() for line in lines} == {len(lines[0])}
    assert repr(Scores({})) == "task  rows  metric  value"


TASKS = {"a": tasks.binary("a"), "b": tasks.regression("b"), "b.c": tasks.regression("b.c")}
FIRST = Scores({"a": {"auroc": 0.5}, "b": {"rmse": 4.0}})


def test_mean_improvement_by_hand():
    criterion = Criterion("mean_improvement", TASKS)
    now = Scores({"a": {"auroc": 0.6}, "b": {"rmse": 3.0}})
    assert criterion(now, FIRST) == pytest.approx((0.1 / 0.5 + 1 / 4) / 2)
    assert criterion(FIRST, FIRST) == 0.0
    assert criterion.spec == "mean_improvement"


def test_tasks_undefined_at_first_are_left_out_but_those_that_diverge_are_not():
    criterion = Criterion("mean_improvement", TASKS)
    first = Scores({"a": {"auroc": NAN}, "b": {"rmse": 4.0}})
    assert criterion(Scores({"a": {"auroc": 0.9}, "b": {"rmse": 2.0}}), first) == 0.5
    assert math.isnan(criterion(Scores({"a": {"auroc": 0.9}, "b": {"rmse": NAN}}), first))
    assert math.isnan(criterion(FIRST, Scores({})))


def test_zero_and_negative_first_values():
    assert relative_improvement(0.0, 0.5, True) == 10.0  # 0.5 over the floor of 0.05
    assert relative_improvement(-0.5, 0.5, True) == 2.0
    assert relative_improvement(-2.0, -3.0, False) == 0.5
    assert relative_improvement(0.0, 0.0, False) == 0.0
    assert relative_improvement(0.0, 2.0, False) == -1.0
    assert relative_improvement(0.0, -2.0, False) == 1.0
    assert math.isnan(relative_improvement(0.0, NAN, False))
    assert math.isnan(relative_improvement(NAN, 1.0, True))


@pytest.mark.parametrize("first", [-2.0, -0.01, 0.0, 0.01, 2.0])
@pytest.mark.parametrize("higher", [True, False])
def test_better_is_never_less(first, higher):
    values = [relative_improvement(first, now, higher) for now in (-5.0, -1.0, 0.0, 0.5, 1.0, 3.0)]
    assert values == sorted(values, reverse=not higher)


def test_a_single_metric_is_turned_so_that_higher_is_better():
    now = Scores({"a": {"auroc": 0.6, "f1": 0.2}, "b": {"rmse": 3.0, "mae": 2.0}, "b.c": {"mae": 9.0}})
    assert Criterion("a.f1", TASKS)(now, FIRST) == 0.2
    assert Criterion("b.mae", TASKS)(now, FIRST) == -2.0
    assert Criterion("b", TASKS)(now, FIRST) == -3.0
    assert Criterion("b.c.mae", TASKS)(now, FIRST) == -9.0
    assert math.isnan(Criterion("a.mcc", TASKS)(now, FIRST))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mean_improvment", "Unknown criterion 'mean_improvment'.*Did you mean 'mean_improvement'"),
        ("a.aurok", r"names no metric of 'a'.*Did you mean 'auroc'"),
        ("x.auroc", r"Unknown criterion 'x.auroc'.*tasks: a, b, b.c.*Did you mean 'a.auroc'"),
    ],
)
def test_unknown_criteria(spec, message):
    with pytest.raises(RecipeError, match=message):
        Criterion(spec, TASKS)


HIGHER = {
    "segmentation": {"miou": True, "pixel_accuracy": True},
    "depth": {"absolute": False, "relative": False},
    "normals": {"mean": False, "median": False, "within_11": True, "within_22": True, "within_30": True},
}


def row(*numbers):
    """A published row of NYUv2, in the usual order of columns."""
    left = iter(numbers)
    return {task: {metric: next(left) for metric in metrics} for task, metrics in HIGHER.items()}


SINGLE = row(38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15)
PLAIN_SUM = row(39.29, 65.33, 0.5493, 0.2263, 28.15, 23.96, 22.09, 47.50, 61.08)
NASH = row(40.13, 65.93, 0.5261, 0.2171, 25.26, 20.08, 28.40, 55.47, 68.15)


def test_delta_m_reproduces_published_rows():
    # The printed figures come from unrounded metrics, so the rounded ones meet them within 0.02.
    assert delta_m(PLAIN_SUM, SINGLE, HIGHER, "flat") == pytest.approx(5.59, abs=0.02)
    assert delta_m(NASH, SINGLE, HIGHER, "flat") == pytest.approx(-4.04, abs=0.02)
    assert delta_m(NASH, SINGLE, HIGHER) == pytest.approx(7.65, abs=0.02)
    assert delta_m(SINGLE, SINGLE, HIGHER) == 0.0


def test_delta_m_takes_the_primary_metrics_of_tasks():
    single = {"a": {"auroc": 0.8, "f1": 0.1}, "b": {"rmse": 2.0}}
    now = {"a": {"auroc": 0.9, "f1": 0.0}, "b": {"rmse": 1.0}}
    two = {name: TASKS[name] for name in "ab"}
    assert delta_m(now, single, two) == pytest.approx((12.5 + 50) / 2)


def test_delta_m_leaves_out_undefined_metrics():
    now, single = {"a": {"x": NAN, "y": 2.0}}, {"a": {"x": 1.0, "y": 1.0}}
    directions = {"a": {"x": True, "y": True}}
    assert delta_m(now, single, directions) == 100.0
    assert math.isnan(delta_m(now, single, {"a": {"x": True}}))
    assert delta_m({"a": {"x": 1.0}}, {"a": {"x": -2.0}}, {"a": {"x": True}}) == 150.0


def test_delta_m_errors():
    with pytest.raises(DataError, match=r"baseline's f1 of task 'a' is 0, and nothing can be measured relative to 0"):
        delta_m({"a": {"f1": 0.5}}, {"a": {"f1": 0.0}}, {"a": {"f1": True}})
    with pytest.raises(DataError, match=r"Unknown convention 'flatt'.*Did you mean 'flat'"):
        delta_m(NASH, SINGLE, HIGHER, "flatt")
    with pytest.raises(DataError, match=r"baseline: Unknown task 'depth'"):
        delta_m(NASH, {"segmentation": SINGLE["segmentation"]}, HIGHER)
    with pytest.raises(DataError, match=r"scores, task 'depth': Unknown metric 'relative'"):
        delta_m({**NASH, "depth": {"absolute": 1.0}}, SINGLE, HIGHER)


def test_mean_rank_is_the_mean_of_ranks():
    table = {"single": SINGLE, "sum": PLAIN_SUM, "nash": NASH}
    columns = [
        rankdata([(-1 if higher else 1) * values[task][metric] for values in table.values()])
        for task, metrics in HIGHER.items()
        for metric, higher in metrics.items()
    ]
    expected = [sum(ranks) / 9 for ranks in zip(*columns, strict=True)]
    assert list(mean_rank(table, HIGHER).values()) == pytest.approx(expected)


def test_mean_rank_ties_and_undefined_metrics():
    table = {"p": {"a": {"x": 1.0, "y": NAN}}, "q": {"a": {"x": 1.0, "y": 1.0}}}
    assert mean_rank(table, {"a": {"x": True, "y": True}}) == {"p": 1.5, "q": 1.5}
    assert all(math.isnan(rank) for rank in mean_rank(table, {"a": {"y": True}}).values())
    with pytest.raises(DataError, match="at least one method"):
        mean_rank({}, {"a": {"x": True}})
