"""Mixtures of experts: mmoe, cgc, ple and dselect_k against references written out here."""

import copy
import itertools

import pytest
import torch
from torch import nn

from polytask import registry
from polytask.balancing.engines.choose import engine
from polytask.balancing.making import build as build_balancer
from polytask.balancing.types import Losses, MicroBatch
from polytask.errors import RecipeError, ShapeError
from polytask.models import MultiTaskModel
from polytask.models.encoders import MLP, ConvNet, staged
from polytask.serving.bundle import read_model, read_spec, write_bundle
from polytask.sharing import NeedsExample
from polytask.sharing.cgc import CGC
from polytask.sharing.dselect_k import DSelectK, smooth_step
from polytask.sharing.experts import Experts
from polytask.sharing.mmoe import MMoE
from polytask.sharing.ple import PLE
from polytask.tasks import binary, regression

TASKS = ["a", "b", "c"]


def transformer():
    def layer():
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    class Mean(nn.Module):
        def forward(self, z):
            return z.mean(1)

    return staged(nn.Sequential(layer(), layer(), Mean()), ["0", "1"], after=["2"], example=torch.zeros(2, 5, 8))


ENCODERS = {
    "mlp": (lambda: MLP(6, [5, 4], norm="layer"), (6,)),
    "batch norm": (lambda: MLP(6, [5, 4], norm="batch"), (6,)),
    "convnet": (lambda: ConvNet(2, [3, 4], norm="group"), (2, 8, 8)),
    "convnet, batch norm": (lambda: ConvNet(2, [3, 4]), (2, 8, 8)),
    "transformer": (transformer, (5, 8)),
}
KINDS = {
    "mmoe": {"experts": 3},
    "cgc": {"shared": 2, "per_task": 1},
    "ple": {"shared": 1, "per_task": 2},
    "dselect_k": {"experts": 3, "k": 2},
}


def made(kind, encoder="mlp", tasks=TASKS, **options):
    make, shape = ENCODERS[encoder]
    sharing = registry.build("sharings", kind, {**KINDS[kind], **options}, encoder=make())
    sharing.setup(tasks, torch.randn(2, *shape))
    return sharing, torch.randn(4, *shape)


def expert(bank, number):
    """One expert as a module of its own."""
    alone = copy.deepcopy(bank.template).to_empty(device="cpu")
    alone.load_state_dict({name: stack[number] for name, stack in bank.state().items()}, strict=False)
    return alone


def outs(bank, z):
    return [expert(bank, i)(z) for i in range(bank.count)]


def mix(weights, features):
    return sum(w.view(-1, *[1] * (f.dim() - 1)) * f for w, f in zip(weights.T, features, strict=True))


def softmax_of(gate, z):
    return torch.softmax(z @ gate.linear.weight.T, -1)


def count(parameters):
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        (lambda: MMoE(nn.Linear(8, 4), 3), 108 + 48),
        (lambda: CGC(nn.Linear(8, 4), 1, 1), 108 + 32),
        (lambda: PLE(MLP(8, [4, 4]), 1, 1), 240),
        (lambda: DSelectK(nn.Linear(8, 4), 4, 2), 144 + 108),
    ],
)
def test_parameter_counts_of_the_papers(sharing, expected):
    built = sharing()
    built.setup(["a", "b"], None)
    assert count(built.parameters()) == expected


@pytest.mark.parametrize("encoder", ENCODERS)
def test_batched_experts_are_the_experts_one_by_one(encoder):
    make, shape = ENCODERS[encoder]
    bank = Experts(make(), 3).eval()
    x = torch.randn(4, *shape)
    expected = torch.stack([one.eval()(x) for one in (expert(bank, i) for i in range(3))], 1)
    torch.testing.assert_close(bank(x), expected)
    assert not torch.allclose(expected[:, 0], expected[:, 1])


def test_batch_norm_statistics_move_as_those_of_single_experts():
    bank = Experts(MLP(6, [5], norm="batch").stages[0], 2)
    alone = [expert(bank, i) for i in range(2)]
    x = torch.randn(8, 6)
    torch.testing.assert_close(bank(x), torch.stack([one(x) for one in alone], 1))
    for i, one in enumerate(alone):
        for name, buffer in one.named_buffers():
            torch.testing.assert_close(bank.state()[name][i], buffer)


@pytest.mark.parametrize("encoder", ["mlp", "convnet", "transformer"])
def test_mmoe_values(encoder):
    sharing, x = made("mmoe", encoder)
    level = sharing.levels[0]
    features = sharing(x, ["a", "c"])
    for task in ("a", "c"):
        expected = mix(softmax_of(level.gates[task], x.flatten(1)), outs(level.shared, x))
        torch.testing.assert_close(features[task], expected)


