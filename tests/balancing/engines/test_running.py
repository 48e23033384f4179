"""How engines run: second looks, reuse of weights, own optimizers, state, precision, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from polytask.balancing import GramianWeighting, JacobianAggregator, Losses, LossWeighting, MicroBatch, build, engine
from polytask.errors import BalancerError

TASKS = ("a", "b")


class Model(nn.Module):
    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})

    def shared_parameters(self):
        return list(self.trunk.parameters())

    def task_parameters(self, task):
        return list(self.heads[task].parameters())


def noisy_model():
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)))


def smooth_model():
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)))


def micro_batches(model, pieces=1, scale=1.0, tasks=TASKS, seen=None):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    made = []
    for rows in torch.arange(8).chunk(pieces):

        def forward(tap, rows=rows):
            features = tap({"z": model.trunk(x[rows])})
            outputs = {t: model.heads[t](features[t]["z"]).squeeze(1) for t in tasks}
            if seen is not None:
                seen.append({t: o.detach().clone() for t, o in outputs.items()})
            return Losses({t: scale * (o - k).square().sum() / 8 for k, (t, o) in enumerate(outputs.items())})

        made.append(MicroBatch(tuple(tasks), forward))
    return made


class Looker(LossWeighting):
    """Keeps what it saw."""

    looks_again = True

    def weigh(self, losses, tasks):
        self.first = losses.clone()
        return torch.ones_like(losses)

    def after_step(self, relook):
        self.second = torch.stack(list(relook().values()))


class Counter(GramianWeighting):
    """Counts its solves and returns the weights 1, 2."""

    def build_state(self, count):
        self.register_buffer("solves", torch.zeros(()))

    def weigh(self, gramian, losses, tasks):
        self.solves += 1
        return torch.arange(1.0, len(tasks) + 1, dtype=torch.float64)


class Positive(JacobianAggregator):
    """The sum of the positive parts."""

    def aggregate(self, jacobian, losses, tasks):
        return jacobian.clamp_min(0).sum(0)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_second_look_sees_the_same_masks_and_leaves_no_trace(pieces):
    model, method = noisy_model(), build(Looker(), tasks=TASKS)
    runner = engine(method, model)
    micro = micro_batches(model, pieces)
    runner.backward(micro)
    random, buffers = torch.get_rng_state(), {k: b.clone() for k, b in model.named_buffers()}
    runner.after_step(micro)
    torch.testing.assert_close(method.second, method.first)  # nothing was stepped in between
    assert torch.equal(torch.get_rng_state(), random)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    with torch.no_grad():
        model.heads["a"].bias += 1.0
    runner.backward(micro)
    with torch.no_grad():
        model.heads["a"].bias -= 1.0
    runner.after_step(micro)
    assert method.second[0] != method.first[0]
    assert method.second[1] == method.first[1]


@pytest.mark.parametrize("name", ["famo", "mgda"])
def test_two_passes_draw_the_same_masks_and_move_statistics_once(name):
    at = None if name == "famo" else "features"
    model, seen = noisy_model(), []
    torch.manual_seed(5)
    engine(build(name, tasks=TASKS), model, at=at).backward(micro_batches(model, 2, seen=seen))
    once, plain = noisy_model(), []
    torch.manual_seed(5)
    engine(build("equal", tasks=TASKS), once).backward(micro_batches(once, 2, seen=plain))
    assert len(seen) == 4
    assert len(plain) == 2
    for first, second, expected in zip(seen[:2], seen[2:], plain, strict=True):
        for task in TASKS:
            torch.testing.assert_close(first[task], second[task])
            torch.testing.assert_close(second[task], expected[task])
    for key, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, dict(once.named_buffers())[key])


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
def test_every_reuses_weights_and_skips_the_gramian(at):
    model, method = smooth_model(), build(Counter(), tasks=TASKS)
    runner = engine(method, model, at=at, every=3)
    updates, gramians = [], []
    for _ in range(4):
        model.zero_grad()
        report = runner.backward(micro_batches(model))
        assert report.weights["b"] == 2
        updates.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
        gramians.append(report.gramian is not None)
    assert method.solves == 2
    assert gramians == [True, False, False, True]
    for update in updates[1:]:
        torch.testing.assert_close(update, updates[0])
    runner.backward(micro_batches(model, tasks=("a",)))
    assert method.solves == 3  # other tasks are present: the old weights do not fit


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
@pytest.mark.parametrize(("to", "factor"), [("mean", 0.5), ("sum", 1.0)])
def test_rescaled_updates_have_the_norm_of_the_mean_or_sum(at, to, factor):
    model = smooth_model()
    report = engine(build("nash_mtl", tasks=TASKS), model, at=at, rescale_to=to).backward(micro_batches(model))
    plain = float(report.gramian.sum().sqrt()) * factor
    assert float(report.extras["update_norm"]) == pytest.approx(plain, rel=1e-6)


def test_rescaling_an_aggregator():
    model = smooth_model()
    report = engine(build(Positive(), tasks=TASKS), model, rescale_to="mean").backward(micro_batches(model))
    update = torch.cat([p.grad.reshape(-1) for p in model.shared_parameters()])
    again = smooth_model()
    wanted = engine(build("mean", tasks=TASKS), again).backward(micro_batches(again)).extras["update_norm"]
    torch.testing.assert_close(update.norm().double(), wanted)
    torch.testing.assert_close(report.extras["update_norm"].double(), wanted)


def test_an_aggregator_sees_the_whole_jacobian():
    model = smooth_model()
    losses = micro_batches(model)[0].forward(lambda f: dict.fromkeys(TASKS, f)).tasks
    shared = model.shared_parameters()
    wanted = [sum(torch.autograd.grad(losses[t], p, retain_graph=True)[0].clamp_min(0) for t in TASKS) for p in shared]
    engine(build(Positive(), tasks=TASKS), model).backward(micro_batches(model, 2))
    for p, expected in zip(shared, wanted, strict=True):
        torch.testing.assert_close(p.grad, expected)


def test_micro_solves_every_micro_batch_by_itself():
    model, method = smooth_model(), build(Counter(), tasks=TASKS)
    report = engine(method, model, accumulate="micro").backward(micro_batches(model, 4))
    assert method.solves == 4
    whole = engine(build("equal", tasks=TASKS), smooth_model()).backward(micro_batches(smooth_model()))
    torch.testing.assert_close(report.losses["a"].float(), whole.losses["a"])


def test_learned_weights_follow_their_own_optimizer():
    model, method = smooth_model(), build("uncertainty", tasks=TASKS)
    runner = engine(method, model, optimizer={"name": "sgd", "lr": 0.5})
    before = [p.detach().clone() for p in method.parameters()]
    micro = micro_batches(model)
    report = runner.backward(micro)
    wanted = []
    objective = method.objective(torch.stack(list(report.losses.values())), TASKS)
    for p, gradient in zip(method.parameters(), torch.autograd.grad(objective, list(method.parameters())), strict=True):
        wanted.append(p.detach() - 0.5 * gradient)
    runner.after_step(micro)
    for p, old, new in zip(method.parameters(), before, wanted, strict=True):
        torch.testing.assert_close(p.detach(), new)
        assert not torch.equal(p, old)


@pytest.mark.parametrize("name", ["uncertainty", "famo", "gradnorm", "rlw"])
def test_a_restored_engine_goes_on_in_the_same_way(name):
    def steps(runner, model, count):
        seen = []
        for _ in range(count):
            model.zero_grad()
            micro = micro_batches(model)
            seen.append(torch.stack([w.double() for w in runner.backward(micro).weights.values()]))
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            runner.after_step(micro)
        return torch.stack(seen)

    model = smooth_model()
    runner = engine(build(name, tasks=TASKS), model, every=2)
    steps(runner, model, 3)
    state = copy.deepcopy(runner.state_dict())
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    expected = steps(runner, model, 3)
    other = smooth_model()
    other.load_state_dict(weights)
    restored = engine(build(name, tasks=TASKS, seed=9), other, every=2)
    restored.load_state_dict(state)
    assert torch.equal(steps(restored, other, 3), expected)


def test_weightings_that_ignore_losses_do_not_read_them():
    from polytask import registry

    for name, entry in registry.entries("balancers").items():
        kind = registry.resolve(entry.path)
        if isinstance(kind, type) and issubclass(kind, LossWeighting) and not kind.needs_losses:
            options = {"weights": {"a": 1.0, "b": 2.0}} if name == "static" else {}
            weights = build(name, tasks=TASKS, **options).weigh(torch.full((2,), torch.nan), TASKS)
            assert weights.isfinite().all(), name


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
def test_frozen_parameters_stay_out(at):
    model = smooth_model()
    model.trunk[0].requires_grad_(False)
    model.heads["a"].bias.requires_grad_(False)
    engine(build("mgda", tasks=TASKS), model, at=at).backward(micro_batches(model))
    assert model.trunk[0].weight.grad is None
    assert model.heads["a"].bias.grad is None
    assert model.trunk[2].weight.grad is not None


@pytest.mark.parametrize("budget", [2**30, 200])
def test_parameters_of_some_tasks_only(budget):
    model = smooth_model()
    side = nn.Linear(3, 4)
    unused = nn.Parameter(torch.ones(3))
    model.trunk.side, model.trunk.unused = side, unused
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))

    def forward(tap):
        z = model.trunk[2](model.trunk[1](model.trunk[0](x)))
        return Losses({"a": model.heads["a"](z).square().mean(), "b": model.heads["b"](z + side(x)).square().mean()})

    report = engine(build(Counter(), tasks=TASKS), model, memory_budget=budget).backward([MicroBatch(TASKS, forward)])
    (own,) = torch.autograd.grad(forward(None).tasks["b"], side.weight)
    torch.testing.assert_close(side.weight.grad, 2 * own)
    assert unused.grad is None
    assert report.gramian.shape == (2, 2)


class Owning(Model):
    """Says which parameters belong to a task, trained or not, as the package's own models do."""

    def task_parameters(self, task):
        return [p for p in self.owned_parameters(task) if p.requires_grad]

    def owned_parameters(self, task):
        return list(self.heads[task].parameters())


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
def test_heads_that_are_fixed_for_a_while(at):
    model = Owning(smooth_model().trunk)
    runner = engine(build("mgda", tasks=TASKS), model, at=at)
    for fixed in (True, False, True):
        model.heads["a"].requires_grad_(not fixed)
        model.zero_grad()
        runner.backward(micro_batches(model))
        assert all((p.grad is None) == fixed for p in model.heads["a"].parameters())
        assert all(p.grad is not None for p in model.heads["b"].parameters())


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
def test_activation_checkpointing_changes_nothing(at):
    model, again = smooth_model(), smooth_model()
    engine(build("mgda", tasks=TASKS), model, at=at).backward(micro_batches(model))
    trunk = again.trunk
    trunk.forward = lambda x: checkpoint(lambda v: nn.Sequential(*trunk.children())(v), x, use_reentrant=False)
    engine(build("mgda", tasks=TASKS), again, at=at).backward(micro_batches(again))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_bf16_autocast_is_near_float32(at, pieces):
    model, low = smooth_model(), smooth_model()
    exact = engine(build("mgda", tasks=TASKS), model, at=at).backward(micro_batches(model, pieces))
    plain = micro_batches(low, pieces)

    def cast(batch):
        def forward(tap):
            with torch.autocast("cpu", torch.bfloat16):
                return batch.forward(tap)

        return MicroBatch(batch.tasks, forward)

    report = engine(build("mgda", tasks=TASKS), low, at=at).backward([cast(batch) for batch in plain])
    torch.testing.assert_close(report.gramian, exact.gramian, rtol=0.1, atol=0.02)
    assert all(p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in low.parameters())


