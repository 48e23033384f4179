"""A composite index is the number that its definition says, and refuses what means nothing."""

import math

import pytest

import polytask as pt
from polytask.errors import RecipeError
from polytask.evaluation import CompositeIndex, Criterion, Scores

TASKS = {"up": pt.tasks.binary("up"), "size": pt.tasks.regression("size"), "down": pt.tasks.binary("down")}
SCORES = Scores({"up": {"auroc": 0.9, "accuracy": 0.8}, "size": {"rmse": 2.0}, "down": {"auroc": 0.6}})
REFERENCE = {"up": 0.8, "size": 2.5, "down": 0.5}


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("0.5*up.accuracy + 0.5*down", 0.5 * 0.8 + 0.5 * 0.6),
        ({"weights": {"size": 0.5}}, (0.9 - 0.5 * 2.0 + 0.6) / 2.5),
        ({"weights": {"size": 0}, "metrics": {"up": "accuracy"}}, 0.7),
        ({"weights": {"up": 2}, "reference": REFERENCE}, (2 * 0.125 + 0.2 + 0.2) / 4),
        ({"kind": "geometric"}, (0.9 / 2.0 * 0.6) ** (1 / 3)),
        ({"kind": "geometric", "weights": {"size": 2}, "reference": REFERENCE}, (1.125 * 1.25**2 * 1.2) ** 0.25),
        ({"kind": "worst", "reference": REFERENCE}, 0.125),
    ],
)
def test_the_number_is_that_of_the_definition(given, value):
    assert CompositeIndex(given, TASKS)(SCORES) == pytest.approx(value, rel=1e-12)


def test_an_index_of_which_less_is_better_is_turned_for_selection():
    index = CompositeIndex({"kind": "expression", "expression": "size + 1", "higher_is_better": False}, TASKS)
    assert index(SCORES) == 3.0
    assert Criterion("index", TASKS, index)(SCORES, SCORES) == -3.0


def test_an_undefined_metric_makes_the_index_undefined():
    for given in ("up + down", {"kind": "geometric"}, {"kind": "worst", "reference": REFERENCE}):
        assert math.isnan(CompositeIndex(given, TASKS)(Scores({"up": {"auroc": None}, "size": {"rmse": 1.0}})))


def test_a_task_may_be_named_index():
    tasks = {"index": pt.tasks.binary("index")}
    assert Criterion("index", tasks)(Scores({"index": {"auroc": 0.7}}), Scores({})) == 0.7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("upp + down", r"index: 'upp \+ down': unknown name 'upp'. Known: up, size, .*Did you mean 'up'\?"),
        ("up.auc", r"unknown name 'up.auc'.*Did you mean 'up.auroc'\?"),
        ("up + size", r"gets worse as 'size' gets better, of which lower is better"),
        ("size.r2 - up", r"gets worse as 'up' gets better, of which higher is better"),
        ({"weights": {"upp": 1}}, r"index.weights: Unknown task 'upp'.*Did you mean 'up'\?"),
        ({"metrics": {"up": "acuracy"}}, r"index.metrics.up: Unknown metric 'acuracy'.*Did you mean 'accuracy'\?"),
        ({"weights": {"up": -1}}, r"index.weights.up is -1; a weight is at least 0"),
        ({"weights": {"up": 0, "size": 0, "down": 0}}, "index.weights are all 0"),
        ({"kind": "worst"}, r"higher is better for up.auroc, down.auroc and lower for size.rmse"),
        ({"kind": "worst", "weights": {"up": 1}}, "index.weights do nothing for kind: worst"),
        ({"reference": {"up": 0.5}}, "index.reference has no value for: size, down"),
        ({"reference": {**REFERENCE, "up": 0}}, "index.reference.up is 0; nothing can be relative to that"),
        ({"kind": "expression"}, "index.kind is 'expression' and index.expression is None"),
        ({"expression": "up"}, "index.kind is 'weighted' and index.expression is 'up'"),
        ({"kind": "expression", "expression": "up", "weights": {"up": 1}}, "index.weights does nothing"),
        ({"higher_is_better": False}, "index.higher_is_better goes with an expression"),
    ],
)
def test_an_index_that_means_nothing_is_refused(given, message):
    with pytest.raises(RecipeError, match=message):
        CompositeIndex(given, TASKS)


def test_selecting_by_an_index_that_is_not_there():
    with pytest.raises(RecipeError, match=r"no index is defined. Add for example index: 'up.auroc \+ size.rmse'"):
        Criterion("index", TASKS)


def test_scores_show_the_index():
    scores = Scores({"up": {"auroc": 0.9}}, {"up": 7}, index=0.25)
    assert scores.table().splitlines()[-1].split() == ["index", "0.2500"]
    assert scores != Scores({"up": {"auroc": 0.9}}, {"up": 7})