@pytest.mark.parametrize("encoder", ["mlp", "convnet", "transformer"])
def test_cgc_values(encoder):
    sharing, x = made("cgc", encoder)
    level = sharing.levels[0]
    features = sharing(x, ["c", "a"])
    for task in ("a", "c"):
        mine = [*outs(level.shared, x), *outs(level.private[task], x)]
        torch.testing.assert_close(features[task], mix(softmax_of(level.gates[task], x.flatten(1)), mine))


def read(z):
    return z if z.dim() == 2 else z.mean(1) if z.dim() == 3 else z.mean((2, 3))


@pytest.mark.parametrize("encoder", ["mlp", "convnet", "transformer", "three levels"])
def test_ple_values(encoder):
    if encoder == "three levels":
        sharing, x = PLE(MLP(6, [5, 4, 3]), 2, 1), torch.randn(4, 6)
        sharing.setup(TASKS, None)
    else:
        sharing, x = made("ple", encoder)
    states, common = dict.fromkeys(TASKS, x), x
    for level in sharing.levels:
        shared = outs(level.shared, common)
        own = {t: outs(level.private[t], states[t]) for t in TASKS}
        if level is not sharing.levels[-1]:
            everything = [*shared, *itertools.chain.from_iterable(own.values())]
            common = mix(softmax_of(level.shared_gate, read(common)), everything)
        states = {t: mix(softmax_of(level.gates[t], read(states[t])), [*shared, *own[t]]) for t in TASKS}
    for asked in (TASKS, ["c"], ["b", "a"]):
        for task, feature in sharing(x, asked).items():
            torch.testing.assert_close(feature, states[task])


@pytest.mark.parametrize("per_example", [True, False])
@pytest.mark.parametrize("experts", [4, 5])
def test_dselect_k_values_and_penalties(per_example, experts):
    sharing, x = made("dselect_k", experts=experts, k=2, per_example=per_example, gamma=2.0)
    for parameter in sharing.levels[0].gates.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = sharing(x, ["b"])
    gate = sharing.levels[0].gates["b"]
    bits = 2 if experts == 4 else 3
    if per_example:
        z = (x @ gate.selectors.weight.T + gate.selectors.bias).view(4, 2, bits)
        alpha = x @ gate.outputs.weight.T + gate.outputs.bias
    else:
        z, alpha = gate.logits.expand(4, 2, bits), gate.shares.expand(4, 2)
    t = z.clamp(-1, 1)
    s = -2 / 8 * t**3 + 3 / 4 * t + 0.5
    r = torch.stack(
        [
            torch.stack([s[..., j] if i >> j & 1 else 1 - s[..., j] for j in range(bits)]).prod(0)
            for i in range(experts)
        ],
        -1,
    )
    q = (alpha.softmax(-1).unsqueeze(-1) * r).sum(1)
    torch.testing.assert_close(features["b"], mix(q, outs(sharing.levels[0].shared, x)))
    found = sharing.penalties()
    torch.testing.assert_close(found["entropy"], torch.special.entr(r).sum((1, 2)).mean())
    if experts == 5:
        torch.testing.assert_close(found["unassigned"], (1 / r.sum(-1)).sum(1).mean())
    else:
        assert set(found) == {"entropy"}
    found["entropy"].backward()
    assert all(p.grad is None for p in sharing.levels[0].gates["a"].parameters())
    assert torch.isfinite(next(gate.parameters()).grad).all()


def test_smooth_step_settles_and_selects_at_most_k():
    torch.testing.assert_close(smooth_step(torch.tensor([-0.5, 0.0, 0.5, 9.0]), 1.0), torch.tensor([0.0, 0.5, 1, 1]))
    sharing, x = made("dselect_k", experts=4, k=2, per_example=False)
    gate = sharing.levels[0].gates["a"]
    nn.init.constant_(gate.logits, 3.0)
    weights = gate(x)
    assert (weights > 0).sum(1).tolist() == [1, 1, 1, 1]
    weights.square().sum().backward()
    assert torch.equal(gate.logits.grad, torch.zeros_like(gate.logits))


