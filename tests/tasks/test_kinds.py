"""Task types: options, what training data fix, errors, decoding."""

import inspect
import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from polytask import catalogue, registry, tasks
from polytask.errors import DataError, RecipeError
from polytask.tasks.losses import BinaryLoss, MulticlassLoss, MultilabelLoss

NAN = float("nan")
MADE = {
    "binary": tasks.binary(
        "t", positive="yes", negative="no", class_weights=[1, 3], label_smoothing=0.1, focal_gamma=2.0, hidden=(8,)
    ),
    "binary balanced": tasks.binary("t", class_weights="balanced", metrics=("f1", "auroc"), dropout=0.2, hidden=[4]),
    "multiclass": tasks.multiclass("t", ("a", "b", "c"), class_weights={"b": 2, "a": 1.0, "c": 5}, label_smoothing=0.1),
    "multiclass unknown": tasks.multiclass("t", class_weights="balanced", focal_gamma=1.0),
    "multiclass soft": tasks.multiclass("t", soft_labels=("p_a", "p_b")),
    "multilabel": tasks.multilabel("t", ["a", "b"], positive_weights=[2.0, 3.0], columns=["x", "y"], focal_gamma=1.0),
    "regression": tasks.regression("t", dimensions=2, loss="huber", delta=0.5, mean=[1, 2.0], deviation=(3.0, 4.0)),
    "counts": tasks.counts("t", mean=2.5),
    "ordinal": tasks.ordinal("t", 5, hidden=(3, 2)),
    "tagging": tasks.tagging("t", ("B-X", "I-X", "O"), crf=True, constrained=True, repair=True, metrics=("accuracy",)),
    "tagging none": tasks.tagging("t", ("N", "V"), scheme="none", hidden=[4], dropout=0.1),
    "embedding": tasks.embedding("t", 8, temperature=0.5, hidden=(4,), metrics=["map"]),
}


@pytest.mark.parametrize("case", MADE)
def test_options_as_json_make_an_equal_task(case):
    task = MADE[case]
    options = json.loads(json.dumps(dict(task.options)))
    again = registry.build("tasks", task.kind, options, name="t")
    assert again == task
    assert again.options == task.options
    assert set(options) == set(registry.options_of(getattr(tasks, task.kind))) - {"name"}


def test_every_option_changes_the_task_that_has_it():
    """No argument is ignored: each of these changes more than the options themselves."""
    for task, change in (
        (tasks.binary("t"), {"positive": "yes"}),
        (MADE["binary"], {"negative": "nope"}),
        (tasks.binary("t"), {"label_smoothing": 0.1}),
        (tasks.binary("t"), {"class_weights": [1, 2]}),
        (tasks.binary("t"), {"focal_gamma": 2.0}),
        (tasks.binary("t"), {"hidden": [3]}),
        (tasks.binary("t"), {"dropout": 0.5}),
        (tasks.binary("t"), {"metrics": ["f1"]}),
        (MADE["binary balanced"], {"positive_share": 0.2}),
        (tasks.multiclass("t", 3), {"classes": 4}),
        (tasks.multiclass("t", 3), {"soft_labels": True}),
        (tasks.multiclass("t", 2, class_weights="balanced"), {"class_shares": [0.1, 0.9]}),
        (tasks.multilabel("t", 2), {"columns": ["x", "y"]}),
        (tasks.multilabel("t", 2, positive_weights="balanced"), {"positive_shares": [0.1, 0.2]}),
        (tasks.regression("t"), {"loss": "mae"}),
        (tasks.regression("t", loss="huber"), {"delta": 2.0}),
        (tasks.regression("t"), {"columns": ["x", "y"]}),
        (tasks.regression("t"), {"mean": [3.0]}),
        (tasks.regression("t"), {"deviation": [3.0]}),
        (tasks.counts("t"), {"mean": 3.0}),
        (tasks.ordinal("t", 3), {"classes": 4}),
    ):
        changed = task.with_options(**change)
        parts = ("loss", "head", "metrics", "decode", "target")
        assert any(getattr(changed, part) != getattr(task, part) for part in parts), change


