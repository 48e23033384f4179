"""Losses against closed forms, PyTorch's own losses and numerical gradients."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from polytask.tasks.losses import (
    BinaryLoss,
    MulticlassLoss,
    MultilabelLoss,
    OrdinalLoss,
    PoissonLoss,
    RegressionLoss,
    constant,
    cumulative_logits,
    ordinal_log_probabilities,
)
from polytask.tasks.task import mean_loss

NAN = float("nan")
ROWS, K = 6, 4


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CLASSES = torch.tensor([0, 3, 1, 2, 2, 0])
SOFT = normal(ROWS, K, seed=1).softmax(-1)
SHARE = normal(ROWS, seed=2).sigmoid()
LABELS = torch.tensor([[0, 1, NAN, 1], [1, 1, 0, 0], [NAN, NAN, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [NAN, 1, 1, 0.0]])
CASES = {
    "binary": (BinaryLoss(), (ROWS,), SHARE),
    "binary weighted": (BinaryLoss((0.7, 2.0)), (ROWS,), SHARE),
    "binary all options": (BinaryLoss((0.7, 2.0), 0.1, 2.0), (ROWS,), SHARE),
    "binary small gamma": (BinaryLoss(gamma=0.5), (ROWS,), SHARE),
    "multiclass": (MulticlassLoss(), (ROWS, K), CLASSES),
    "multiclass weighted": (MulticlassLoss((1.0, 2.0, 0.5, 3.0)), (ROWS, K), CLASSES),
    "multiclass all options": (MulticlassLoss((1.0, 2.0, 0.5, 3.0), 0.1, 1.5), (ROWS, K), CLASSES),
    "multiclass soft": (MulticlassLoss((1.0, 2.0, 0.5, 3.0), 0.1, 1.5), (ROWS, K), SOFT),
    "multilabel": (MultilabelLoss((1.0, 2.0, 0.5, 3.0), 2.0), (ROWS, K), LABELS.double()),
    "mse": (RegressionLoss("mse", scale=(3.0,)), (ROWS,), normal(ROWS, seed=3)),
    "mae of several": (RegressionLoss("mae", scale=(3.0, 1.0, 2.0, 1.0)), (ROWS, K), LABELS.double() + 0.3),
    "huber": (RegressionLoss("huber", 0.5, (3.0,)), (ROWS,), normal(ROWS, seed=3)),
    "poisson": (PoissonLoss(), (ROWS,), torch.tensor([0.0, 1, 5, 2, 0, 9]).double()),
    "ordinal": (OrdinalLoss(), (ROWS, K - 1), CLASSES),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_numerical_ones(case):
    loss, shape, target = CASES[case]
    raw = normal(*shape, seed=4).requires_grad_()
    assert loss(raw, target).shape == (ROWS,)
    assert torch.autograd.gradcheck(lambda r: loss(r, target), (raw,))


@pytest.mark.parametrize("case", CASES)
def test_the_fast_mean_is_the_mean_of_the_rows(case):
    loss, shape, target = CASES[case]
    raw = normal(*shape, seed=5).requires_grad_()
    fast, slow = mean_loss(loss, raw, target), loss(raw, target).mean()
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, raw)[0], torch.autograd.grad(slow, raw)[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1e3, -1e3, 1e-30])
def test_losses_and_gradients_are_finite_for_extreme_outputs(case, size):
    loss, shape, target = CASES[case]
    if case == "poisson" and size == 1e3:
        pytest.skip("e^1000 is infinite in any precision")
    raw = torch.full(shape, size, dtype=torch.float32).requires_grad_()
    losses = loss(raw, target)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("case", CASES)
def test_half_precision_outputs_give_float32_losses(case):
    loss, shape, target = CASES[case]
    raw = normal(*shape, seed=4).to(torch.bfloat16)
    losses = loss(raw, target)
    assert losses.dtype == torch.float32
    # The same rounded outputs, so only the arithmetic could differ.
    torch.testing.assert_close(losses, loss(raw.double(), target).float(), rtol=1e-5, atol=1e-6)


def test_binary_loss_is_the_cross_entropy():
    raw = normal(ROWS)
    expected = functional.binary_cross_entropy_with_logits(raw, SHARE, reduction="none")
    torch.testing.assert_close(BinaryLoss()(raw, SHARE), expected)
    smoothed = functional.binary_cross_entropy_with_logits(raw, 0.8 * SHARE + 0.1, reduction="none")
    torch.testing.assert_close(BinaryLoss(smoothing=0.2)(raw, SHARE), smoothed)


def test_binary_focal_loss_and_weights_by_hand():
    p, target = 0.8, torch.tensor([1.0, 0.0], dtype=torch.float64)
    raw = torch.full((2,), math.log(p / (1 - p)), dtype=torch.float64)
    expected = [3 * 0.2**2 * -math.log(0.8), 0.5 * 0.8**2 * -math.log(0.2)]
    torch.testing.assert_close(BinaryLoss((0.5, 3.0), gamma=2.0)(raw, target).tolist(), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("target", [CLASSES, SOFT], ids=["hard", "soft"])
def test_multiclass_loss_is_the_cross_entropy(smoothing, target):
    raw, weights = normal(ROWS, K), (1.0, 2.0, 0.5, 3.0)
    expected = functional.cross_entropy(
        raw, target, torch.tensor(weights).double(), reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(MulticlassLoss(weights, smoothing)(raw, target), expected)


def test_hard_labels_equal_their_one_hot_distribution_under_all_options():
    loss = MulticlassLoss((1.0, 2.0, 0.5, 3.0), 0.1, 2.0)
    raw = normal(ROWS, K)
    torch.testing.assert_close(loss(raw, CLASSES), loss(raw, functional.one_hot(CLASSES, K).double()))


def test_gamma_zero_is_plain_cross_entropy():
    raw = normal(ROWS, K)
    torch.testing.assert_close(MulticlassLoss(gamma=0.0)(raw, CLASSES), MulticlassLoss()(raw, CLASSES))


def test_missing_labels_carry_no_loss_and_no_gradient():
    raw = normal(ROWS, K).requires_grad_()
    losses = MultilabelLoss()(raw, LABELS)
    losses.sum().backward()
    entries = functional.binary_cross_entropy_with_logits(raw, LABELS.nan_to_num(0.0).double(), reduction="none")
    expected = torch.stack([row[~known.isnan()].mean() for row, known in zip(entries, LABELS, strict=True)])
    torch.testing.assert_close(losses, expected)
    assert torch.equal(raw.grad == 0, LABELS.isnan())


def test_missing_dimensions_carry_no_loss_and_no_gradient():
    raw = torch.tensor([[1.0, 2.0], [5.0, 5.0]]).requires_grad_()
    losses = RegressionLoss("mse", scale=(1.0, 2.0))(raw, torch.tensor([[NAN, 6.0], [4.0, 5.0]]))
    losses.sum().backward()
    assert losses.tolist() == [4.0, 0.5]
    assert raw.grad.tolist() == [[0.0, -2.0], [1.0, 0.0]]


@pytest.mark.parametrize("form", ["mse", "mae", "huber"])
def test_regression_losses_do_not_depend_on_the_unit(form):
    raw, target = normal(ROWS), normal(ROWS, seed=1)
    here = RegressionLoss(form, 0.7, (1.0,))(raw, target)
    there = RegressionLoss(form, 0.7, (1e6,))(1e6 * raw, 1e6 * target)
    torch.testing.assert_close(here, there)


def test_huber_is_pytorchs():
    raw, target = normal(ROWS), normal(ROWS, seed=1)
    expected = functional.huber_loss(raw, target, reduction="none", delta=0.7)
    torch.testing.assert_close(RegressionLoss("huber", 0.7)(raw, target), expected)


def test_poisson_loss_is_the_negative_log_likelihood():
    raw, target = normal(ROWS), torch.tensor([0.0, 1, 5, 2, 0, 9]).double()
    expected = -stats.poisson.logpmf(target.numpy(), raw.exp().numpy())
    np.testing.assert_allclose(PoissonLoss()(raw, target).numpy(), expected, rtol=1e-12)


def test_ordinal_probabilities_are_differences_of_the_cumulative_ones():
    raw = normal(ROWS, K - 1)
    above = np.pad(cumulative_logits(raw).sigmoid().numpy(), ((0, 0), (1, 1)), constant_values=(0, 0))
    above[:, 0] = 1.0
    found = ordinal_log_probabilities(raw).exp().numpy()
    np.testing.assert_allclose(found, above[:, :-1] - above[:, 1:], rtol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-12)
    torch.testing.assert_close(OrdinalLoss()(raw, CLASSES), -torch.from_numpy(found)[range(ROWS), CLASSES].log())


def test_two_ordered_classes_are_a_binary_task():
    raw = normal(ROWS)
    torch.testing.assert_close(OrdinalLoss()(raw[:, None], CLASSES % 2), BinaryLoss()(raw, CLASSES % 2))


def test_constants_made_in_inference_mode_can_be_used_in_training():
    loss = MulticlassLoss((1.25, 2.25, 3.25, 4.25))
    with torch.inference_mode():
        loss(normal(ROWS, K), CLASSES)
    raw = normal(ROWS, K).requires_grad_()
    loss(raw, CLASSES).sum().backward()
    assert raw.grad.isfinite().all()
    assert constant((1.25, 2.25), raw) is constant((1.25, 2.25), raw)