def reached(sharing, x, task):
    """Parameters that a loss of one task reaches."""
    sharing.zero_grad(set_to_none=True)
    sharing(x, TASKS)[task].square().sum().backward()
    return {id(p) for p in sharing.parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize("kind", [*KINDS, "ple of three levels"])
def test_task_parameters_are_those_that_one_task_alone_reaches(kind):
    if kind == "ple of three levels":
        sharing, x = PLE(MLP(6, [5, 4, 3], activation="gelu"), 2, 1), torch.randn(4, 6)
        sharing.setup(TASKS, None)
    else:
        sharing = registry.build("sharings", kind, KINDS[kind], encoder=MLP(6, [5, 4], activation="gelu"))
        sharing.setup(TASKS, None)
        x = torch.randn(4, 6)
    touched = {task: reached(sharing, x, task) for task in TASKS}
    for task in TASKS:
        alone = touched[task] - set().union(*(touched[other] for other in TASKS if other != task))
        assert {id(p) for p in sharing.task_parameters(task)} == alone


class Recorder:
    def __init__(self, tasks):
        self.tasks, self.calls, self.given = tasks, [], {}

    def __call__(self, features):
        self.calls.append(features)
        self.given = {t: {n: z.detach().requires_grad_() for n, z in features.items()} for t in self.tasks}
        return self.given


class Embedding(MLP):
    """An MLP behind weights that all experts share."""

    def __init__(self):
        super().__init__(5, [5, 4])
        self.embedding = nn.Linear(6, 5)

    def begin(self, inputs):
        return self.embedding(inputs)


@pytest.mark.parametrize("encoder", [lambda: MLP(6, [5, 4, 3]), lambda: MLP(6, [5, 4]), Embedding])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tap_is_a_cut_between_shared_and_own_parameters(kind, encoder):
    sharing = registry.build("sharings", kind, KINDS[kind], encoder=encoder())
    sharing.setup(TASKS, torch.zeros(2, 6))
    tap = Recorder(["a", "b"])
    x = torch.randn(4, 6)
    features = sharing(x, ["a", "b"], tap)
    assert len(tap.calls) == 1
    sum(z.square().sum() for z in features.values()).backward()
    # The recorder handed out leaves: what still has a gradient lies behind the tap, and belongs to one task.
    behind = {id(p) for p in sharing.parameters() if p.grad is not None}
    owned = {id(p) for task in ("a", "b") for p in sharing.task_parameters(task)}
    assert behind == owned
    sharing.zero_grad(set_to_none=True)
    # Passing on what arrived at the leaves gives the gradients of the shared parameters.
    for task in ("a", "b"):
        mine = [(tap.calls[0][n], z.grad) for n, z in tap.given[task].items() if z.grad is not None]
        torch.autograd.backward(
            [z for z, _ in mine if z.requires_grad], [g for z, g in mine if z.requires_grad], retain_graph=True
        )
    found = {n: p.grad.clone() for n, p in sharing.named_parameters() if id(p) not in owned and p.grad is not None}
    sharing.zero_grad(set_to_none=True)
    sum(z.square().sum() for z in sharing(x, ["a", "b"]).values()).backward()
    expected = {n: p.grad for n, p in sharing.named_parameters() if id(p) not in owned and p.grad is not None}
    assert set(found) == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad)