@pytest.mark.parametrize("case", MADE)
def test_tasks_can_be_pickled_apart_from_their_metrics(case):
    task = MADE[case]
    for part in (task.loss, task.score, task.decode, task.refit, task.head, task.target):
        assert pickle.loads(pickle.dumps(part)) == part


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression", "counts", "ordinal"])
def test_the_registry_says_what_the_docstring_says(kind):
    factory = getattr(tasks, kind)
    assert registry.get("tasks", kind) is factory
    assert catalogue.TASKS[kind].help == inspect.getdoc(factory).splitlines()[0]


# Tags have an output for every word; test_tagging has the same for them.
@pytest.mark.parametrize("case", [case for case, task in MADE.items() if task.kind != "tagging"])
def test_raw_outputs_flow_through_loss_score_and_decode(case):
    task = MADE[case]
    if not task.is_known:
        task = task.with_options(classes=3)
    width = task.head.outputs
    raw = torch.randn(*((4,) if width is None else (4, width)), generator=torch.Generator().manual_seed(0))
    score = task.score(raw)
    assert score.dtype == np.float64
    target = torch.tensor([0, 1, 1, 0])
    if task.target.form in ("distribution", "labels") or (task.kind == "regression" and width):
        target = torch.nn.functional.one_hot(target, width).float()
    elif task.target.form not in ("class", "group"):
        target = target.float()
    losses = task.loss(raw, target)
    assert losses.shape == (4,)
    columns = task.decode(raw)
    assert all(len(values) == 4 for values in columns.values())
    for metric in task.metrics.values():
        assert isinstance(metric.compute(score, target.numpy(), np.ones(4)), float)
    assert task.primary == next(iter(task.metrics))


def test_decoding():
    raw = torch.tensor([2.0, -1.0])
    assert tasks.binary("t").decode(raw)[""].tolist() == [1, 0]
    assert tasks.binary("t", positive=True).decode(raw)[""].tolist() == ["true", "not true"]
    np.testing.assert_allclose(tasks.binary("t").decode(raw)["probability"], [0.880797, 0.268941], rtol=1e-5)
    assert tasks.multiclass("t", 3).decode(torch.eye(3))[""].tolist() == [0, 1, 2]
    assert tasks.regression("t").decode(raw)[""].tolist() == [2.0, -1.0]
    two = tasks.regression("t", columns=["x", "y"]).decode(torch.tensor([[1.0, 2.0]]))
    assert {name: values.tolist() for name, values in two.items()} == {"x": [1.0], "y": [2.0]}
    labels = tasks.multilabel("t", ["a", "b"]).decode(torch.tensor([[0.0, -9.0]]))
    assert labels["probability_a"].tolist() == [0.5]
    grade = tasks.ordinal("t", ["low", "high"]).decode(torch.tensor([[3.0], [-3.0]]))
    assert grade[""].tolist() == ["high", "low"]
    assert grade["probability"].min() > 0.9


@pytest.mark.parametrize("classes", [2, 3, 7, 30])
def test_an_ordinal_head_starts_at_equal_probabilities(classes):
    task = tasks.ordinal("t", classes)
    shift = torch.tensor(task.head.shift, dtype=torch.float64)[None]
    np.testing.assert_allclose(task.score(shift), 1 / classes, rtol=1e-10)


def test_regression_is_fitted_to_mean_and_deviation():
    targets = torch.tensor([1.0, 2.0, NAN, 6.0])
    task = tasks.regression("t").fitted(targets)
    known = np.array([1.0, 2.0, 6.0])
    np.testing.assert_allclose([task.head.shift, task.head.scale], [known.mean(), known.std()])
    assert task.loss.scale == (task.head.scale,)
    weighted = tasks.regression("t").fitted(targets, torch.tensor([3.0, 1.0, 9.0, 0.0]))
    np.testing.assert_allclose([weighted.head.shift, weighted.head.scale], [1.25, np.sqrt(0.1875)])
    assert tasks.regression("t", standardize=False).fitted(targets).head.scale == 1.0
    # Fitted again, it takes the new data's figures.
    assert task.fitted(10 * targets).head.shift == pytest.approx(30.0)


