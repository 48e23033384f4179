"""Vectors for retrieval: the loss by its definition, the metrics by scikit-learn, and a run."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import average_precision_score

import polytask as pt
from polytask.data.targets import encode_target
from polytask.errors import DataError, RecipeError
from polytask.tasks import embedding


def test_the_loss_is_that_of_its_definition():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    task = embedding("e", dimensions=3, temperature=0.5)
    found = task.loss(raw, groups)
    unit = raw.detach() / raw.detach().norm(dim=1, keepdim=True)
    for i in range(7):
        others = [a for a in range(7) if a != i]
        own = [p for p in others if groups[p] == groups[i]]
        below = sum(torch.exp(unit[i] @ unit[a] / 0.5) for a in others)
        terms = [torch.log(torch.exp(unit[i] @ unit[p] / 0.5) / below) for p in own]
        wanted = -sum(terms) / len(terms) if terms else torch.tensor(0.0, dtype=torch.float64)
        torch.testing.assert_close(found[i], wanted)
    found.sum().backward()
    assert raw.grad.isfinite().all()
    assert task.units(groups).tolist() == [1, 1, 1, 0, 1, 1, 0]


def test_one_row_alone_has_neither_loss_nor_unit():
    task, raw = embedding("e", dimensions=2), torch.ones(1, 2, requires_grad=True)
    loss = task.loss(raw, torch.tensor([4]))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert raw.grad.isfinite().all()
    assert task.units(torch.tensor([4])).tolist() == [0]


def test_metrics_are_those_of_the_ranked_rows():
    generator = np.random.default_rng(0)
    raw, groups = torch.from_numpy(generator.normal(size=(60, 4))), generator.integers(0, 12, 60)
    groups[0] = 99  # without company
    task = embedding("e", dimensions=4)
    scores, weights = task.score(raw), generator.random(60)
    cosine = scores @ scores.T
    values = {"map": [], "recall_at_1": [], "recall_at_5": []}
    rows = [i for i in range(60) if (groups == groups[i]).sum() > 1]
    assert 0 not in rows
    for i in rows:
        others = np.arange(60) != i
        hits = (groups == groups[i])[others]
        values["map"].append(average_precision_score(hits, cosine[i][others]))
        order = np.argsort(-cosine[i][others])
        values["recall_at_1"].append(hits[order[0]])
        values["recall_at_5"].append(hits[order[:5]].any())
    for name, of_rows in values.items():
        assert task.metrics[name].compute(scores, groups, None) == pytest.approx(np.mean(of_rows))
        weighted = np.average(of_rows, weights=weights[rows])
        assert task.metrics[name].compute(scores, groups, weights) == pytest.approx(weighted)
        assert np.isnan(task.metrics[name].compute(scores[:2], np.array([0, 1]), None))


def test_groups_are_numbers_and_missing_ones_are_left_out():
    frame = pl.DataFrame({"e": ["b", None, "a", "b"]})
    assert encode_target(frame, embedding("e")).tolist() == [1, -1, 0, 1]


def test_a_model_learns_to_put_groups_together():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(240) % 8
    noisy = torch.nn.functional.one_hot(group, 8) + 0.5 * torch.randn(240, 8, generator=generator)
    x = torch.cat([noisy, 3 * torch.randn(240, 8, generator=generator)], 1)
    model = pt.MultiTaskModel(
        pt.sharing.Hard(torch.nn.Linear(16, 16)), [embedding("e", 8), pt.tasks.regression("size")]
    )
    data = {"x": x, "e": group, "size": x[:, 0]}
    torch.manual_seed(0)
    before = pt.evaluate(model, data)["e"]["map"]
    pt.fit(model, data, epochs=40, batch_size=120, lr=0.02, progress=False)
    assert pt.evaluate(model, data)["e"]["map"] > before + 0.1


def test_wrong_options_and_targets_are_named():
    for options, text in (({"dimensions": 1}, "dimensions is 1"), ({"temperature": 0}, "temperature is 0")):
        with pytest.raises(RecipeError, match=text):
            embedding("e", **options)
    with pytest.raises(DataError, match="group numbers"):
        embedding("e").fitted(torch.tensor([0.5]))
