"""The mixin for a LightningModule, on a stand-in with the few methods of Lightning that it calls.

``examples/lightning_module.py`` runs it on the real one where that is installed.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from polytask import balancing as B
from polytask.balancing.lightning import BalancedModule
from polytask.errors import BalancerError

TASKS = ("a", "b")


class Module(BalancedModule, nn.Module):
    """What a LightningModule offers to the mixin: optimizers, clipping, the trainer's settings."""

    def __init__(self, method, precision="32-true", processes=1, automatic=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = automatic
        self.trainer = SimpleNamespace(world_size=processes, precision=precision)
        self.net = nn.ModuleDict({"trunk": nn.Linear(3, 4), "a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
        self.balancer = B.build(method, tasks=TASKS, **options)
        learned = list(self.balancer.parameters())
        self.all = [torch.optim.SGD(self.net.parameters(), lr=0.1)]
        if learned:
            self.all.append(torch.optim.SGD(learned, lr=0.1))

    def optimizers(self):
        return self.all if len(self.all) > 1 else self.all[0]

    def clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        assert gradient_clip_algorithm == "norm"
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], gradient_clip_val)

    def losses(self, x):
        z = self.net["trunk"](x).tanh()
        return {"a": self.net["a"](z).square().mean(), "b": 100 * (self.net["b"](z) - 1).square().mean()}, z

    def training_step(self, x, **options):
        losses, z = self.losses(x)
        features = z if options.get("at") == "features" else None
        trunk = self.net["trunk"].parameters()
        return self.balanced_step(losses, trunk, balancer=self.balancer, features=features, **options)


def x():
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.net.parameters()])


@pytest.mark.parametrize("at", ["parameters", "features"])
def test_a_step_is_the_one_of_a_hand_written_loop(at):
    module, other = Module("upgrad"), Module("upgrad")
    module.training_step(x(), at=at)
    losses, z = other.losses(x())
    features = z if at == "features" else None
    B.backward(losses, other.net["trunk"].parameters(), balancer=other.balancer, at=at, features=features)
    before = weights(other)
    other.optimizers().step()
    torch.testing.assert_close(weights(module), weights(other), rtol=0, atol=0)
    assert not torch.equal(before, weights(module))


def test_the_other_half_of_the_rows_is_handed_on():
    module, other = Module("modo"), Module("modo")
    module.training_step(x()[:3], second=module.losses(x()[3:])[0])
    first, second = (other.losses(rows)[0] for rows in x().chunk(2))
    B.backward(first, other.net["trunk"].parameters(), balancer=other.balancer, second=second)
    other.optimizers().step()
    torch.testing.assert_close(weights(module), weights(other), rtol=0, atol=0)
    assert not torch.equal(module.balancer.weights, torch.full((2,), 0.5, dtype=torch.float64))


def test_gradients_of_the_step_before_are_cleared():
    module, fresh = Module("mgda"), Module("mgda")
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    module.training_step(x())
    fresh.training_step(x())
    assert torch.equal(weights(module), weights(fresh))


def test_clipping_bounds_the_step():
    module = Module("sum")
    before = weights(module)
    module.training_step(x(), clip_norm=0.5)
    assert float((weights(module) - before).norm()) == pytest.approx(0.05, rel=1e-5)


def test_learned_weights_are_stepped_by_their_own_optimizer():
    module = Module("uncertainty", kinds=dict.fromkeys(TASKS, "regression"))
    module.training_step(x())
    # d/ds of exp(-s) L / 2 + s / 2 at s = 0 is (1 - L) / 2; one step of SGD with rate 0.1.
    losses = torch.stack(list(Module("uncertainty").losses(x())[0].values())).detach()
    expected = -0.1 * (1 - losses) / 2
    torch.testing.assert_close(module.balancer.log_variance.detach(), expected, rtol=1e-5, atol=0)


def test_a_method_that_looks_again_is_shown_the_losses_after_the_step():
    module = Module("famo")
    seen = []

    def relook():
        with torch.no_grad():
            seen.append(module.losses(x())[0])
        return seen[-1]

    report = module.training_step(x(), relook=relook)
    assert len(seen) == 1
    assert float(sum(seen[0].values())) < float(sum(report.losses.values()))
    assert bool(module.balancer.logits.any())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"automatic": True}, "self.automatic_optimization = False"),
        ({"processes": 2}, "runs 2.*polytask.fit"),
        ({"precision": "16-mixed"}, "'16-mixed'.*Use 'bf16-mixed'"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_moves(settings, words):
    module = Module("mgda", **settings)
    before = weights(module)
    with pytest.raises(BalancerError, match=words):
        module.training_step(x())
    assert torch.equal(weights(module), before)


def test_famo_without_a_second_look_is_refused():
    with pytest.raises(BalancerError, match=r"'FAMO' looks at the batch again.*relook="):
        Module("famo").training_step(x())