def test_constant_and_unlabelled_dimensions_keep_the_deviation_one():
    targets = torch.stack([torch.full((5,), 0.1), torch.full((5,), NAN), torch.arange(5.0)], 1)
    task = tasks.regression("t", dimensions=3).fitted(targets)
    assert task.head.scale == pytest.approx((1.0, 1.0, np.sqrt(2.0)))
    assert task.head.shift == pytest.approx((0.1, 0.0, 2.0), rel=1e-6)


def test_the_loss_of_a_standardised_target_is_of_order_one_in_any_unit():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 1e5 + 3e6
    task = tasks.regression("t").fitted(values)
    mean = torch.full_like(values, task.head.shift)
    assert task.loss(mean, values).mean().item() == pytest.approx(1.0, rel=1e-4)


def test_counts_start_at_the_mean_rate():
    task = tasks.counts("t").fitted(torch.tensor([0.0, 4.0, NAN, 2.0]))
    assert np.exp(task.head.shift) == pytest.approx(2.0)
    assert tasks.counts("t").fitted(torch.zeros(3)).head.shift == 0.0


def test_balanced_weights_are_scikit_learns():
    y = torch.tensor([0, 2, 2, 2, -1, 1, 0, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y[y >= 0].numpy())
    multiclass = tasks.multiclass("t", class_weights="balanced").fitted(y)
    np.testing.assert_allclose(multiclass.loss.weights, expected)
    assert multiclass.options["classes"] == 3
    assert multiclass.options["class_weights"] == "balanced"

    binary = tasks.binary("t", class_weights="balanced").fitted(torch.tensor([1.0, 0, 0, 0, NAN]))
    expected = compute_class_weight("balanced", classes=np.arange(2), y=[1, 0, 0, 0])
    np.testing.assert_allclose(binary.loss.weights, expected)
    assert binary.fitted(torch.tensor([1.0, 0])).loss == BinaryLoss((1.0, 1.0))

    weighted = tasks.multiclass("t", 2, class_weights="balanced").fitted(torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
    np.testing.assert_allclose(weighted.loss.weights, [2 / 3, 2.0])


def test_balanced_label_weights_even_out_positives_and_negatives():
    y = torch.tensor([[1.0, 0, 1], [0, NAN, 1], [0, 0, 1], [0, 1, NAN]])
    task = tasks.multilabel("t", positive_weights="balanced").fitted(y)
    assert task.loss.weights == pytest.approx((3.0, 2.0, 1.0))
    assert task.target.classes == ("0", "1", "2")


def test_a_class_that_training_lacks_gets_weight_one():
    task = tasks.multiclass("t", 3, class_weights="balanced").fitted(torch.tensor([0, 0, 2]))
    assert task.loss == MulticlassLoss(pytest.approx((0.75, 1.0, 1.5)))


def test_written_weights_reach_the_loss_in_the_order_of_the_classes():
    assert MADE["multiclass"].loss == MulticlassLoss((1.0, 2.0, 5.0), 0.1)
    assert MADE["multilabel"].loss == MultilabelLoss((2.0, 3.0), 1.0)


def test_classes_unknown_until_seen():
    task = tasks.multiclass("t")
    assert not task.is_known
    with pytest.raises(RecipeError, match=r"classes of 't' are not known yet.*Fit the task to training targets"):
        task.require_known()
    seen = task.fitted(torch.tensor([0, 4, -1]))
    seen.require_known()
    assert seen.head.outputs == 5
    assert tasks.ordinal("t").fitted(torch.tensor([0, 4])).head.outputs == 4
    assert tasks.multilabel("t").fitted(torch.zeros(2, 3)).head.outputs == 3
    assert tasks.multiclass("t", soft_labels=True).fitted(torch.full((2, 4), 0.25)).head.outputs == 4
    assert MADE["multiclass soft"].target.classes == ("p_a", "p_b")


BAD_OPTIONS = [
    (lambda: tasks.binary("t", label_smoothing=1.0), r"'t': label_smoothing is 1.0. Use a number from 0 to below 1"),
    (lambda: tasks.binary("t", label_smoothing=True), "label_smoothing is True"),
    (lambda: tasks.binary("t", focal_gamma=-1), "focal_gamma is -1. Use None or a number of at least 0"),
    (lambda: tasks.binary("t", focal_gamma=float("nan")), "focal_gamma is nan"),
    (lambda: tasks.binary("t", class_weights="balance"), "class_weights is 'balance'. Use None, 'balanced'"),
    (lambda: tasks.binary("t", class_weights=[1.0]), "class_weights has 1 weights for 2 classes"),
    (lambda: tasks.binary("t", class_weights=[1.0, 0.0]), "class_weights is 0.0. Use positive weights"),
    (lambda: tasks.binary("t", class_weights={"a": 1}), r"class_weights is \{'a': 1\}"),
    (lambda: tasks.binary("t", negative="no"), "negative is 'no' but positive is None"),
    (lambda: tasks.binary("t", positive=1, negative="1"), "Name both, and differently"),
    (lambda: tasks.binary("t", positive_share=2), "positive_share is 2. Use a share from 0 to 1"),
    (lambda: tasks.binary("t", hidden=64), r"hidden is 64. Use a list of widths such as \[64, 32\]"),
    (lambda: tasks.binary("t", hidden=[0]), "hidden is 0. Use a whole number of at least 1"),
    (lambda: tasks.binary("t", dropout=1.0), "dropout is 1.0. Use a probability from 0 to below 1"),
    (lambda: tasks.binary("t", metrics=["aurok"]), "Unknown metric 'aurok'. Known: auroc.*Did you mean 'auroc'"),
    (lambda: tasks.binary("t", metrics="auroc"), "metrics is 'auroc'. Use a list"),
    (lambda: tasks.binary("t", metrics=[]), r"metrics is \[\]"),
    (lambda: tasks.multiclass("t", 1), "classes is 1. Use a whole number of at least 2"),
    (lambda: tasks.multiclass("t", True), "classes is True"),
    (lambda: tasks.multiclass("t", "ab"), "classes is 'ab'. Use their number or the list of their names"),
    (lambda: tasks.multiclass("t", ["a"]), r"classes is \['a'\]. Use at least 2 names"),
    (lambda: tasks.multiclass("t", ["a", "b", "a"]), "classes has 'a' more than once"),
    (lambda: tasks.multiclass("t", ["cat", "dog"], class_weights={"cta": 1}), "Unknown class 'cta'.*mean 'cat'"),
    (lambda: tasks.multiclass("t", ["cat", "dog"], class_weights={"cat": 1}), "has no weight for: dog"),
    (lambda: tasks.multiclass("t", 3, class_weights=[1, 2]), "class_weights has 2 weights for 3 classes"),
    (lambda: tasks.multiclass("t", 3, soft_labels=["a", "b"]), "soft_labels is .* one column for each of the 3"),
    (lambda: tasks.multiclass("t", soft_labels="a"), "soft_labels is 'a'"),
    (lambda: tasks.multiclass("t", 3, class_shares=[0.5, 0.5]), "class_shares is .*. Use one share a class"),
    (lambda: tasks.multilabel("t", ["a", "b"], columns=["x"]), "columns is .*one column for each of the 2 labels"),
    (lambda: tasks.multilabel("t", columns="x"), "columns is 'x'"),
    (lambda: tasks.multilabel("t", focal_gamma="2"), "focal_gamma is '2'"),
    (
        lambda: tasks.regression("t", loss="hubber"),
        "loss is 'hubber'. Use one of: mse, .* Did you mean 'huber'",
    ),
    (lambda: tasks.binary("t", class_weights=5), "class_weights is 5. Use None, 'balanced'"),
    (lambda: tasks.multiclass("t", 3.5), "classes is 3.5. Use their number"),
    (lambda: tasks.multiclass("t", soft_labels=2), "soft_labels is 2"),
    (lambda: tasks.regression("t", columns=2), "columns is 2. Use a list of columns"),
    (lambda: tasks.counts("t", metrics=3), "metrics is 3. Use a list of their names"),
    (lambda: tasks.regression("t", delta=0), "delta is 0. Use a positive number"),
    (lambda: tasks.regression("t", dimensions=0), "dimensions is 0"),
    (lambda: tasks.regression("t", dimensions=3, columns=["a", "b"]), "one column for each of the 3 dimensions"),
    (lambda: tasks.regression("t", standardize="yes"), "standardize is 'yes'. Use true or false"),
    (lambda: tasks.regression("t", mean=[1.0, 2.0]), r"mean is \[1.0, 2.0\]. Use a list of 1 numbers"),
    (lambda: tasks.regression("t", deviation=[0.0]), "deviation is 0.0. Use positive numbers"),
    (lambda: tasks.counts("t", mean=0.0), "mean is 0.0. Use None or a positive number"),
    (lambda: tasks.ordinal("t", 1), "classes is 1"),
    (lambda: tasks.ordinal("t", 3).with_options(clases=2), "'ordinal'.*option 'clases'.*Did you mean 'classes'"),
]


@pytest.mark.parametrize(("make", "message"), BAD_OPTIONS, ids=[message for _, message in BAD_OPTIONS])
def test_bad_options_name_option_value_and_choices(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


SOFT = tasks.multiclass("t", 2, soft_labels=True)
BAD_TARGETS = [
    (tasks.binary("t"), torch.tensor([0.0, NAN, 2.0]), "target 2 in row 2 .*0, 1 or a probability"),
    (tasks.binary("t"), torch.tensor([0.0, -0.5]), "target -0.5 in row 1"),
    (tasks.binary("t"), torch.zeros(2, 2), r"one number a row; found float32 of shape \[2, 2\]"),
    (tasks.binary("t"), torch.full((3,), NAN), "no label at all in 3 rows"),
    (tasks.multiclass("t", 3), torch.tensor([0, -1, 3, 7]), "target 3 in row 2 .*2 such values.*from 0 to 2"),
    (tasks.multiclass("t", 3), torch.tensor([0.0, 1.0]), r"class numbers \[rows\] as integers; found float32"),
    (tasks.multiclass("t", 3), torch.tensor([True]), "as integers; found bool"),
    (tasks.multiclass("t", 3), torch.full((3,), -1), "no label at all"),
    (tasks.multiclass("t"), torch.tensor([0, 0, -1]), "shows 1 class .* needs 2 or more"),
    (SOFT, torch.tensor([[0.5, 0.5], [0.5, 0.4]]), "target 0.9 in row 1 .*add up to 1"),
    (SOFT, torch.tensor([[NAN, NAN], [1.5, -0.5]]), "target -0.5 in row 1, column 1"),
    (SOFT, torch.tensor([[0.5, NAN]]), "target nan in row 0, column 1"),
    (SOFT, torch.full((1, 4), 0.25), "has 2 classes but its targets have 4 columns"),
    (SOFT, torch.tensor([0, 1]), "distributions .*found int64"),
    (tasks.multilabel("t", 2), torch.tensor([[0.0, NAN], [1.0, 3.0]]), "target 3 in row 1, column 1"),
    (tasks.multilabel("t", 2), torch.zeros(3, 4), "has 2 classes but its targets have 4 columns"),
    (tasks.multilabel("t", 2), torch.zeros(3), r"\[rows, labels\] in floating point; found float32 of shape \[3\]"),
    (tasks.regression("t"), torch.tensor([1.0, float("inf")]), "target inf in row 1 .*finite"),
    (tasks.regression("t"), torch.tensor([1, 2]), r"numbers \[rows\] in floating point; found int64"),
    (tasks.regression("t", dimensions=2), torch.zeros(4, 3), r"numbers \[rows, 2\].*of shape \[4, 3\]"),
    (tasks.regression("t"), torch.full((3,), NAN), "no label at all"),
    (tasks.counts("t"), torch.tensor([0.0, NAN, -1.0]), "target -1 in row 2 .*whole number of at least 0"),
    (tasks.counts("t"), torch.tensor([0.5]), "target 0.5 in row 0"),
    (tasks.ordinal("t", 3), torch.tensor([0, 3]), "target 3 in row 1"),
]


@pytest.mark.parametrize(("task", "targets", "message"), BAD_TARGETS, ids=[text for *_, text in BAD_TARGETS])
def test_bad_targets_name_row_and_value(task, targets, message):
    with pytest.raises(DataError, match=message):
        task.fitted(targets)


def test_weights_have_to_fit():
    with pytest.raises(DataError, match=r"2 targets but weights of shape \(3,\)"):
        tasks.binary("t").fitted(torch.zeros(2), torch.ones(3))
    with pytest.raises(DataError, match="weights that add up to 0"):
        tasks.binary("t").fitted(torch.zeros(2), torch.zeros(2))
