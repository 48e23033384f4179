"""Training strategies equal loops written by hand, to the bit, and say when they cannot work."""

import itertools
import math

import pytest
import torch
from torch import nn

import polytask as pt
from polytask.data.source import TensorSource
from polytask.errors import RecipeError
from polytask.training.fit import train
from polytask.training.settings import PenaltySettings, TrainingSettings
from polytask.training.state import load_state

ROWS, SIZE = 48, 16
LAMBDA = {"up": 1.0, "size": 0.25}
WEIGHED = {"name": "static", "weights": LAMBDA}
PHASES = [{"tasks": ["up"], "epochs": 1}, {"tasks": "all", "epochs": 1}, {"tasks": "all", "train": "heads"}]


def rows(seed=0, missing=0.3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 5, generator=g)
    up = (x[:, 0] + 0.1 * torch.randn(ROWS, generator=g) > 0).float()
    size = 3 + 2 * x[:, 1]
    for target in (up, size):
        target[torch.rand(ROWS, generator=g) < missing] = math.nan
    return TensorSource(x, {"up": up, "size": size})


def model(sharing="hard"):
    """BatchNorm and dropout both in the shared part and in each task's own layers."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2))
    made = {
        "hard": lambda: pt.sharing.Hard(encoder, private=[8], norm="batch", dropout=0.2),
        "hierarchical": lambda: pt.sharing.Hierarchical(encoder, {"size": ["up"]}, layers=[8], norm="batch"),
        "separate": lambda: pt.sharing.Separate(encoder),
    }[sharing]()
    tasks = [pt.tasks.binary("up"), pt.tasks.regression("size")]
    return pt.MultiTaskModel(made, tasks, example=torch.zeros(2, 5))


def settings(**changes):
    standard = {"epochs": 3, "batch_size": SIZE, "lr": 0.02, "weight_decay": 0.1, "select": "last", "seed": 5}
    return TrainingSettings(**{**standard, **changes})


class Keep(pt.Callback):
    """Keeps the optimizer's state and what each step changed."""

    def on_start(self, loop):
        self.loop = loop

    def on_end(self, loop):
        self.optimizer = loop.optimizer.state_dict()["state"]


def fit(strategy, source=None, *, balancer=WEIGHED, sharing="hard", m=None, **changes):
    keep = Keep()
    options = settings(strategy=strategy, **changes)
    m = m or model(sharing)
    run = train(m, [source or rows()], balancer=balancer, settings=options, callbacks=[keep])
    return m, keep.optimizer, run


def own_of(m, task):
    return [*m.sharing.task_parameters(task), *m.heads[task].parameters()]


def by_hand(steps, source, *, sharing="hard", lr=0.02, weights=LAMBDA, extra=lambda m, number: 0.0):
    """The loop that a person would write: ``steps`` says the batch, the trained part, and the tasks of each step."""
    m = model(sharing)
    m.replace_tasks([task.fitted(source.targets(name)) for name, task in m.tasks.items()])
    matrices = [p for p in m.parameters() if p.dim() > 1]
    vectors = [p for p in m.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    owned = {task: own_of(m, task) for task in m.tasks}
    heads = {id(p) for of in owned.values() for p in of}
    torch.manual_seed(5)
    m.train()
    for number, (position, part, tasks) in enumerate(steps):
        batch = source.batch(position, SIZE, (5, 0))
        train_these = set() if part == "heads" else {id(p) for p in m.parameters()} - heads
        train_these |= set() if part == "shared" else {id(p) for task in tasks for p in owned[task]}
        for p in m.parameters():
            p.requires_grad_(id(p) in train_these)
        norms = [n for n in m.modules() if isinstance(n, nn.BatchNorm1d) and id(n.weight) not in train_these]
        before = [{k: v.clone() for k, v in n.named_buffers()} for n in norms]
        optimizer.zero_grad()
        out = m(batch.inputs, tasks)
        total = extra(m, number)
        for task in tasks:
            known = batch.targets[task].isnan().logical_not()
            losses = m.tasks[task].loss(out[task][known], batch.targets[task][known])
            total = total + weights[task] * (losses.sum() / int(known.sum()))
        total.backward()
        optimizer.step()
        for norm, buffers in zip(norms, before, strict=True):
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)
    return m, optimizer.state_dict()["state"]


def assert_same(first, second):
    """Two models, or optimizers' states, with equal bits."""
    for name, value in first.items():
        if isinstance(value, dict):
            assert_same(value, second[name])
        else:
            assert torch.equal(value, second[name]), name
    assert first.keys() == second.keys()


BOTH = ("up", "size")


@pytest.mark.parametrize("batch", ["same", "next"])
def test_alternating_is_a_hand_written_loop(batch):
    ours, state, run = fit({"name": "alternating", "batch": batch})
    twice = [(n, part, BOTH) for n in range(9) for part in ("shared", "heads")]
    once = [(n, ("shared", "heads")[n % 2], BOTH) for n in range(9)]
    theirs, expected = by_hand(twice if batch == "same" else once, rows())
    assert_same(ours.state_dict(), theirs.state_dict())
    assert_same(state, expected)
    assert [row["step"] for row in run.history] == ([6, 12, 18] if batch == "same" else [3, 6, 9])
    assert run.notes[1] == f"Strategy: alternating, the shared part and then the heads, on the {batch} batch."


def test_levels_are_a_hand_written_loop():
    ours, state, _ = fit("hierarchical", sharing="hierarchical")
    theirs, expected = by_hand([(n, "all", (task,)) for n in range(9) for task in BOTH], rows(), sharing="hierarchical")
    assert_same(ours.state_dict(), theirs.state_dict())
    assert_same(state, expected)


@pytest.mark.parametrize("anchor", [0.0, 0.3])
def test_phases_are_a_hand_written_loop(anchor):
    ours, state, run = fit({"name": "hierarchical", "phases": PHASES, "anchor": anchor})
    steps = [(n, "heads" if n > 5 else "all", ("up",) if n < 3 else BOTH) for n in range(9)]
    kept = {}

    def change(m, number):
        if number in (3, 6):
            kept.update(
                {name: p.detach().clone() for name, p in m.named_parameters() if number == 6 or "size" not in name}
            )
        pairs = [(m.get_parameter(name), value) for name, value in kept.items()]
        terms = [(p - value).square().sum() for p, value in pairs if p.requires_grad]
        return anchor * torch.stack(terms).sum() if terms and anchor else 0.0

    theirs, expected = by_hand(steps, rows(), extra=change)
    assert_same(state, expected)
    assert_same(ours.state_dict(), theirs.state_dict())
    assert run.notes[1] == (
        "Strategy: hierarchical, in phases: up for 1 epochs, all tasks for 1 epochs, all tasks (heads) to the end."
    )
