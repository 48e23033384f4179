"""DWA and IGB, against the papers' formulas by hand."""

import math

import pytest
import torch

from polytask.balancing.loss.progress import DWA, IGB
from polytask.errors import BalancerError

TASKS = ["a", "b", "c"]


def ready(method, tasks=TASKS):
    method.setup(tasks)
    return method.double()


def dwa_by_hand(history, temperature):
    ratios = [series[-1] / series[-2] if len(series) > 1 else 1.0 for series in history]
    powers = [math.exp(r / temperature) for r in ratios]
    return [len(history) * power / sum(powers) for power in powers]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_dwa_sequence_with_an_absence(scale):
    method = ready(DWA(temperature=1.5))
    epochs = [(1.0, 2.0, 3.0), (0.5, 1.9, None), (0.6, 0.2, 1.0), (0.3, 0.2, 0.9)]
    history = [[], [], []]
    losses = torch.ones(3, dtype=torch.float64)
    for epoch in epochs:
        found = method.weigh(losses, TASKS).tolist()
        assert found == pytest.approx(dwa_by_hand(history, 1.5), rel=1e-6)
        there = {task: scale * value for task, value in zip(TASKS, epoch, strict=True) if value is not None}
        method.epoch_end(there)
        for series, value in zip(history, epoch, strict=True):
            series += [value] if value is not None else []
    pair = method.weigh(losses[:2], ["c", "a"]).tolist()
    assert pair == pytest.approx(dwa_by_hand([history[2], history[0]], 1.5), rel=1e-6)


def test_dwa_ignores_ratios_that_say_nothing():
    method = ready(DWA())
    method.epoch_end({"a": 0.0, "b": -1.0, "c": 1.0})
    method.epoch_end({"a": 1.0, "b": 1.0, "c": 1.0})
    assert method.weigh(torch.ones(3), TASKS).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(BalancerError, match="temperature"):
        DWA(temperature=-1.0)


@pytest.mark.parametrize("make", [DWA, IGB])
def test_resume(make):
    first, second = ready(make()), ready(make())
    for averages in ({"a": 1.0, "b": 2.0}, {"a": 0.5, "b": 2.0, "c": 4.0}):
        first.epoch_end(averages)
    second.load_state_dict(first.state_dict())
    losses = torch.tensor([0.2, 0.4, 0.5], dtype=torch.float64)
    assert torch.equal(first.weigh(losses, TASKS), second.weigh(losses, TASKS))


def igb_by_hand(losses, base):
    ratios = [value / at if at else 1.0 for value, at in zip(losses, base, strict=True)]
    powers = [math.exp(r) for r in ratios]
    return [len(losses) * power / sum(powers) / value for power, value in zip(powers, losses, strict=True)]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_igb_sequence(scale):
    method = ready(IGB(base_epoch=1))
    values = [scale * v for v in (0.5, 1.5, 4.0)]
    losses = torch.tensor(values, dtype=torch.float64)
    base = [None, None, None]
    assert method.weigh(losses, TASKS).tolist() == pytest.approx([1 / v for v in values], rel=1e-9)
    for epoch, averages in enumerate([(9.0, 9.0, 9.0), (1.0, 2.0, None), (7.0, 7.0, 5.0)]):
        method.epoch_end({t: scale * v for t, v in zip(TASKS, averages, strict=True) if v is not None})
        if epoch >= 1:
            base = [b or (v and scale * v) for b, v in zip(base, averages, strict=True)]
        assert method.weigh(losses, TASKS).tolist() == pytest.approx(igb_by_hand(values, base), rel=1e-6)
    found = method.weigh(losses[1:], ["b", "c"]).tolist()
    assert found == pytest.approx(igb_by_hand(values[1:], base[1:]), rel=1e-6)


def test_igb_leaves_out_solved_tasks():
    method = ready(IGB())
    method.epoch_end({"a": 1.0, "b": 2.0, "c": 4.0})
    losses = torch.tensor([0.5, 0.0, 4.0], dtype=torch.float64)
    found = method.weigh(losses, TASKS)
    assert found[1] == 0.0
    assert found[[0, 2]].tolist() == pytest.approx(igb_by_hand([0.5, 4.0], [1.0, 4.0]), rel=1e-6)
    assert method.weigh(torch.zeros(3), TASKS).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(BalancerError, match="IGB needs losses"):
        method.epoch_end({"a": -1.0})
    with pytest.raises(BalancerError, match="base_epoch must be zero or more; got -1"):
        IGB(base_epoch=-1)


def test_an_epoch_without_losses_changes_nothing():
    for method in (ready(DWA()), ready(IGB())):
        method.epoch_end({"a": 1.0, "b": 2.0, "c": 4.0})
        losses = torch.tensor([0.5, 1.5, 4.0], dtype=torch.float64)
        before = method.weigh(losses, TASKS)
        method.epoch_end({})
        assert torch.equal(method.weigh(losses, TASKS), before)
