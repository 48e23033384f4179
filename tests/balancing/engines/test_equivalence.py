"""Engines against explicit Jacobians taken with autograd, on three kinds of network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polytask.balancing import Losses, MicroBatch, build, engine
from polytask.balancing.engines.rows import products
from polytask.errors import BalancerError

TASKS = ("a", "b", "c")


class Toy(nn.Module):
    """A trunk and one linear head a task, with the interface that engines ask of a model."""

    def __init__(self, trunk, width, tasks=TASKS):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(width, 2) for task in tasks})

    def shared_parameters(self):
        return list(self.trunk.parameters())

    def task_parameters(self, task):
        return list(self.heads[task].parameters())

    def forward(self, inputs, tasks, tap):
        features = tap({"z": self.trunk(inputs)})
        return {task: self.heads[task](features[task]["z"]) for task in tasks}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, inputs):
        return self.layer(inputs).mean(1)


def trunk_of(kind):
    if kind == "mlp":
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8)), (12, 6)
    if kind == "convnet":
        layers = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers), (12, 2, 5, 5)
    return Encoder(), (12, 3, 8)


def toy(kind="mlp", tasks=TASKS, dtype=torch.float64):
    torch.manual_seed(0)
    trunk, shape = trunk_of(kind)
    model = Toy(trunk, 8, tasks).to(dtype)
    return model, torch.randn(shape, dtype=dtype), {t: torch.randn(shape[0], 2, dtype=dtype) for t in tasks}


def micro_batches(model, x, targets, pieces=1, tasks=TASKS, scales=None, penalty=False):
    """Micro-batches whose shares add up to the mean losses of the whole batch."""
    scales = scales or dict(zip(TASKS, (1.0, 3.0, 0.2), strict=True))
    total = len(x)
    made = []
    for rows in torch.arange(total).chunk(pieces):

        def forward(tap, rows=rows):
            outputs = model(x[rows], tasks, tap)
            shares = {t: scales[t] * (outputs[t] - targets[t][rows]).square().mean(1).sum() / total for t in tasks}
            extra = sum(p.square().sum() for p in model.parameters()) / pieces if penalty else None
            return Losses(shares, extra)

        made.append(MicroBatch(tuple(tasks), forward))
    return made


def plain(features):
    return dict.fromkeys(TASKS, features)


def explicit_rows(model, micro, parameters, tasks=TASKS):
    rows = [torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64) for _ in tasks]
    for batch in micro:
        losses = batch.forward(plain).tasks
        for k, task in enumerate(tasks):
            if task in losses:
                grads = torch.autograd.grad(
                    losses[task], parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                rows[k] += torch.cat([g.reshape(-1) for g in grads])
    return torch.stack(rows)


def flat_grad(parameters):
    return torch.cat([p.grad.reshape(-1) for p in parameters])


def weights_of(report, tasks=TASKS):
    return torch.stack([report.weights[t] for t in tasks])


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("kind", ["mlp", "convnet", "transformer"])
def test_parameters_equal_the_explicit_jacobian(kind, pieces):
    model, x, targets = toy(kind)
    micro = micro_batches(model, x, targets, pieces)
    shared = model.shared_parameters()
    jacobian = explicit_rows(model, micro, shared)
    expected = build("upgrad", tasks=TASKS).weigh(jacobian @ jacobian.T, None, TASKS)
    report = engine(build("upgrad", tasks=TASKS), model).backward(micro)
    torch.testing.assert_close(weights_of(report), expected, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(flat_grad(shared), expected @ jacobian, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(report.gramian, jacobian @ jacobian.T)


@pytest.mark.parametrize("kind", ["mlp", "convnet", "transformer"])
def test_the_node_weighs_rows_of_the_features(kind):
    model, x, targets = toy(kind)
    micro = micro_batches(model, x, targets)
    z = model.trunk(x)
    losses = micro_batches(model, x, targets)[0].forward(lambda f: plain({"z": z})).tasks
    rows = torch.stack([torch.autograd.grad(losses[t], z, retain_graph=True)[0].reshape(-1) for t in TASKS])
    expected = build("mgda", tasks=TASKS).weigh(rows @ rows.T, None, TASKS)
    direction = torch.autograd.grad(z, model.shared_parameters(), (expected @ rows).view_as(z))
    report = engine(build("mgda", tasks=TASKS), model, at="features").backward(micro)
    torch.testing.assert_close(weights_of(report), expected)
    for parameter, wanted in zip(model.shared_parameters(), direction, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_heads_keep_their_own_gradient_and_the_penalty_stays_outside(at, pieces):
    model, x, targets = toy()
    micro = micro_batches(model, x, targets, pieces)
    heads = {t: explicit_rows(model, micro, model.task_parameters(t)).sum(0) for t in TASKS}
    engine(build("mgda", tasks=TASKS), model, at=at).backward(micro)
    shared = flat_grad(model.shared_parameters())
    for task in TASKS:
        torch.testing.assert_close(flat_grad(model.task_parameters(task)), heads[task])
    model.zero_grad()
    engine(build("mgda", tasks=TASKS), model, at=at).backward(micro_batches(model, x, targets, pieces, penalty=True))
    weights = torch.cat([p.detach().reshape(-1) for p in model.shared_parameters()])
    torch.testing.assert_close(flat_grad(model.shared_parameters()), shared + 2 * weights)


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
def test_micro_batches_are_one_large_batch(at):
    model, x, targets = toy()
    engine(build("cagrad", tasks=TASKS), model, at=at).backward(micro_batches(model, x, targets))
    large = flat_grad(model.parameters())
    model.zero_grad()
    engine(build("cagrad", tasks=TASKS), model, at=at).backward(micro_batches(model, x, targets, 4))
    torch.testing.assert_close(flat_grad(model.parameters()), large, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_jacobian_in_parts_gives_the_same_update(pieces):
    model, x, targets = toy()
    micro = micro_batches(model, x, targets, pieces)
    engine(build("mgda", tasks=TASKS), model).backward(micro)
    whole = flat_grad(model.parameters())
    model.zero_grad()
    streamed = engine(build("mgda", tasks=TASKS), model, memory_budget=1000)
    assert "in 4 parts" in streamed.describe()
    streamed.backward(micro)
    torch.testing.assert_close(flat_grad(model.parameters()), whole)


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
def test_an_absent_task_leaves_the_solve_and_its_head_alone(at):
    model, x, targets = toy()
    micro = micro_batches(model, x, targets, tasks=("a", "c"))
    report = engine(build("mgda", tasks=TASKS), model, at=at).backward(micro)
    assert tuple(report.weights) == tuple(report.losses) == ("a", "c")
    assert report.gramian.shape == (2, 2)
    assert all(p.grad is None for p in model.task_parameters("b"))
    two, _, _ = toy(tasks=("a", "c"))
    two.load_state_dict({k: v for k, v in model.state_dict().items() if "heads.b" not in k})
    engine(build("mgda", tasks=("a", "c")), two, at=at).backward(micro_batches(two, x, targets, tasks=("a", "c")))
    torch.testing.assert_close(flat_grad(model.shared_parameters()), flat_grad(two.shared_parameters()))


def test_equal_weights_are_the_plain_sum():
    model, x, targets = toy()
    micro = micro_batches(model, x, targets, penalty=True)
    losses = micro[0].forward(plain)
    (sum(losses.tasks.values()) + losses.penalty).backward()
    expected = flat_grad(model.parameters())
    model.zero_grad()
    report = engine(build("equal", tasks=TASKS), model).backward(micro)
    torch.testing.assert_close(flat_grad(model.parameters()), expected, rtol=1e-12, atol=0)
    for task in TASKS:
        torch.testing.assert_close(report.losses[task], losses.tasks[task].detach())


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
def test_sum_of_gradients_is_the_plain_sum_everywhere(at):
    model, x, targets = toy("convnet")
    micro = micro_batches(model, x, targets)
    sum(micro[0].forward(plain).tasks.values()).backward()
    expected = flat_grad(model.parameters())
    model.zero_grad()
    engine(build("sum", tasks=TASKS), model, at=at).backward(micro)
    torch.testing.assert_close(flat_grad(model.parameters()), expected)


def one_task_batches(model, x, targets, pieces=1, penalty=False):
    """Separate data sets: each task has rows of its own, and micro-batches of its own."""
    parts = dict(zip(TASKS, torch.arange(len(x)).chunk(3), strict=True))
    made = []
    for k, task in enumerate(TASKS):
        total = len(parts[task])
        for rows in parts[task].chunk(pieces):

            def forward(tap, task=task, rows=rows, scale=1.0 + k, total=total):
                outputs = model(x[rows], (task,), tap)
                share = scale * (outputs[task] - targets[task][rows]).square().mean(1).sum() / total
                extra = sum(p.square().sum() for p in model.parameters()) / (3 * pieces) if penalty else None
                return Losses({task: share}, extra)

            made.append(MicroBatch((task,), forward))
    return made


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("penalty", [False, True])
def test_separate_data_sets_at_the_parameters(pieces, penalty):
    model, x, targets = toy()
    shared = model.shared_parameters()
    jacobian = explicit_rows(model, one_task_batches(model, x, targets), shared)
    weights = build("cagrad", tasks=TASKS).weigh(jacobian @ jacobian.T, None, TASKS)
    report = engine(build("cagrad", tasks=TASKS), model).backward(one_task_batches(model, x, targets, pieces, penalty))
    outside = torch.cat([2 * p.detach().reshape(-1) for p in shared]) if penalty else 0.0
    torch.testing.assert_close(weights_of(report), weights, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(flat_grad(shared), weights @ jacobian + outside, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("penalty", [False, True])
def test_separate_data_sets_at_the_features_are_streamed(pieces, penalty):
    model, x, targets = toy()
    shared, calls = model.shared_parameters(), []
    # The explicit rows at the features of all data sets together: a block of columns for each data set.
    blocks = []
    for k, batch in enumerate(one_task_batches(model, x, targets)):
        kept = []
        loss = batch.forward(lambda f, kept=kept: kept.append(f["z"]) or plain(f)).tasks[TASKS[k]]
        block = torch.zeros(3, kept[0].numel(), dtype=torch.float64)
        block[k] = torch.autograd.grad(loss, kept[0])[0].reshape(-1)
        blocks.append(block)
    rows = torch.cat(blocks, 1)
    weights = build("nash_mtl", tasks=TASKS).weigh(rows @ rows.T, None, TASKS)
    jacobian = explicit_rows(model, one_task_batches(model, x, targets), shared)
    heads = {t: explicit_rows(model, one_task_batches(model, x, targets), model.task_parameters(t)) for t in TASKS}
    model.trunk.register_forward_hook(lambda *_: calls.append(1))
    streamed = engine(build("nash_mtl", tasks=TASKS), model, at="features")
    report = streamed.backward(one_task_batches(model, x, targets, pieces, penalty))
    assert len(calls) == 3 * pieces  # one forward a micro-batch
    torch.testing.assert_close(weights_of(report), weights)
    factor = 2.0 if penalty else 0.0
    outside = torch.cat([factor * p.detach().reshape(-1) for p in shared])
    torch.testing.assert_close(flat_grad(shared), weights @ jacobian + outside)
    for k, task in enumerate(TASKS):
        own = model.task_parameters(task)
        outside = torch.cat([factor * p.detach().reshape(-1) for p in own])
        torch.testing.assert_close(flat_grad(own), heads[task][k] + outside)


def test_streaming_at_the_features_equals_two_passes():
    model, x, targets = toy("transformer")
    engine(build("mgda", tasks=TASKS), model, at="features").backward(one_task_batches(model, x, targets, 2))
    streamed = flat_grad(model.parameters())
    model.zero_grad()
    two = engine(build("mgda", tasks=TASKS), model, at="features", memory_budget=0)
    two.backward(one_task_batches(model, x, targets, 2))
    torch.testing.assert_close(flat_grad(model.parameters()), streamed)


def test_a_streamed_loss_that_no_feature_reaches_is_named():
    model, x, targets = toy()
    micro = one_task_batches(model, x, targets)

    def astray(tap):
        tap({"z": model.trunk(x)})
        return Losses({"b": model.heads["b"].bias.sum()})

    micro[1] = MicroBatch(("b",), astray)
    with pytest.raises(BalancerError, match=r"features 'z' do not lead to the loss of 'b'"):
        engine(build("mgda", tasks=TASKS), model, at="features").backward(micro)


@pytest.mark.parametrize("columns", [5, 4096, 4099, 100_001])
def test_products_of_many_columns_in_pieces_leave_none_out(columns):
    rows = torch.randn(3, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(columns))
    torch.testing.assert_close(products(rows), rows @ rows.T)
