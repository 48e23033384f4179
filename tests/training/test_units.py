"""Tasks whose rows hold several labels: the mean is over all of them, whatever the micro-batches."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import polytask as pt
from polytask.data.source import TensorSource
from polytask.evaluation import collect, evaluate
from polytask.tasks.metrics_values import REGRESSION
from polytask.training.fit import train
from polytask.training.settings import TrainingSettings

NAN = float("nan")


def squares(raw, targets):
    """The sum of squared errors over a row's known places."""
    known = ~targets.isnan()
    return torch.zeros(len(raw)).index_add(0, known.nonzero()[:, 0], (raw[known] - targets[known]).square())


def several():
    """A task with up to three values a row, any of which may be missing."""
    made = pt.tasks.regression("values", dimensions=3)
    return replace(made, loss=squares, units=lambda targets: (~targets.isnan()).sum(1), refit=lambda t, w: made.options)


class Several(pt.MultiTaskModel):
    """Keeps its task as it is: a real task type of this kind would be made again from its options."""

    def replace_tasks(self, tasks):
        pass


def model():
    torch.manual_seed(0)
    return Several(pt.sharing.Hard(nn.Linear(4, 8)), [several()])


def rows(weights=None):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 4, generator=generator), torch.randn(48, 3, generator=generator)
    y[torch.rand(48, 3, generator=generator) < 0.4] = NAN
    y[:5] = NAN
    return TensorSource(x, {"values": y}, {} if weights is None else {"values": weights})


def settings(**given):
    return TrainingSettings(**{"steps": 1, "batch_size": 48, "lr": 0.1, "optimizer": "sgd", "device": "cpu", **given})


@pytest.mark.parametrize("weighted", [False, True])
def test_the_step_takes_the_mean_over_all_labels_of_all_rows(weighted):
    weights = torch.rand(48, generator=torch.Generator().manual_seed(1)) if weighted else None
    data, start = rows(weights), model()
    x, y = data.example, data.targets("values")
    x = data.take(torch.arange(48)).inputs
    of_label = torch.ones(48, 3) if weights is None else weights[:, None].expand(48, 3)
    known = ~y.isnan()
    raw = start(x)["values"]
    ((raw - y)[known].square() * of_label[known]).sum().div(of_label[known].sum()).backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in start.named_parameters()}
    for pieces in (1, 3):
        done = train(model(), [data], settings=settings(accumulate=pieces)).model
        for name, value in done.named_parameters():
            torch.testing.assert_close(value, expected[name])


class Lengths(nn.Module):
    """Gives batch number i as many outputs a row as it has rows."""

    def __init__(self, task):
        super().__init__()
        self.tasks = {"values": task}

    def forward(self, inputs, wanted):
        return {"values": inputs[:, : len(inputs)]}


def test_outputs_of_different_lengths_are_padded_and_only_what_is_kept_is_kept():
    plain = pt.tasks.regression("values", dimensions=3, metrics=["mae"])
    task = replace(plain, keep=lambda raw: 2 * raw)
    source = TensorSource(torch.ones(5, 3), {"values": torch.ones(5, 3)})
    found = collect(Lengths(task), [source], batch_size=3)["values"].raw
    assert found.tolist()[:3] == [[2.0] * 3] * 3
    assert found[3:, :2].tolist() == [[2.0] * 2] * 2
    assert found[3:, 2].isnan().all()


def test_scores_that_are_not_finite_are_undefined_but_for_padding():
    assert "mae" in REGRESSION
    plain = pt.tasks.regression("values", dimensions=3, metrics=["mae"])
    source = TensorSource(torch.ones(2, 3), {"values": torch.ones(2, 3)})
    broken = replace(plain, keep=lambda raw: raw / 0)
    assert torch.tensor(evaluate(Lengths(broken), [source])["values"]["mae"]).isnan()


def test_a_predictor_decodes_what_is_kept():
    task = replace(pt.tasks.regression("size"), keep=lambda raw: 0 * raw + 7)
    made = Several(pt.sharing.Hard(nn.Linear(4, 8)), [task])
    from polytask.serving import Predictor

    assert Predictor(made).predict(torch.ones(3, 4))["size"].to_list() == [7.0] * 3
    assert Predictor(made).raw(torch.ones(3, 4))["size"].shape == (3,)
