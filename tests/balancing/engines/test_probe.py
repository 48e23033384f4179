"""The probe at the features: right products, and no trace of having looked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polytask.balancing import Losses, MicroBatch, build, engine

TASKS = ("a", "b", "c")


class Model(nn.Module):
    def __init__(self, trunk, head=lambda: nn.Linear(4, 1)):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: head() for task in TASKS})

    def shared_parameters(self):
        return list(self.trunk.parameters())

    def task_parameters(self, task):
        return list(self.heads[task].parameters())


def model_of(*layers, head=lambda: nn.Linear(4, 1)):
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), *layers, nn.Linear(8, 4)), head)


def micro_batch(model, tasks=TASKS, tapped=True, rows=8):
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))

    def forward(tap):
        z = model.trunk(x)
        features = tap({"z": z}) if tapped else {task: {"z": z} for task in tasks}
        outputs = {t: model.heads[t](features[t]["z"]).squeeze(1) for t in tasks}
        return Losses({t: (o - k).square().mean() for k, (t, o) in enumerate(outputs.items())}, z.square().mean())

    return MicroBatch(tuple(tasks), forward)


def explicit(model, tasks=TASKS):
    kept = []

    def tap(features):
        kept.append(features["z"])
        return dict.fromkeys(tasks, features)

    losses = micro_batch(model, tasks).forward(tap).tasks
    rows = [torch.autograd.grad(losses[t], kept[0], retain_graph=True)[0].reshape(-1).double() for t in tasks]
    return torch.stack(rows) @ torch.stack(rows).T


@pytest.mark.parametrize("name", ["equal", "uncertainty", "famo", "graddrop"])
def test_products_of_the_gradients_of_the_features(name):
    model = model_of()
    tasks, found = engine(build(name, tasks=TASKS), model).probe([micro_batch(model)])
    assert tasks == TASKS
    torch.testing.assert_close(found, explicit(model))


def test_the_first_micro_batch_with_a_pair_is_looked_at_in_the_methods_order():
    model = model_of()
    micro = [micro_batch(model, ("b",)), micro_batch(model, ("c", "a")), micro_batch(model)]
    tasks, found = engine(build("equal", tasks=TASKS), model).probe(micro)
    assert tasks == ("a", "c")
    torch.testing.assert_close(found, explicit(model, ("c", "a")).flip(0, 1))
    assert engine(build("equal", tasks=TASKS), model).probe(micro[:1]) is None


def test_no_trace():
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    head = lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))  # noqa: E731
    model = model_of(nn.BatchNorm1d(8), nn.Dropout(0.5), spectral, head=head)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    random, buffers = torch.get_rng_state(), {k: (b, b.clone()) for k, b in model.named_buffers()}
    weights = [p.detach().clone() for p in model.parameters()]
    assert engine(build("equal", tasks=TASKS), model).probe([micro_batch(model)]) is not None
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1]), name
    for p, weight in zip(model.parameters(), weights, strict=True):
        assert torch.equal(p.detach(), weight)
        assert bool((p.grad == 0.25).all())


def test_a_head_may_begin_with_an_operation_in_place():
    model = model_of()
    model.heads["a"] = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 1))
    losses = micro_batch(model).forward(lambda features: dict.fromkeys(TASKS, features)).tasks
    sum(losses.values()).backward()  # ordinary training allows it
    _, found = engine(build("equal", tasks=TASKS), model).probe([micro_batch(model)])
    assert found.diagonal().gt(0).all()


def test_a_loss_that_no_feature_reaches_has_a_row_of_zeros():
    model = model_of()

    def forward(tap):
        losses = micro_batch(model).forward(tap).tasks
        return Losses({**losses, "b": model.heads["b"].bias.sum()})

    _, found = engine(build("equal", tasks=TASKS), model).probe([MicroBatch(TASKS, forward)])
    assert float(found[1].abs().sum()) == 0
    assert float(found[0, 0]) > 0


def test_nothing_where_there_is_nothing_to_see():
    model = model_of()
    micro = [micro_batch(model)]
    assert engine(build("mgda", tasks=TASKS), model).probe(micro) is None  # the step forms its own
    assert engine(build("equal", tasks=TASKS), model, features_ok=False).probe(micro) is None
    assert engine(build("equal", tasks=TASKS), model).probe([micro_batch(model, tapped=False)]) is None


def test_processes_add_their_products_and_agree_on_a_budget():
    model = model_of()
    calls = []

    def both(tensor):
        calls.append(tensor.shape)
        return 2 * tensor

    _, found = engine(build("equal", tasks=TASKS), model, reduce=both).probe([micro_batch(model)])
    torch.testing.assert_close(found, 2 * explicit(model))
    # 3 tasks, 8 rows, 4 features of 4 bytes are 384 bytes; the call over processes is made all the same.
    small = engine(build("equal", tasks=TASKS), model, reduce=both, memory_budget=383)
    assert small.probe([micro_batch(model)]) is None
    assert engine(build("equal", tasks=TASKS), model, memory_budget=384).probe([micro_batch(model)]) is not None
    assert calls == [torch.Size([10])] * 2


@pytest.mark.parametrize("power", [-18, 15])
def test_gradients_that_float32_squares_cannot_hold(power):
    model = model_of()
    plain = micro_batch(model)

    def forward(tap):
        return Losses({task: loss * 10.0**power for task, loss in plain.forward(tap).tasks.items()})

    runner = engine(build("equal", tasks=TASKS), model)
    _, found = runner.probe([MicroBatch(TASKS, forward)])
    torch.testing.assert_close(found / 100.0**power, explicit(model), rtol=1e-5, atol=1e-9)