@pytest.mark.parametrize("at", ["features", "last", "parameters"])
@pytest.mark.parametrize("power", [-16, 16])
def test_tiny_and_huge_gradients_keep_their_digits(at, power):
    model, scaled = smooth_model(), smooth_model()
    exact = engine(build("mgda", tasks=TASKS), model, at=at).backward(micro_batches(model))
    report = engine(build("mgda", tasks=TASKS), scaled, at=at).backward(micro_batches(scaled, scale=10.0**power))
    for task in TASKS:
        assert float(report.weights[task]) == pytest.approx(float(exact.weights[task]), rel=1e-4)


@pytest.mark.parametrize(
    ("at", "where"),
    [
        ("features", ""),
        ("last", r", first in 'trunk.2.weight' of shape \[4, 8\]"),
        ("parameters", r", first in 'trunk.0.weight' of shape \[8, 3\]"),
    ],
)
@pytest.mark.parametrize("rows", [2, 50])
def test_a_gradient_that_is_not_finite_names_its_task_and_a_parameter(at, where, rows):
    model = smooth_model()

    def forward(tap):
        z = tap({"z": model.trunk(torch.ones(rows, 3))})
        losses = {t: model.heads[t](z[t]["z"]).sum() for t in TASKS}
        return Losses({"a": losses["a"], "b": losses["b"] * float("inf")})

    with pytest.raises(BalancerError, match=rf"gradient of task 'b' is not finite{where}\. Lower the learning rate"):
        engine(build("mgda", tasks=TASKS), model, at=at).backward([MicroBatch(TASKS, forward)])


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("mgda", {"at": "feature"}, "Did you mean 'features'"),
        ("mgda", {"every": 0}, "at least 1"),
        ("mgda", {"rescale_to": "men"}, "Did you mean 'mean'"),
        ("mgda", {"accumulate": "exakt"}, "Did you mean 'exact'"),
        ("mgda", {"optimizer": {"name": "adam"}}, "has no learned weights"),
        ("mgda", {"at": "features", "features_ok": False, "why_not": "it is a test"}, "it is a test. Use at: param"),
        ("equal", {"at": "features"}, "Leave it out"),
        ("equal", {"rescale_to": "mean"}, "use a gradient method"),
        ("uncertainty", {"optimizer": {"name": "adm"}}, "Did you mean 'adam'"),
        ("uncertainty", {"optimizer": {"speed": 1}}, "speed"),
        (Positive, {"every": 2}, "Use every: 1"),
        (Positive, {"at": "last"}, "Use at: parameters"),
        (Positive, {"at": "features", "reduce": torch.clone}, "Use at: parameters"),
    ],
)
def test_combinations_that_cannot_work_are_refused(method, options, words):
    made = method() if isinstance(method, type) else method
    with pytest.raises(BalancerError, match=words):
        engine(build(made, tasks=TASKS), smooth_model(), **options)


