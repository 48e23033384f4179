"""The stateless classes: options, absent tasks, given orders, warnings, messages."""

from __future__ import annotations

import pytest
import torch

from polytask.balancing.functional.robust import graddrop
from polytask.balancing.gradient.axes import IMTLG, AlignedMTL, ConFIG
from polytask.balancing.gradient.pairwise import GradVac, PCGrad
from polytask.balancing.gradient.robust import GradDrop, Krum, TrimmedMean
from polytask.balancing.warn import BalancerWarning
from polytask.errors import BalancerError

TASKS = ("a", "b", "c", "d")


def rows(count=4, size=6, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ready(method, tasks=TASKS, seed=0):
    method.setup(tasks, seed=seed)
    return method


def weigh(method, jacobian, tasks=TASKS):
    return method.weigh(jacobian @ jacobian.T, None, tasks)


def in_turn(jacobian, order):
    """PCGrad with one order for all, in vectors."""
    total = torch.zeros_like(jacobian[0])
    for i in range(len(jacobian)):
        v = jacobian[i].clone()
        for j in order:
            if j != i and v @ jacobian[j] < 0:
                v = v - (v @ jacobian[j]) / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += v
    return total


@pytest.mark.parametrize("order", [["d", "b", "a", "c"], [3, 1, 0, 2]])
def test_pcgrad_visits_in_the_given_order(order):
    jacobian = rows(seed=3)
    found = weigh(ready(PCGrad(order=order)), jacobian) @ jacobian
    torch.testing.assert_close(found, in_turn(jacobian, [3, 1, 0, 2]))
    some = [0, 3, 1]
    found = weigh(ready(PCGrad(order=order)), jacobian[some], ["a", "d", "b"]) @ jacobian[some]
    torch.testing.assert_close(found, in_turn(jacobian[some], [1, 2, 0]))


def test_pcgrad_draws_from_its_own_generator_alone():
    jacobian = rows(seed=1) - 0.8 * rows(seed=1).mean(0)
    before = torch.random.get_rng_state()
    method = ready(PCGrad(), seed=5)
    drawn = [weigh(method, jacobian) for _ in range(8)]
    assert torch.equal(torch.random.get_rng_state(), before)
    again = ready(PCGrad(), seed=5)
    assert all(torch.equal(weigh(again, jacobian), one) for one in drawn)
    assert len({tuple(one.tolist()) for one in drawn}) > 1


def test_gradvac_keeps_the_targets_of_absent_tasks():
    method = ready(GradVac(beta=0.5))
    weigh(method, rows(seed=2))
    before = method.targets.clone()
    assert before[~torch.eye(4, dtype=torch.bool)].abs().min() > 0
    weigh(method, rows(seed=4)[[2, 0]], ["c", "a"])
    changed = (method.targets != before).nonzero().tolist()
    assert changed == [[0, 2], [2, 0]]
    before = method.targets.clone()
    weigh(method, rows(1), ["b"])
    assert torch.equal(method.targets, before)


def test_gradvac_with_beta_zero_is_pcgrad():
    jacobian = rows(seed=9)
    order = list(TASKS)
    gradvac, pcgrad = ready(GradVac(beta=0.0, order=order)), ready(PCGrad(order=order))
    for _ in range(2):
        torch.testing.assert_close(weigh(gradvac, jacobian), weigh(pcgrad, jacobian))


@pytest.mark.parametrize("method", [IMTLG, ConFIG])
def test_cancelling_gradients_warn_once_and_give_no_update(method):
    made = ready(method(), ["a", "b"])
    opposite = torch.tensor([[1.0, 2.0], [-2.0, -4.0]], dtype=torch.float64)
    with pytest.warns(BalancerWarning, match="no solution where the directions of the gradients cancel"):
        found = weigh(made, opposite, ["a", "b"])
    assert torch.equal(found, torch.zeros(2, dtype=torch.float64))
    weigh(made, opposite, ["a", "b"])  # a second warning would be an error here


def test_the_rank_tolerance_decides_what_is_a_direction():
    # The second gradient leaves the first one's direction by 1e-4: an axis, or noise.
    jacobian = torch.tensor([[1.0, 0.0], [1.0, 1e-4]], dtype=torch.float64)
    fine, coarse = ready(AlignedMTL(), ["a", "b"]), ready(AlignedMTL(rank_tolerance=1e-6), ["a", "b"])
    small, large = (float((weigh(m, jacobian, ["a", "b"]) @ jacobian).norm()) for m in (fine, coarse))
    assert small < 1e-3
    assert large == pytest.approx(1.0, rel=1e-3)


def test_aligned_mtl_scales_the_preference_of_present_tasks_to_one():
    jacobian = rows(seed=6)
    method = ready(AlignedMTL(preference={"a": 1.0, "b": 3.0, "c": 4.0, "d": 0.0}))
    small = ready(AlignedMTL(preference=[0.25, 0.75]), ["a", "b"])
    found, expected = weigh(method, jacobian[:2], ["a", "b"]), weigh(small, jacobian[:2], ["a", "b"])
    torch.testing.assert_close(found, expected)
    left, _, right = torch.linalg.svd(jacobian[:2], full_matrices=False)
    length = torch.linalg.svdvals(jacobian[:2]).min()
    direction = length * (torch.tensor([0.25, 0.75], dtype=torch.float64) @ left) @ right
    torch.testing.assert_close(found @ jacobian[:2], direction)


def test_graddrop_with_given_numbers_and_with_leaks_by_name():
    jacobian, uniform = rows(seed=2), torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    method = ready(GradDrop(leak={"d": 1.0, "a": 0.0, "b": 0.25, "c": 0.5}))
    leaks = torch.tensor([0.25, 1.0], dtype=torch.float64)
    found = method.aggregate(jacobian[[1, 3]], None, ["b", "d"], uniform=uniform)
    torch.testing.assert_close(found, graddrop(jacobian[[1, 3]], uniform, leaks))
    with pytest.raises(BalancerError, match=r"uniform has shape \[3\]; give one number for each of the 6 columns"):
        method.aggregate(jacobian, None, TASKS, uniform=uniform[:3])


def test_graddrop_keeps_a_sign_as_often_as_gradients_agree_on_it():
    # P = (1 + (3 - 1) / 4) / 2 = 0.75 in every column; four standard deviations of a mean of 20000.
    jacobian = torch.tensor([[3.0], [-1.0]]).expand(2, 20000)
    found = ready(GradDrop(), ["a", "b"]).aggregate(jacobian, None, ["a", "b"])
    assert set(found.tolist()) == {3.0, -1.0}
    assert float((found > 0).double().mean()) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 20000) ** 0.5)


