"""Tasks with a label at every pixel: losses and metrics against scikit-learn, PyTorch and closed forms."""

import inspect
import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score
from torch.nn import functional

from polytask import catalogue, registry, tasks
from polytask.errors import DataError, RecipeError, ShapeError
from polytask.evaluation.predict import TaskOutputs, score_outputs
from polytask.tasks.losses_maps import MapLoss, SegmentationLoss
from polytask.tasks.metrics_maps import pixel_matrix

NAN = float("nan")


MADE = {
    "segmentation": tasks.segmentation("t", ["a", "b"], size=(4, 5), class_weights={"a": 1, "b": 2}, dice=0.5),
    "balanced": tasks.segmentation("t", 2, class_weights="balanced", class_shares=[0.2, 0.8], label_smoothing=0.1),
    "dense_regression": tasks.dense_regression("t", loss="berhu", delta=0.3, size=[4, 5], mean=1.0, deviation=2.0),
    "log": tasks.dense_regression("t", loss="log", hidden=[4], dropout=0.1, metrics=["mae"]),
}


@pytest.mark.parametrize("case", MADE)
def test_options_as_json_make_an_equal_task(case):
    task = MADE[case]
    again = registry.build("tasks", task.kind, json.loads(json.dumps(dict(task.options))), name="t")
    assert again == task
    assert set(task.options) == set(registry.options_of(getattr(tasks, task.kind))) - {"name"}
    for part in (task.loss, task.score, task.decode, task.refit, task.head, task.target, task.units, task.keep):
        assert pickle.loads(pickle.dumps(part)) == part


@pytest.mark.parametrize("kind", ["segmentation", "dense_regression"])
def test_the_registry_says_what_the_docstring_says(kind):
    assert catalogue.TASKS[kind].help == inspect.getdoc(getattr(tasks, kind)).splitlines()[0]


def maps(seed=0, rows=3, classes=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(rows, classes, 5, 6, generator=generator, dtype=dtype)
    target = torch.randint(-1, classes, (rows, 5, 6), generator=generator).to(torch.int8)
    return raw, target


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_pytorchs_with_unlabelled_pixels_ignored(weights, smoothing):
    raw, target = maps()
    loss = SegmentationLoss(weights, smoothing)(raw, target)
    expected = functional.cross_entropy(
        raw,
        target.long(),
        None if weights is None else torch.tensor(weights),
        ignore_index=-1,
        label_smoothing=smoothing,
        reduction="none",
    )
    torch.testing.assert_close(loss, expected.sum((1, 2)))


def test_dice_is_written_out_for_one_image():
    raw = torch.tensor([[[[1.0, 0.0, 5.0]], [[0.0, 2.0, 0.0]], [[0.3, 0.1, 0.0]]]])
    target = torch.tensor([[[0, 1, -1]]])
    p = raw.softmax(1)[0, :, 0, :2]
    of_zero = 1 - 2 * p[0, 0] / (p[0].sum() + 1)
    of_one = 1 - 2 * p[1, 1] / (p[1].sum() + 1)
    extra = SegmentationLoss(dice=3.0)(raw, target) - SegmentationLoss()(raw, target)
    # Class 2 is not in the image. Two pixels are labelled.
    torch.testing.assert_close(extra, 3 * 2 * (of_zero + of_one)[None] / 2)


@pytest.mark.parametrize("dice", [0.0, 0.7])
def test_losses_have_the_gradient_of_their_values_and_none_where_nothing_is_labelled(dice):
    raw, target = maps(dtype=torch.float64)
    loss = SegmentationLoss(smoothing=0.1, dice=dice)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), raw.requires_grad_())
    (gradient,) = torch.autograd.grad(loss(raw, target).sum(), raw)
    assert not gradient.movedim(1, -1)[target < 0].any()


@pytest.mark.parametrize(
    ("form", "expected"),
    [("mae", 0.1 + 3), ("mse", 0.01 + 9), ("berhu", 0.1 + (9 + 0.04) / 0.4)],
)
def test_losses_of_numbers_in_units_of_the_deviation(form, expected):
    raw, target = torch.tensor([[[[1.0, 2.0, 7.0]]]]), torch.tensor([[[1.2, 8.0, NAN]]])
    torch.testing.assert_close(MapLoss(form, 0.2, 2.0)(raw, target), torch.tensor([expected]))


