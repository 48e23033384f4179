"""Weights are computed where the losses are: no number is read by the host, and bfloat16 comes out as float32."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from polytask import catalogue, registry
from polytask.balancing.base import LossWeighting

TASKS = ["a", "b", "c"]
OPTIONS = {"static": {"weights": [1.0, 2.0, 3.0]}}
KEYS = [
    key
    for key in catalogue.BALANCERS
    if catalogue.BALANCERS[key].path.startswith("polytask.balancing.loss.")
    and issubclass(registry.get("balancers", key), LossWeighting)
]


def ready(key):
    method = registry.build("balancers", key, OPTIONS.get(key))
    method.setup(TASKS, {"a": "regression"})
    return method


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("tasks", [TASKS, ["c", "a"]])
def test_no_number_is_read_by_the_host(key, tasks):
    """A fake tensor has no values: a comparison or ``item`` on the host would raise."""
    method = ready(key)
    with FakeTensorMode(allow_non_fake_inputs=True):
        losses = torch.ones(len(tasks))
        assert method.weigh(losses, tasks).shape == (len(tasks),)
        method.objective(losses, tasks)
        method.after_step(lambda: dict(zip(tasks, losses, strict=True)))


@pytest.mark.parametrize("key", KEYS)
def test_half_precision_losses_give_float32_weights(key):
    """The weights are those of the rounded losses in float32, not arithmetic in bfloat16."""
    losses = torch.tensor([0.3, 1.7, 12.0], dtype=torch.bfloat16)
    found = ready(key).weigh(losses, TASKS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ready(key).weigh(losses.float(), TASKS), rtol=0, atol=0)