def test_graddrop_and_trimmed_mean_keep_the_dtype():
    jacobian = rows().to(torch.bfloat16)
    for method in (ready(GradDrop()), ready(TrimmedMean())):
        assert method.aggregate(jacobian, None, TASKS).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PCGrad(ordering="randon"), "Unknown ordering 'randon'. Known: random, given. Did you mean 'random'?"),
        (lambda: ready(PCGrad(order=["a", "b"])), "order must name every task once"),
        (lambda: GradVac(beta=1.5), "GradVac: beta must be a number between 0 and 1; got 1.5"),
        (lambda: IMTLG(rank_tolerance=-1.0), "IMTLG: rank_tolerance must be a number of at least 0"),
        (lambda: AlignedMTL(scale="mean"), "Unknown scale 'mean'"),
        (lambda: ready(AlignedMTL(preference={"a": 1.0})), r"no number for \['b', 'c', 'd'\]"),
        (lambda: ready(AlignedMTL(preference=[1, 1, 1, -1])), "negative nowhere"),
        (lambda: Krum(n_byzantine=-1), "Krum: n_byzantine must be a whole number of at least 0; got -1"),
        (lambda: ready(Krum(n_byzantine=2)), "n_byzantine=2 needs at least 5 tasks; there are 4"),
        (lambda: ready(Krum(n_selected=5)), "n_selected=5 is more than the 4 tasks"),
        (lambda: TrimmedMean(trim=True), "TrimmedMean: trim must be a whole number of at least 0; got True"),
        (lambda: GradDrop(leak=2.0), "GradDrop: leak must be a number between 0 and 1"),
        (lambda: ready(GradDrop(leak={"aa": 1.0})), "Unknown task 'aa'. Known: a, b, c, d. Did you mean 'a'?"),
    ],
)
def test_wrong_options_say_what_is_wrong(make, message):
    with pytest.raises(BalancerError, match=message):
        make()