def test_log_errors_are_of_logarithms():
    raw, target = torch.tensor([[[[0.5, 2.0]]]], dtype=torch.float64), torch.tensor([[[3.0, NAN]]])
    torch.testing.assert_close(MapLoss("log")(raw, target).item(), np.log(3.0) - 0.5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", ["mae", "mse", "berhu", "log"])
def test_unlabelled_pixels_get_no_gradient(form):
    raw = torch.randn(2, 1, 2, 2, requires_grad=True)
    target = torch.tensor([[[1.0, NAN], [2.0, 3.0]], [[NAN, NAN], [NAN, 1.0]]])
    (gradient,) = torch.autograd.grad(MapLoss(form)(raw, target).sum(), raw)
    assert gradient.isfinite().all()
    assert not gradient[:, 0][target.isnan()].any()
    assert gradient[:, 0][~target.isnan()].all()


def test_units_are_labelled_pixels():
    assert tasks.segmentation("t", 2).units(torch.tensor([[[0, -1]], [[1, 1]]])).tolist() == [1, 2]
    assert tasks.dense_regression("t").units(torch.tensor([[[0.5, NAN]]])).tolist() == [1]


def scored(task, kept, target, weight=None):
    return score_outputs(task, TaskOutputs(kept, task.score(kept), target.numpy(), weight))


def test_segmentation_metrics_are_scikit_learns():
    raw, target = maps(rows=6, classes=5)
    target[target == 3] = -1
    task = tasks.segmentation("t", 5)
    kept = task.kept(raw)
    assert kept.dtype == torch.int16
    weight = np.array([1.0, 2.0, 0.0, 1.0, 0.5, 3.0])
    values, left_out = scored(task, kept, target, weight)
    known = (target >= 0).numpy()
    true, predicted = target.numpy()[known], kept.numpy()[known]
    of_pixels = np.broadcast_to(weight[:, None, None], known.shape)[known]
    expected = jaccard_score(true, predicted, labels=range(5), average=None, sample_weight=of_pixels)
    assert values["miou"] == pytest.approx(expected.mean())
    matrix = confusion_matrix(true, predicted, labels=range(5), sample_weight=of_pixels)
    assert values["pixel_accuracy"] == pytest.approx(matrix.trace() / matrix.sum())
    np.testing.assert_allclose(pixel_matrix(kept.numpy(), target.numpy(), weight, 5), matrix)
    assert left_out == {}


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    task = tasks.segmentation("t", 3)
    kept, target = torch.tensor([[[0, 1]]], dtype=torch.int16), torch.tensor([[[0, 1]]], dtype=torch.int8)
    values, left_out = scored(task, kept, target)
    assert values["miou"] == 1
    assert left_out == {"miou": 1, "mean_dice": 1}


def test_metrics_of_numbers_leave_unlabelled_pixels_out():
    task = tasks.dense_regression("t")
    kept = torch.tensor([[[1.0, 4.0]], [[5.0, -1.0]]])
    target = torch.tensor([[[2.0, NAN]], [[5.5, 2.0]]], dtype=torch.float64)
    values, _ = scored(task, kept, target, np.array([1.0, 3.0]))
    assert values["mae"] == pytest.approx((1 + 3 * 0.5 + 3 * 3) / 7)
    assert values["rmse"] == pytest.approx(np.sqrt((1 + 3 * 0.25 + 3 * 9) / 7))
    assert values["relative_error"] == pytest.approx((0.5 + 3 * 0.5 / 5.5 + 3 * 1.5) / 7)
    assert values["within_quarter"] == pytest.approx(3 / 7)


def test_log_maps_are_kept_as_values():
    task = tasks.dense_regression("t", loss="log")
    assert task.kept(torch.zeros(1, 1, 2, 2)).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


def test_what_training_data_fix():
    target = torch.tensor([[[0, 0, 2], [-1, 0, 2]], [[-1] * 3] * 2], dtype=torch.int8)
    task = tasks.segmentation("t", class_weights="balanced").fitted(target)
    assert task.options["classes"] == 3
    assert task.options["size"] == [2, 3]
    assert task.options["class_shares"] == pytest.approx([0.6, 0, 0.4])
    assert task.loss.weights == pytest.approx((1 / 1.2, 1.0, 1 / 0.8))
    values = torch.tensor([[[1.0, NAN], [3.0, 8.0]]])
    task = tasks.dense_regression("t").fitted(values, torch.tensor([2.0]))
    assert task.head.shift == pytest.approx(4)
    assert task.head.scale == pytest.approx(np.std([1, 3, 8]))
    constant = tasks.dense_regression("t").fitted(torch.full((2, 3, 3), 0.1))
    assert constant.head.scale == 1


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        (tasks.segmentation("t", 2), torch.zeros(3, dtype=torch.int64), r"\[rows, height, width\] as integers"),
        (tasks.segmentation("t", 2), torch.full((1, 2, 2), 2), "target 2 in row 0, column 0"),
        (tasks.segmentation("t", 2, size=[3, 3]), torch.zeros(1, 2, 2, dtype=torch.int8), r"\[3, 3\] but its targets"),
        (tasks.dense_regression("t"), torch.zeros(1, 2), "floating point"),
        (tasks.dense_regression("t", loss="log"), torch.zeros(1, 2, 2), "positive, as loss: log needs it"),
    ],
)
def test_targets_that_cannot_be_used(task, targets, message):
    with pytest.raises(DataError, match=message):
        task.fitted(targets)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.segmentation("t", dice=-1), "dice is -1"),
        (lambda: tasks.segmentation("t", size=[3]), r"size is \[3\]"),
        (lambda: tasks.segmentation("t", metrics=["mIoU"]), "Did you mean 'miou'?"),
        (lambda: tasks.dense_regression("t", loss="l1"), "Use one of: mae, mse, berhu, log"),
        (lambda: tasks.dense_regression("t", deviation=0), "deviation is 0"),
    ],
)
def test_options_that_cannot_be_used(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_maps_of_other_sizes_are_an_error_with_both_sizes():
    with pytest.raises(ShapeError, match=r"maps of \[5, 6\] pixels but the targets have \[4, 4\]"):
        SegmentationLoss()(maps()[0], torch.zeros(3, 4, 4, dtype=torch.int8))


def test_decoding():
    task = tasks.segmentation("t", ["wall", "door"])
    columns = task.decode(torch.tensor([[[0, 1], [1, 1]]], dtype=torch.int16))
    assert columns[""].tolist() == [[[0, 1], [1, 1]]]
    assert columns["share_wall"].tolist() == [0.25]