@pytest.mark.parametrize("at", ["features", "parameters"])
@pytest.mark.parametrize("kind", KINDS)
def test_balancing_reaches_every_parameter(kind, at):
    sharing = registry.build("sharings", kind, KINDS[kind], encoder=MLP(6, [5, 4], activation="gelu"))
    model = MultiTaskModel(sharing, [regression("a"), regression("b")])
    assert model.supports_features
    x = torch.randn(8, 6)

    def forward(tap):
        raw = model(x, tap=tap)
        return Losses({task: (z - 1).square().mean() for task, z in raw.items()})

    engine(build_balancer("mgda", tasks=["a", "b"]), model, at=at).step([MicroBatch(("a", "b"), forward)], ("a", "b"))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_some_tasks_bf16_and_state_dict(kind, encoder):
    sharing, x = made(kind, encoder)
    sharing.eval()
    whole = sharing(x, TASKS)
    torch.testing.assert_close(sharing(x, ["b"])["b"], whole["b"])
    torch.testing.assert_close(sharing.extract("b")(x), whole["b"])
    other, _ = made(kind, encoder)
    other.load_state_dict(sharing.state_dict())
    copied = copy.deepcopy(sharing)
    for task, feature in other.eval()(x, TASKS).items():
        torch.testing.assert_close(feature, whole[task])
        torch.testing.assert_close(copied(x, [task])[task], whole[task])
    with torch.autocast("cpu", torch.bfloat16):
        low = sharing(x, TASKS)
    for task, feature in low.items():
        torch.testing.assert_close(feature.float(), whole[task], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_makes_the_same_model(kind, tmp_path):
    sharing = registry.build("sharings", kind, KINDS[kind], encoder=MLP(6, [5, 4]))
    model = MultiTaskModel(sharing, [binary("a"), regression("b")])
    x = torch.randn(3, 6)
    write_bundle(model, tmp_path / "bundle", example=x)
    again = read_model(tmp_path / "bundle", read_spec(tmp_path / "bundle"))
    assert type(again.sharing) is type(sharing)
    for task, raw in again(x).items():
        torch.testing.assert_close(raw, model.eval()(x)[task])


@pytest.mark.parametrize(("kind", "own"), [("cgc", 1), ("ple", 1)])
def test_one_task_runs_only_its_own_last_experts(kind, own):
    sharing, x = made(kind, "transformer")
    level = sharing.levels[-1]
    calls = {task: [] for task in TASKS}
    for task in TASKS:
        level.private[task].template.register_forward_hook(lambda *_, task=task: calls[task].append(1))
    sharing(x, ["b"])
    assert {t: len(c) for t, c in calls.items()} == {"a": 0, "b": level.private["b"].count, "c": 0}


def test_gates_are_shown_and_add_up():
    sharing, x = made("ple")
    sharing(x, ["a"])
    shown = sharing.inspect()
    assert list(shown) == ["gates of level 1", "gates of level 2"]
    for gates in shown.values():
        assert gates.shape == (3, 3)
        torch.testing.assert_close(gates[0].sum(), torch.tensor(1.0))
        assert gates[1:].isnan().all()


def test_the_given_encoder_stays_as_it_was_and_the_first_expert_starts_from_it():
    encoder = MLP(6, [5, 4])
    before = copy.deepcopy(encoder.state_dict())
    sharing = MMoE(encoder, 2)
    sharing.setup(TASKS, None)
    assert all(torch.equal(encoder.state_dict()[n], t) for n, t in before.items())
    stacks = sharing.levels[0].shared.state()
    assert torch.equal(stacks["0.0.weight"][0], before["stages.0.0.weight"])
    assert not torch.equal(stacks["0.0.weight"][1], before["stages.0.0.weight"])
    same = MMoE(encoder, 2, reset=False)
    same.setup(TASKS, None)
    assert torch.equal(same.levels[0].shared.state()["0.0.weight"][1], before["stages.0.0.weight"])


def test_a_staged_beginning_is_shared_and_runs_once():
    encoder = Embedding()
    sharing = MMoE(encoder, 3)
    sharing.setup(TASKS, torch.zeros(2, 6))
    assert count(sharing.encoder.parameters()) == count(encoder.embedding.parameters())
    calls = []
    sharing.encoder.embedding.register_forward_hook(lambda *_: calls.append(1))
    sharing(torch.zeros(2, 6), TASKS)
    assert calls == [1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DSelectK(nn.Linear(3, 4), experts=4, k=5), RecipeError, "k is 5, but there are 4 experts"),
        (lambda: DSelectK(nn.Linear(3, 4), gamma=0.0), RecipeError, "gamma is 0.0"),
        (lambda: MMoE(nn.Linear(3, 4), 0), RecipeError, "experts is 0"),
        (lambda: CGC(nn.Linear(3, 4), per_task=0), RecipeError, "per_task is 0"),
        (lambda: MMoE(nn.Linear(3, 4), gate_input="flta"), RecipeError, "Did you mean 'flat'"),
        (lambda: PLE(ConvNet(1), levels=["stages.9"]), ShapeError, r"Known: stages\.0, stages\.1.*Did you mean"),
        (lambda: PLE(nn.Linear(3, 4)), ShapeError, r"Linear does not run in stages.*encoders\.staged"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_gates_need_numbers_and_a_known_width():
    with pytest.raises(NeedsExample, match="Pass MultiTaskModel"):
        MMoE(ConvNet(1)).setup(TASKS, None)
    words = nn.Sequential(nn.EmbeddingBag(9, 4))
    with pytest.raises(RecipeError, match=r"tensors of torch\.int64.*begin\(\)"):
        MMoE(words).setup(TASKS, torch.zeros(2, 3, dtype=torch.int64))


def test_experts_that_cannot_start_apart_are_named():
    odd = nn.Linear(3, 4)
    odd.reset_parameters = None
    with pytest.warns(UserWarning, match=r"MMoE cannot draw new initial weights for: 0 \(Linear\)"):
        MMoE(nn.Sequential(odd)).setup(TASKS, torch.zeros(2, 3))
