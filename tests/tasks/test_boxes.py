"""Boxes: overlaps against hand calculations and rasters, suppression against the greedy loop."""

import pytest
import torch

from polytask.tasks.boxes import areas, generalised_iou, pairwise_iou, suppressed


def drawn(count, seed, side=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, side - 2, (count, 2), generator=generator)
    size = torch.randint(1, side // 2, (count, 2), generator=generator)
    return torch.cat([low, (low + size).clamp_max(side)], 1).to(dtype)


def cells(box, side=12):
    """The unit squares that a box of whole numbers covers."""
    x1, y1, x2, y2 = (int(value) for value in box)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


def test_overlaps_are_counts_of_unit_squares():
    first, second = drawn(15, 0), drawn(12, 1)
    found = pairwise_iou(first, second)
    for i, one in enumerate(first):
        for j, two in enumerate(second):
            a, b = cells(one), cells(two)
            assert found[i, j].item() == pytest.approx(len(a & b) / len(a | b))
            hull = (
                max(one[2], two[2]).item() - min(one[0], two[0]).item(),
                max(one[3], two[3]).item() - min(one[1], two[1]).item(),
            )
            area = hull[0] * hull[1]
            expected = len(a & b) / len(a | b) - (area - len(a | b)) / area
            assert generalised_iou(one, two).item() == pytest.approx(expected)


def test_generalised_iou_by_hand():
    one = torch.tensor([0.0, 0.0, 2.0, 2.0])
    assert generalised_iou(one, one).item() == 1
    # Overlap 1, union 7, hull 9.
    two = torch.tensor([1.0, 1.0, 3.0, 3.0])
    assert generalised_iou(one, two).item() == pytest.approx(1 / 7 - 2 / 9)
    # Far apart: no overlap, union 8, hull 10 x 2.
    far = torch.tensor([8.0, 0.0, 10.0, 2.0])
    assert generalised_iou(one, far).item() == pytest.approx(-12 / 20)
    # A box without area has no overlap with anything, and nothing is divided by 0.
    point = torch.tensor([5.0, 5.0, 5.0, 5.0])
    assert areas(point).item() == 0
    assert generalised_iou(point, point).isfinite()


def test_generalised_iou_has_a_gradient_where_boxes_do_not_meet():
    one = torch.tensor([[0.1, 0.2, 2.0, 2.3], [1.0, 1.0, 4.0, 5.0]], dtype=torch.float64, requires_grad=True)
    two = torch.tensor([[5.0, 6.0, 7.5, 9.0], [2.0, 2.5, 3.5, 6.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda b: generalised_iou(b, two), one)
    (gradient,) = torch.autograd.grad(generalised_iou(one, two).sum(), one)
    assert gradient[0].abs().sum() > 0


def pairwise_iou_of(boxes, one, other):
    return pairwise_iou(boxes[one][None], boxes[other][None])[0, 0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_suppression_is_the_greedy_loop(seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.stack([drawn(40, seed), drawn(40, seed + 100)])
    # Few different scores, so that there are ties.
    scores = torch.randint(0, 15, (2, 40), generator=generator).double() / 15
    classes = torch.randint(0, 2, (2, 40), generator=generator)
    found = suppressed(boxes, scores, classes, threshold)
    for image in range(2):
        stays = []
        for number in scores[image].argsort(descending=True, stable=True).tolist():
            rivals = [kept for kept in stays if classes[image, kept] == classes[image, number]]
            if all(pairwise_iou_of(boxes[image], kept, number) <= threshold for kept in rivals):
                stays.append(number)
        assert found[image].nonzero().flatten().tolist() == sorted(stays)
        assert len(stays) < 40 or threshold == 0.5


def test_a_long_chain_takes_as_many_rounds_as_it_needs():
    # Each box overlaps its neighbours alone, so every second one stays.
    left = torch.arange(9.0)
    boxes = torch.stack([left, torch.zeros(9), left + 1.6, torch.ones(9)], 1)
    found = suppressed(boxes, torch.arange(9.0, 0, -1), torch.zeros(9), 0.2)
    assert found.tolist() == [True, False] * 4 + [True]
