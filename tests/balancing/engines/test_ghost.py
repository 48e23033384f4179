"""Products from the outputs' gradients alone: the same update as from the whole Jacobian."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from polytask.balancing import Losses, MicroBatch, build, engine
from polytask.balancing.engines.ghost import half_products, parts_of

TASKS = ("a", "b", "c", "d", "e")
WORDS = "of linear layers from the gradients of their outputs"


@pytest.fixture(autouse=True)
def _small_layers_count(monkeypatch):
    monkeypatch.setattr("polytask.balancing.engines.parameters.FEWEST_WEIGHTS", 1)


class Model(nn.Module):
    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(12, 1) for task in TASKS})

    def shared_parameters(self):
        return list(self.trunk.parameters())

    def task_parameters(self, task):
        return list(self.heads[task].parameters())


def plain_trunk():
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 12, bias=False), nn.Tanh())


def frozen_bias_trunk():
    trunk = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 12))
    trunk[0].bias.requires_grad_(False)
    return trunk


class Tied(nn.Module):
    """The same weight at two places, one of them hidden."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 12)

    def forward(self, x):
        return self.two(torch.tanh(nn.functional.linear(torch.tanh(self.one(x)), self.one.weight)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 12)

    def forward(self, x):
        return self.two(torch.tanh(self.one(torch.tanh(self.one(x)))))


class Idle(nn.Module):
    """A layer that gets no row, as an expert that nothing was sent to."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 12), nn.Linear(16, 12)

    def forward(self, x):
        return torch.cat([self.one(x), self.two(x[:0])])


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 12)

    def forward(self, x):
        return self.two(torch.tanh(self.one(input=x)))


def in_place_trunk():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(inplace=True), nn.Linear(32, 12))


def hooked_trunk():
    trunk = plain_trunk()
    trunk[0].register_forward_hook(lambda module, given, made: 2 * made)
    return trunk


def mixed_trunk():
    """Linear layers between others, the second without a bias."""
    layers = [nn.Linear(16, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32)]
    return nn.Sequential(*layers, nn.Linear(32, 12))


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv1d(1, 4, 3), nn.Linear(56, 12)

    def forward(self, x):
        return self.linear(torch.tanh(self.conv(x[:, None])).flatten(1))


def setting(make, shape=(6, 16), tasks=TASKS, penalty=False, scale=1.0, model=None):
    torch.manual_seed(0)
    made = Model(make()).double()
    model = made if model is None else model
    x, y = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], len(TASKS), dtype=torch.float64)

    def forward(tap):
        z = tap({"z": model.trunk(x)})
        outs = {t: model.heads[t](z[t]["z"]).reshape(shape[0], -1).mean(1) for t in tasks}
        losses = {t: scale * (k + 1) * (out - y[:, k]).square().mean() for k, (t, out) in enumerate(outs.items())}
        return Losses(losses, sum(p.square().sum() for p in model.parameters()) if penalty else None)

    return model, MicroBatch(tuple(tasks), forward)


def explicit(model, batch):
    """The update of CAGrad from rows that autograd takes one by one."""
    shared = [p for p in model.shared_parameters() if p.requires_grad]
    losses = batch.forward(lambda f: dict.fromkeys(batch.tasks, f))
    rows = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(losses.tasks[t], shared, retain_graph=True)])
            for t in batch.tasks
        ]
    )
    weights = build("cagrad", tasks=batch.tasks).weigh(rows @ rows.T, None, batch.tasks)
    outside = [torch.zeros_like(p) if losses.penalty is None else 2 * p.detach() for p in shared]
    return weights @ rows + torch.cat([p.reshape(-1) for p in outside]), rows @ rows.T


def check(model, batch, used):
    update, gramian = explicit(model, batch)
    runner = engine(build("cagrad", tasks=TASKS), model)
    found = spied(runner)
    for _ in range(2):
        model.zero_grad()
        report = runner.backward([batch])
        taken = torch.cat([p.grad.reshape(-1) for p in model.shared_parameters() if p.requires_grad])
        torch.testing.assert_close(report.gramian, gramian, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(taken, update, rtol=1e-7, atol=1e-9)
    assert found == [used, used]
    return runner


def spied(runner):
    """A list that gets the number of layers that each step takes from their outputs."""
    found, inner = [], runner.output_rows

    def output_rows(layers, tasks):
        found.append(len(layers))
        return inner(layers, tasks)

    runner.output_rows = output_rows
    return found


@pytest.mark.parametrize("make", [plain_trunk, frozen_bias_trunk])
@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("shape", [(6, 16), (3, 2, 16)])
def test_the_same_update_as_from_explicit_rows(make, penalty, shape):
    model, batch = setting(make, shape, penalty=penalty)
    assert WORDS in check(model, batch, used=2).describe()


def test_an_absent_task_and_the_heads():
    model, batch = setting(plain_trunk, tasks=("a", "c", "d", "e"))
    check(model, batch, used=2)
    losses = batch.forward(lambda f: dict.fromkeys(TASKS, f)).tasks
    for task in batch.tasks:
        own = model.task_parameters(task)
        for p, g in zip(own, torch.autograd.grad(losses[task], own, retain_graph=True), strict=True):
            torch.testing.assert_close(p.grad, g)
    assert all(p.grad is None for p in model.task_parameters("b"))


def last_layer(model):
    return [p for p in model.trunk[2].parameters() if p.requires_grad]


@pytest.mark.parametrize(("rows", "used"), [(6, True), (18, True), (25, False)])
@pytest.mark.parametrize("make", [plain_trunk, frozen_bias_trunk])
def test_the_last_layer_alone(make, rows, used):
    model, batch = setting(make, (rows, 16), penalty=True)
    losses = batch.forward(lambda f: dict.fromkeys(TASKS, f))
    taken = [torch.autograd.grad(losses.tasks[t], last_layer(model), retain_graph=True) for t in TASKS]
    own = torch.stack([torch.cat([g.reshape(-1) for g in grads]) for grads in taken])
    weights = build("cagrad", tasks=TASKS).weigh(own @ own.T, None, TASKS)
    shared = [p for p in model.shared_parameters() if p.requires_grad]
    total = sum(w * losses.tasks[t] for w, t in zip(weights, TASKS, strict=True)) + losses.penalty
    expected = torch.autograd.grad(total, shared, retain_graph=True)
    runner = engine(build("cagrad", tasks=TASKS), model, at="last")
    taken = spied(runner)
    report = runner.backward([batch])
    assert taken == [1] * used
    torch.testing.assert_close(report.gramian, own @ own.T, rtol=1e-9, atol=1e-12)
    for parameter, gradient in zip(shared, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-9)
    for task in TASKS:
        mine = model.task_parameters(task)
        plain = torch.autograd.grad(losses.tasks[task] + losses.penalty, mine, retain_graph=True)
        for parameter, gradient in zip(mine, plain, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


class Skipping(nn.Module):
    """Tasks see more than the last layer."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 32)

    def forward(self, x):
        hidden = torch.tanh(self.one(x))
        return (self.two(hidden) + hidden)[:, :12]


def test_what_leads_past_the_last_layer_is_seen():
    model, batch = setting(Skipping, penalty=True)
    shared, last = model.shared_parameters(), list(model.trunk.two.parameters())
    losses = batch.forward(lambda f: dict.fromkeys(batch.tasks, f))
    rows = [torch.autograd.grad(losses.tasks[t], last, retain_graph=True) for t in TASKS]
    own = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    weights = build("cagrad", tasks=TASKS).weigh(own @ own.T, None, TASKS)
    total = sum(w * losses.tasks[t] for w, t in zip(weights, TASKS, strict=True)) + losses.penalty
    runner = engine(build("cagrad", tasks=TASKS), model, at="last")
    taken = spied(runner)
    runner.backward([batch])
    assert taken == [1]
    for parameter, gradient in zip(shared, torch.autograd.grad(total, shared), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-9)


class TiedLast(nn.Module):
    """The last layer's weight is used before, where no module shows it."""

    def __init__(self):
        super().__init__()
        self.two = nn.Linear(16, 16)

    def forward(self, x):
        return self.two(torch.tanh(nn.functional.linear(x, self.two.weight)))[:, :12]


def test_a_hook_on_the_last_outputs_runs_once():
    model, batch = setting(plain_trunk)
    inner = model.trunk.forward

    def hooked(x):
        made = model.trunk[2](model.trunk[:2](x))
        made.register_hook(lambda gradient: 3 * gradient)
        return torch.tanh(made)

    found = []
    for forward in (inner, hooked):
        model.trunk.forward = forward
        model.zero_grad()
        engine(build("cagrad", tasks=TASKS), model, at="last").backward([batch])
        found.append(torch.cat([p.grad.reshape(-1) for p in model.shared_parameters()]))
    torch.testing.assert_close(3 * found[0], found[1])


def test_a_tied_last_layer_is_not_taken_from_its_outputs():
    model, batch = setting(TiedLast)
    _, gramian = explicit(model, batch)
    report = engine(build("cagrad", tasks=TASKS), model, at="last").backward([batch])
    torch.testing.assert_close(report.gramian, gramian)


@pytest.mark.parametrize("make", [Tied, Twice, Idle, ByName, in_place_trunk, hooked_trunk])
def test_a_layer_that_is_not_plain_has_columns_in_the_jacobian(make):
    check(*setting(make), used=1)


@pytest.mark.parametrize("make", [mixed_trunk, Convolved])
@pytest.mark.parametrize("penalty", [False, True])
def test_other_layers_have_columns_beside_the_outputs(make, penalty):
    used = 3 if make is mixed_trunk else 1
    assert WORDS in check(*setting(make, penalty=penalty), used=used).describe()


def test_layers_come_and_go_with_the_rows_and_the_tasks():
    model, _ = setting(mixed_trunk)
    runner = engine(build("cagrad", tasks=TASKS), model)
    found = spied(runner)
    for rows, tasks in ((6, TASKS), (16, TASKS), (40, TASKS), (6, TASKS[:1]), (6, TASKS[1:]), (6, TASKS)):
        other, batch = setting(mixed_trunk, (rows, 16), tasks)
        update, gramian = explicit(other, batch)
        model.load_state_dict(other.state_dict())
        model.zero_grad()
        report = runner.backward([setting(mixed_trunk, (rows, 16), tasks, model=model)[1]])
        torch.testing.assert_close(report.gramian, gramian, rtol=1e-9, atol=1e-12)
        taken = torch.cat([p.grad.reshape(-1) for p in model.shared_parameters()])
        torch.testing.assert_close(taken, update, rtol=1e-7, atol=1e-9)
    assert found == [3, 2, 0, 0, 3, 3]


def test_what_is_frozen_for_a_step_is_left_out_of_it():
    model, batch = setting(mixed_trunk)
    runner = engine(build("cagrad", tasks=TASKS), model)
    found = spied(runner)
    for fixed in ([], [model.trunk[3].weight], [model.trunk[0].bias, model.trunk[5].weight], []):
        for parameter in model.parameters():
            parameter.requires_grad_(not any(parameter is one for one in fixed))
        model.zero_grad()
        report = runner.backward([batch])
        update, gramian = explicit(model, batch)
        torch.testing.assert_close(report.gramian, gramian, rtol=1e-9, atol=1e-12)
        taken = torch.cat([p.grad.reshape(-1) for p in model.shared_parameters() if p.requires_grad])
        torch.testing.assert_close(taken, update, rtol=1e-7, atol=1e-9)
        assert all(parameter.grad is None for parameter in fixed)
    assert found == [3, 2, 2, 3]


def test_a_step_leaves_nothing_of_its_graph_behind():
    model, batch = setting(plain_trunk)
    kept = []
    model.trunk[1].register_forward_hook(lambda module, given, made: kept.append(weakref.ref(made)))
    for place in ("parameters", "last"):
        runner = engine(build("cagrad", tasks=TASKS), model, at=place)
        found = spied(runner)
        runner.backward([batch])
        assert found[0] > 0
        assert kept.pop()() is None


def test_the_rule_about_sizes_and_kinds():
    check(*setting(plain_trunk, (11, 16)), used=2)
    check(*setting(plain_trunk, (16, 16)), used=1)  # the first layer would save nothing
    check(*setting(plain_trunk, (17, 16)), used=0)
    check(*setting(plain_trunk, (6, 16), TASKS[:2]), used=2)
    check(*setting(plain_trunk, (11, 16), TASKS[:2]), used=0)  # with fewer tasks there is less to save
    model, batch = setting(plain_trunk)
    single = engine(build("cagrad", tasks=TASKS), model, reduce=torch.clone)
    assert WORDS not in single.describe()
    runner = engine(build("cagrad", tasks=TASKS), model)
    found = spied(runner)
    runner.backward([batch, batch])  # gradients add up over micro-batches, products do not
    assert found == [0]


@pytest.mark.parametrize("rows", [1, 63, 64, 130, 259, 700])
@pytest.mark.parametrize("bias", [False, True])
def test_products_over_parts_of_the_rows(rows, bias):
    assert {parts_of(count) for count in (1, 63, 64, 130, 259, 700)} == {1, 2, 4}
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(rows, 9, generator=generator, dtype=torch.float64)
    grads = torch.randn(3, rows, 5, generator=generator, dtype=torch.float64)
    ones = torch.cat([given, torch.ones(rows, 1, dtype=torch.float64)], 1)
    formed = torch.einsum("kro,ri->koi", grads, ones if bias else given).flatten(1)
    half = half_products(given, grads, bias)
    torch.testing.assert_close(half + half.T, formed @ formed.T, rtol=1e-12, atol=1e-9)


def both_ways(model, batch, **options):
    """Gradients and Gramian with and without the layers' outputs."""
    found = []
    for short in (True, False):
        runner = engine(build("upgrad", tasks=TASKS), model, **options)
        runner._linear = runner._linear if short else []
        taken = spied(runner)
        model.zero_grad()
        report = runner.backward([batch])
        assert (sum(taken) > 0) == short
        found.append((report.gramian, torch.cat([p.grad.reshape(-1) for p in model.parameters()])))
    return found


def wide(rows=192):
    """A float32 model whose layers are large enough for several parts of the rows."""
    torch.manual_seed(0)
    layers = [nn.Linear(200, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 256, bias=False), nn.ReLU()]
    model, x, y = Model(nn.Sequential(*layers, nn.Linear(256, 200))), torch.randn(rows, 200), torch.randn(rows, 5)

    def forward(tap, run=model.trunk):
        z = tap({"z": run(x)[:, :12]})
        outs = {t: model.heads[t](z[t]["z"])[:, 0] for t in TASKS}
        return Losses({t: (k + 1) * (out.float() - y[:, k]).square().mean() for k, (t, out) in enumerate(outs.items())})

    return model, forward


@pytest.mark.parametrize("at", ["parameters", "last"])
def test_single_precision_within_its_rounding(at):
    model, forward = wide()
    short, whole = both_ways(model, MicroBatch(TASKS, forward), at=at)
    torch.testing.assert_close(short[0], whole[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(short[1], whole[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", ["parameters", "last"])
def test_half_precision_of_the_model_within_its_rounding(at):
    model, forward = wide()

    def cast(tap):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(tap)

    short, whole = both_ways(model, MicroBatch(TASKS, cast), at=at)
    scale = whole[0].diagonal().max()
    torch.testing.assert_close(short[0] / scale, whole[0] / scale, rtol=2e-2, atol=2e-2)
    assert torch.nn.functional.cosine_similarity(short[1], whole[1], dim=0) > 0.999


@pytest.mark.parametrize("at", ["parameters", "last"])
def test_activation_checkpointing_changes_nothing(at):
    model, forward = wide()
    again = lambda tap: forward(tap, lambda x: checkpoint(model.trunk, x, use_reentrant=False))  # noqa: E731
    _, whole = both_ways(model, MicroBatch(TASKS, forward), at=at)
    short, _ = both_ways(model, MicroBatch(TASKS, again), at=at)
    torch.testing.assert_close(short[1], whole[1], rtol=1e-4, atol=1e-5)


def test_compiled_models_are_left_alone():
    model, batch = setting(plain_trunk)
    model.trunk.forward = torch.compile(model.trunk.forward, backend="aot_eager")
    with torch._functorch.config.patch(donated_buffer=False):
        check(model, batch, used=0)
    model, _ = setting(plain_trunk)
    model.trunk.compile(backend="aot_eager")
    assert WORDS not in engine(build("cagrad", tasks=TASKS), model).describe()


def test_tiny_gradients_in_float32_keep_their_digits():
    model, batch = setting(plain_trunk)
    _, exact = explicit(model, batch)
    small, scaled = setting(plain_trunk, scale=1e-16)
    report = engine(build("mgda", tasks=TASKS), small).backward([scaled])
    torch.testing.assert_close(report.gramian * 1e32, exact)
    single, _ = setting(plain_trunk)
    single.float()
    torch.manual_seed(0)

    def cast(tap):
        losses = batch_of_floats(single).forward(tap).tasks
        return Losses({t: loss * 1e-16 for t, loss in losses.items()})

    low = engine(build("mgda", tasks=TASKS), single).backward([MicroBatch(TASKS, cast)]).gramian
    high = engine(build("mgda", tasks=TASKS), single).backward([batch_of_floats(single)]).gramian
    torch.testing.assert_close(low * 1e32, high, rtol=1e-4, atol=1e-6)


def batch_of_floats(model):
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(3))

    def forward(tap):
        z = tap({"z": model.trunk(x)})
        return Losses({t: (model.heads[t](z[t]["z"]) - k).square().mean() for k, t in enumerate(TASKS)})

    return MicroBatch(TASKS, forward)
