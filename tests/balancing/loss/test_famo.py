"""FAMO against Algorithm 1 and against the literal total with torch's own Adam."""

import pytest
import torch

from polytask.balancing.loss.famo import FAMO
from polytask.errors import BalancerError

TASKS = ["a", "b", "c"]


def ready(method, tasks=TASKS):
    method.setup(tasks)
    return method.double()


def batches(count=12, scale=1.0):
    generator = torch.Generator().manual_seed(4)
    for _ in range(count):
        before = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
        yield scale * before, scale * before * (0.5 + torch.rand(3, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("update", ["sgd", "adam"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_sequence_against_the_literal_algorithm(update, scale):
    method = ready(FAMO(gamma=0.01, lr=0.1, update=update))
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    make = torch.optim.SGD if update == "sgd" else torch.optim.Adam
    optimizer = make([logits], lr=0.1, weight_decay=0.01)
    for before, after in batches(scale=scale):
        shares = logits.softmax(0)
        losses = before.clone().requires_grad_()
        constant = 1 / (shares / before).sum().detach()
        expected = torch.autograd.grad((constant * shares.detach() * losses.log()).sum(), losses)[0]
        torch.testing.assert_close(method.weigh(before, TASKS), expected, rtol=1e-7, atol=0)
        method.after_step(lambda after=after: dict(zip(TASKS, after, strict=True)))
        optimizer.zero_grad()
        (logits.softmax(0) * (before.log() - after.log())).sum().backward()
        optimizer.step()
        torch.testing.assert_close(method.logits, logits.detach(), rtol=1e-5, atol=1e-9)


def test_absent_tasks_keep_their_state():
    method = ready(FAMO())
    for before, after in batches(3):
        method.weigh(before, TASKS)
        method.after_step(lambda after=after: dict(zip(TASKS, after, strict=True)))
    kept = {name: getattr(method, name).clone() for name in ("logits", "first", "second", "steps")}
    method.weigh(torch.tensor([2.0, 1.0]), ["c", "a"])
    method.after_step(lambda: {"a": torch.tensor(0.9), "c": torch.tensor(1.0)})
    for name, old in kept.items():
        new = getattr(method, name)
        assert new[1] == old[1]
        assert bool((new[[0, 2]] != old[[0, 2]]).all())
    weights = method.weigh(torch.tensor([2.0, 1.0], dtype=torch.float64), ["b", "c"])
    shares = method.logits[1:].softmax(0) / torch.tensor([2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(weights, shares / shares.sum())


@pytest.mark.parametrize("value", [0.0, -2.0])
def test_solved_tasks_leave(value):
    method = ready(FAMO(update="sgd"))
    losses = torch.tensor([1.0, value, 3.0], dtype=torch.float64)
    torch.testing.assert_close(
        method.weigh(losses, TASKS), torch.tensor([0.75, 0.0, 0.25], dtype=torch.float64), rtol=1e-12, atol=0
    )
    method.after_step(lambda: {"a": torch.tensor(0.5), "b": torch.tensor(1.0), "c": torch.tensor(0.0)})
    assert method.logits[[1, 2]].tolist() == [0.0, 0.0]
    assert method.weigh(torch.zeros(3), TASKS).tolist() == [0.0, 0.0, 0.0]
    method.after_step(lambda: dict.fromkeys(TASKS, torch.tensor(1.0)))
    assert method.logits.tolist() == [0.0, 0.0, 0.0]


def test_min_losses_shift_the_logs():
    method = ready(FAMO(min_losses={"a": -1.0, "b": 0.5, "c": 0.0}))
    found = method.weigh(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), TASKS)
    inverse = 1 / torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(found, inverse / inverse.sum())
    method.epoch_end({"a": -0.9, "b": 0.6})
    with pytest.raises(BalancerError, match=r"FAMO needs losses of at least -1; the loss of 'a' was -1\.5"):
        method.epoch_end({"a": -1.5})


def test_resume_between_steps():
    first, second = ready(FAMO()), ready(FAMO())
    steps = list(batches())
    for number, (before, after) in enumerate(steps):
        if number == 6:
            second.load_state_dict(first.state_dict())
        for method in (first, second)[: 1 if number < 6 else 2]:
            method.weigh(before, TASKS)
            method.after_step(lambda after=after: dict(zip(TASKS, after, strict=True)))
    assert torch.equal(first.logits, second.logits)


def test_errors():
    with pytest.raises(BalancerError, match=r"Unknown update 'adamm'\. Known: adam, sgd"):
        FAMO(update="adamm")
    with pytest.raises(BalancerError, match="gamma must be zero or more"):
        FAMO(gamma=-1.0)
    with pytest.raises(BalancerError, match="lr must be positive"):
        FAMO(lr=0.0)
    with pytest.raises(BalancerError, match="without a step"):
        ready(FAMO()).after_step(dict)


def test_one_task():
    assert ready(FAMO(), ["a"]).weigh(torch.tensor([5.0]), ["a"]).tolist() == [1.0]


def test_a_solved_task_whose_loss_then_overflows_leaves_the_others_alone():
    method = FAMO()
    method.setup(["a", "b", "c"])
    method.weigh(torch.tensor([1.0, 2.0, 0.0]), ["a", "b", "c"])
    method.after_step(lambda: {"a": torch.tensor(0.5), "b": torch.tensor(2.0), "c": torch.tensor(torch.inf)})
    assert bool(method.logits.isfinite().all())
    assert float(method.logits[1]) > float(method.logits[0])
    assert float(method.logits[2]) == 0.0
