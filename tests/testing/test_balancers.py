"""The conformance kit finds what it is meant to find."""

import pytest
import torch
from torch import nn

from polytask.balancing.base import GramianWeighting, JacobianAggregator, LossWeighting
from polytask.testing import balancers as kit


class Documented(LossWeighting):
    """Equal weights.

    Example:
        None.

    Reference:
        None.
    """

    def weigh(self, losses, tasks):
        return torch.ones_like(losses)


class NaNAtSmallLosses(Documented):
    def weigh(self, losses, tasks):
        return torch.where(losses < 1e-9, torch.nan, 1.0)


class NotInvariant(Documented):
    traits = frozenset({"scale_equivariant"})

    def weigh(self, losses, tasks):
        return losses


class ByPlace(Documented):
    traits = frozenset({"permutation_equivariant"})

    def weigh(self, losses, tasks):
        return torch.arange(len(losses)).to(losses)


class Peeking(Documented):
    needs_losses = False

    def weigh(self, losses, tasks):
        return losses


class Doubling(Documented):
    traits = frozenset({"identity_for_one_task"})

    def weigh(self, losses, tasks):
        return torch.full_like(losses, 2.0)


class OneOverZero(Documented):
    def weigh(self, losses, tasks):
        return 1.0 / losses


class Conflicting(GramianWeighting):
    """A sum that promises too much."""

    traits = frozenset({"non_conflicting"})

    def weigh(self, gramian, losses, tasks):
        return torch.ones(len(tasks), dtype=torch.float64)


class Restless(Conflicting):
    traits = frozenset({"pareto_fixed_points"})


class HalfPrecision(JacobianAggregator):
    """Always float64."""

    def aggregate(self, jacobian, losses, tasks):
        return jacobian.double().sum(0)


class NeedsAll(Documented):
    def weigh(self, losses, tasks):
        return torch.ones(4).to(losses)


class Forgetful(Documented):
    def build_state(self, count):
        self.calls = 0

    def weigh(self, losses, tasks):
        self.calls += 1
        return torch.full_like(losses, float(self.calls))


class GlobalDraws(Documented):
    traits = frozenset({"random"})

    def weigh(self, losses, tasks):
        return torch.rand(len(tasks)).to(losses)


class HiddenSeed(Documented):
    def weigh(self, losses, tasks):
        return torch.rand(len(tasks), generator=self.generator).to(losses)


class NoObjective(Documented):
    def build_state(self, count):
        self.weights = nn.Parameter(torch.ones(count))


class Reserved(Documented):
    """Takes a name of the engine's.

    Example:
        None.

    Reference:
        None.
    """

    def __init__(self, every=1):
        super().__init__()
        self.every = every


class Untraceable(Documented):
    """A sentence without a source.

    Example:
        None.
    """


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (NaNAtSmallLosses, "scales", "not finite at scale 1e-12"),
        (NotInvariant, "scales", "'scale_equivariant' fails at scale 1e-12"),
        (ByPlace, "permutation", "'permutation_equivariant' fails on 'generic' rows"),
        (Doubling, "one_task", "'identity_for_one_task' fails"),
        (OneOverZero, "degenerate", "not finite on 'generic' rows"),
        (Peeking, "promises", "but the losses matter"),
        (Conflicting, "promises", "conflicts with a task"),
        (Restless, "promises", "at a Pareto stationary point"),
        (HalfPrecision, "precision", "torch.float64 from float32"),
        (NeedsAll, "absent", "weights of shape (4,)"),
        (Forgetful, "state", "goes on differently"),
        (GlobalDraws, "randomness", "torch's global generator"),
        (HiddenSeed, "randomness", "without the trait 'random'"),
        (NoObjective, "scales", "Parameters but no objective"),
        (Reserved, "declarations", "['every'] that are names of the engine's"),
        (Untraceable, "reference", "no 'Reference:'"),
    ],
)
def test_the_kit_finds(cls, check, words):
    with pytest.raises(AssertionError) as caught:
        kit.CHECKS[check](lambda tasks: cls())
    assert words in str(caught.value)
    assert str(caught.value).startswith(cls.__name__)


def test_the_kit_passes_what_keeps_to_the_rules():
    kit.check_balancer(lambda tasks: Documented())