def test_other_wrong_use_is_explained():
    model = smooth_model()
    with pytest.raises(BalancerError, match=r"Call balancer\.setup"):
        engine(Counter(), model)
    runner = engine(build("mgda", tasks=TASKS), model)
    with pytest.raises(BalancerError, match="at least one micro-batch"):
        runner.backward([])
    with pytest.raises(BalancerError, match="Unknown task 'c'"):
        runner.backward([MicroBatch(("c",), lambda tap: Losses({}))])
    model.trunk.requires_grad_(False)
    with pytest.raises(BalancerError, match="share none that is trained"):
        engine(build("mgda", tasks=TASKS), model)


def test_a_model_that_never_taps_cannot_be_balanced_at_the_features():
    model = smooth_model()

    def forward(tap):
        z = model.trunk(torch.ones(2, 3))
        return Losses({t: model.heads[t](z).sum() for t in TASKS})

    for pieces in (1, 2):
        with pytest.raises(BalancerError, match="called the tap 0 times"):
            engine(build("mgda", tasks=TASKS), model, at="features").backward([MicroBatch(TASKS, forward)] * pieces)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("at", ["features", "last", "parameters"])
def test_a_compiled_trunk_gives_the_same_update(at):
    model, compiled = smooth_model(), smooth_model()
    engine(build("mgda", tasks=TASKS), model, at=at).backward(micro_batches(model))
    parameters = list(compiled.trunk.parameters())
    trunk = torch.compile(compiled.trunk)
    micro = micro_batches(compiled)
    compiled.trunk = trunk
    with torch._functorch.config.patch(donated_buffer=False):
        engine(build("mgda", tasks=TASKS), compiled, at=at).backward(micro)
    for p, q in zip(model.trunk.parameters(), parameters, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
