"""How a step is cut: halves of the rows, and each task's share of labels in them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polytask.data.batch import Batch
from polytask.data.mixing import Part
from polytask.models import MultiTaskModel
from polytask.sharing.hard import Hard
from polytask.tasks.regression import regression
from polytask.training.runtime import Runtime
from polytask.training.step import StepBuilder

NAN = float("nan")
LABELS = {"a": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "b": [1.0, NAN, NAN, 2.0, 3.0, NAN], "c": [NAN, NAN, NAN, NAN, 1.0, 2.0]}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_halves_know_their_share_of_the_labels(accumulate):
    model = MultiTaskModel(Hard(nn.Linear(2, 3)), [regression(task) for task in LABELS], example=torch.zeros(1, 2))
    runtime = Runtime("cpu")
    batch = Batch(torch.randn(6, 2), {task: torch.tensor(labels) for task, labels in LABELS.items()})
    micro = StepBuilder(model, runtime, accumulate, halves=True).build([Part(0, batch)])
    assert [piece.half for piece in micro] == [0] * accumulate + [1] * accumulate
    assert micro[0].fractions == {"a": 0.5, "b": pytest.approx(1 / 3), "c": 0.0}
    assert micro[-1].fractions == {"a": 0.5, "b": pytest.approx(2 / 3), "c": 1.0}
    # A task without labels in a half is not there.
    assert micro[0].tasks == ("a", "b")
    assert micro[-1].tasks == ("a", "b", "c")
    whole = StepBuilder(model, runtime).build([Part(0, batch)])

    def total(pieces, task):
        return sum(
            losses[task].item()
            for p in pieces
            if task in (losses := p.forward(lambda z: dict.fromkeys(LABELS, z)).tasks)
        )

    for task in LABELS:
        assert total(micro, task) == pytest.approx(total(whole, task), rel=1e-5)


class Keeps(nn.Module):
    """Keeps what it is given."""

    out_features = 2

    def forward(self, inputs):
        self.seen = inputs
        return inputs["numbers"]


def test_input_noise_is_for_numbers_and_not_for_what_says_that_one_is_missing():
    encoder = Keeps()
    model = MultiTaskModel(Hard(encoder), [regression("a")])
    inputs = {
        "numbers": torch.zeros(6, 2),
        "missing": torch.tensor([[True], [False]] * 3),
        "categories": torch.ones(6, 1, dtype=torch.int64),
    }
    batch = Batch(inputs, {"a": torch.zeros(6)})
    [piece] = StepBuilder(model, Runtime("cpu"), input_noise=0.5).build([Part(0, batch)])
    piece.forward(lambda z: {"a": z})
    assert (encoder.seen["numbers"] != 0).all()
    assert torch.equal(encoder.seen["missing"], inputs["missing"])
    assert torch.equal(encoder.seen["categories"], inputs["categories"])
