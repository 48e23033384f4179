from __future__ import annotations

import json

import pytest
import torch

from polytask.balancing import ConflictMonitor, StepReport, conflict
from polytask.balancing.weight_watch import WeightWatch
from polytask.errors import BalancerError

ROWS = torch.tensor([[3.0, 0.0], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)


def report(rows, weights=(1.0, 1.0, 0.0)):
    one = torch.tensor(1.0)
    names = ("a", "b", "c")
    return StepReport(
        dict.fromkeys(names, one),
        {name: torch.tensor(w) for name, w in zip(names, weights, strict=True)},
        rows @ rows.T,
    )


def test_figures_of_explicit_rows():
    found = conflict(ROWS @ ROWS.T, ["a", "b", "c"], torch.tensor([1.0, 2.0, 5.0]))
    cosine = torch.nn.functional.cosine_similarity(ROWS[0], ROWS[1], dim=0).item()
    assert found.cosines == {("a", "b"): pytest.approx(cosine)}
    assert found.ratios == {("a", "b"): pytest.approx(2**0.5 / 3)}
    assert found.rate == 1.0
    assert found.norms == {"a": 3.0, "b": pytest.approx(2**0.5), "c": 0.0}
    assert found.update_norm == pytest.approx((ROWS[0] + 2 * ROWS[1]).norm().item())
    assert found.weights == {"a": 1.0, "b": 2.0, "c": 5.0}


def test_a_single_task_has_no_pairs():
    assert conflict(torch.ones(1, 1), ["a"]).rate is None


def test_only_every_so_many_steps_and_only_with_a_gramian():
    monitor = ConflictMonitor(every=2)
    looked = [monitor.observe(report(ROWS)) is not None for _ in range(4)]
    assert looked == [True, False, True, False]
    assert monitor.observe(StepReport({"a": torch.tensor(1.0)})) is None
    assert monitor.looks == 2


def test_warnings_name_what_stands_out():
    monitor = ConflictMonitor()
    monitor.observe(report(ROWS))
    monitor.observe(report(ROWS * torch.tensor([[1.0], [-1e-4], [1.0]])))
    monitor.observe(report(ROWS * torch.tensor([[1.0], [1e-4], [1.0]])))
    texts = monitor.warnings(ratio=0.5)
    assert texts[0] == "'a' and 'b' conflict in 67 % of the steps looked at (mean cosine -0.24)."
    assert "hardly counts in a plain sum" in texts[1]
    assert texts[2] == "'c' has a mean weight of 0, while 0.667 is typical: it is hardly trained."
    assert len(texts) == 3


def test_a_pair_near_a_right_angle_is_not_named():
    monitor = ConflictMonitor()
    for cosine in (-0.04, -0.04, -0.05):
        monitor.add(torch.tensor([[1.0, cosine], [cosine, 1.0]]), ["a", "b"])
    assert monitor.warnings() == []
    monitor.add(torch.tensor([[1.0, -0.3], [-0.3, 1.0]]), ["a", "b"])
    assert monitor.warnings() == ["'a' and 'b' conflict in 100 % of the steps looked at (mean cosine -0.11)."]


def test_state_goes_on_where_it_was():
    whole, first, second = ConflictMonitor(), ConflictMonitor(), ConflictMonitor()
    reports = [report(ROWS * torch.tensor([[1.0], [sign], [1.0]])) for sign in (1.0, -1.0, 1.0, 1.0)]
    for one in reports:
        whole.observe(one)
    for one in reports[:2]:
        first.observe(one)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for one in reports[2:]:
        second.observe(one)
    assert second.warnings() == whole.warnings() != []
    assert second.state_dict() == whole.state_dict()


def noted(*steps):
    watch = WeightWatch()
    for count, weights in steps:
        for _ in range(count):
            watch.note(weights)
    return watch


def test_who_holds_the_weight_is_named_only_while_it_lasts():
    heavy, even = {"a": 0.95, "b": 0.05}, {"a": 0.6, "b": 0.4}
    assert noted((50, even), (250, heavy)).sentences("famo") == ["'a' has held 95 % of the weight for 250 steps."]
    assert noted((199, heavy)).sentences("famo") == []
    assert noted((250, heavy), (1, even)).sentences("famo") == []
    assert noted((150, heavy), (150, {"a": 0.05, "b": 0.95})).sentences("famo") == []


def test_weights_that_stay_proportional_to_equal_ones_are_named():
    same = {"a": 0.5, "b": 0.4975}
    (text,) = noted((30, same)).sentences("nash_mtl")
    assert text == "'nash_mtl' equals equal weighting so far: in 30 steps its weights differed by at most 1 %."
    assert noted((19, same)).sentences("nash_mtl") == []
    assert noted((30, same), (1, {"a": 0.5, "b": 0.49})).sentences("nash_mtl") == []
    assert noted((30, {"a": -1.0, "b": -1.0})).sentences("imtl_g") == []


def test_steps_that_say_nothing_about_weights_are_left_out():
    watch = noted((300, {"a": 1.0}), (5, {"a": 0.0, "b": 0.0}), (5, {"a": float("nan"), "b": 1.0}))
    assert watch.steps == 0
    assert watch.sentences("famo") == []


def test_wrong_shapes_are_refused():
    with pytest.raises(BalancerError, match=r"shape \[2, 2\] but there are 1 tasks"):
        conflict(torch.ones(2, 2), ["a"])
    with pytest.raises(BalancerError, match="at least 1"):
        ConflictMonitor(every=0)
