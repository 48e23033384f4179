"""Affinities are what their formulas say, and planted groups are found again."""

import json

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

import polytask as pt
from polytask.analysis.affinity_jobs import means
from polytask.analysis.affinity_report import affinity_page
from polytask.analysis.estimates import Affinity, Estimate
from polytask.analysis.grouping import best_split
from polytask.analysis.lookahead import Lookahead
from polytask.cli import main
from polytask.data.source import TensorSource
from polytask.errors import DataError, RecipeError
from polytask.reporting.page import render_page
from polytask.training.fit import train
from polytask.training.settings import TrainingSettings

GROUPS = (("a0", "a1", "a2"), ("b0", "b1", "b2"))
ORDER = ("a0", "b0", "a1", "b1", "a2", "b2")


def planted(rows=500, seed=0):
    """Three tasks of one direction and three of another; a feature can have one of the two only."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 6))
    sides = {"a": x[:, :3].sum(1), "b": x[:, 3:].sum(1)}
    tasks = {
        name: (1 - 2 * (int(name[1]) % 2)) * (1 + int(name[1])) * (sides[name[0]] + random.normal(size=rows))
        for name in ORDER
    }
    return pl.DataFrame({f"x{i}": x[:, i] for i in range(6)} | tasks)


def recipe(folder, tasks=ORDER, **training):
    path = folder / "rows.csv"
    if not path.exists():
        planted().write_csv(path)
    return {
        "data": {"table": str(path), "split": {"validation": 0.3, "test": 0.2}},
        "inputs": {f"x{i}": "number" for i in range(6)},
        "tasks": {name: {"type": "regression"} for name in tasks},
        "model": {"encoder": {"name": "tabular", "hidden": [1]}},
        "training": {"batch_size": 64, "lr": 0.02, "epochs": 3, **training},
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("affinity")
    plain = recipe(folder)
    return plain, pt.affinity(plain, kinds="tag,cosine", seeds=2, steps=60, looks=20, jobs=1, out=folder / "out")


@pytest.mark.parametrize("kind", ["tag", "cosine"])
def test_planted_groups_are_recovered(measured, kind):
    mean = measured[1][kind].mean
    side = np.array([name[0] for name in measured[1].tasks])
    same = (side[:, None] == side) & ~np.eye(6, dtype=bool)
    across = side[:, None] != side
    assert mean[same].min() > mean[across].max()
    found = best_split(mean, 2)
    assert {tuple(sorted(ORDER[at] for at in group)) for group in found} == set(GROUPS)
    # The tree's two branches are the groups.
    linkage = measured[1].linkage(kind)
    from scipy.cluster.hierarchy import fcluster

    branch = fcluster(linkage, 2, "maxclust")
    assert {tuple(sorted(np.array(ORDER)[branch == b])) for b in (1, 2)} == set(GROUPS)


def test_what_is_there_is_not_measured_again(measured):
    plain, found = measured
    heard = []
    again = pt.affinity(
        plain, kinds="tag,cosine", seeds=2, steps=60, looks=20, jobs=1, out=found.path, say=heard.append
    )
    assert heard == []
    np.testing.assert_array_equal(again["tag"].values, found["tag"].values)
    stored = Affinity.from_dict(json.loads((found.path / "results.json").read_text()))
    np.testing.assert_array_equal(stored["cosine"].values, found["cosine"].values)
    page = (found.path / "report.html").read_text()
    assert "Lookahead (TAG): most from" in page
    assert "tree of cosine" in page
    with pytest.raises(RecipeError, match=r"is of another recipe: recipe.training.steps was 60 and is 61"):
        pt.affinity(plain, kinds="tag", seeds=2, steps=61, looks=20, jobs=1, out=found.path)


def simple(optimizer, lr=0.05):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=g)
    source = TensorSource(x, {"a": x[:, 0] + 0.1 * x[:, 1], "b": (x[:, 0] - x[:, 2] > 0).float(), "c": -x[:, 0]})
    torch.manual_seed(1)
    tasks = [pt.tasks.regression("a"), pt.tasks.binary("b"), pt.tasks.regression("c")]
    encoder = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    model = pt.MultiTaskModel(pt.sharing.Hard(encoder), tasks, example=x[:2])
    settings = TrainingSettings(steps=1, batch_size=40, lr=lr, optimizer=optimizer, select="last")
    watcher = Lookahead(1)
    done = train(model, [source], settings=settings, callbacks=[watcher])
    return done.model, source, watcher


def losses_of(model, source):
    raw = model(source.rows.inputs)
    return torch.stack([task.loss(raw[name], source.rows.targets[name]).mean() for name, task in model.tasks.items()])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_look_is_the_formula(optimizer):
    # One look after the only step, on a batch of all rows: the same from plain autograd on the trained model.
    model, source, watcher = simple(optimizer)
    shared = list(model.sharing.parameters())
    losses = losses_of(model, source)
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    norms = flat.norm(dim=1)
    rate = 0.05 if optimizer == "sgd" else 0.05 * (flat.abs().sum() / flat.square().sum()).item()
    np.testing.assert_allclose(watcher.cosines[0], (flat @ flat.T / norms / norms[:, None]).numpy(), atol=1e-5)
    before = [p.detach().clone() for p in shared]
    for i, row in enumerate(rows):
        with torch.no_grad():
            for p, start, g in zip(shared, before, row, strict=True):
                p.copy_(start - rate * g)
            wanted = 1 - losses_of(model, source) / losses.detach()
        np.testing.assert_allclose(watcher.affinities[0, i], wanted.numpy(), atol=1e-5)
    # A small step for a task is a gain of that task.
    assert (np.diag(simple("sgd", 0.001)[2].affinities[0]) > 0).all()


def test_looking_changes_no_parameter():
    model, source, _ = simple("sgd")
    torch.manual_seed(1)
    tasks = [pt.tasks.regression("a"), pt.tasks.binary("b"), pt.tasks.regression("c")]
    encoder = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    other = pt.MultiTaskModel(pt.sharing.Hard(encoder), tasks, example=source.rows.inputs[:2])
    settings = TrainingSettings(steps=1, batch_size=40, lr=0.05, optimizer="sgd", select="last")
    train(other, [source], settings=settings)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_looks_wait_for_steps_that_train_what_is_shared():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=g)
    source = TensorSource(x, {"a": x[:, 0], "b": x[:, 1]})
    tasks = [pt.tasks.regression("a"), pt.tasks.regression("b")]
    model = pt.MultiTaskModel(pt.sharing.Hard(nn.Linear(4, 3)), tasks, example=x[:2])
    watcher = Lookahead(10)
    settings = TrainingSettings(steps=10, batch_size=8, select="last", strategy="alternating")
    train(model, [source], settings=settings, callbacks=[watcher])
    # Every second step trains the heads alone.
    assert len(watcher.affinities) == 5
    assert np.isfinite(watcher.affinities).all()


def test_tasks_of_separate_tables_are_looked_at_together():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 4, generator=g), torch.randn(30, 4, generator=g)
    sources = [TensorSource(x, {"a": x[:, 0]}), TensorSource(y, {"b": y[:, 0]})]
    tasks = [pt.tasks.regression("a"), pt.tasks.regression("b")]
    model = pt.MultiTaskModel(pt.sharing.Hard(nn.Linear(4, 3)), tasks, example=x[:2])
    watcher = Lookahead(5)
    train(model, sources, settings=TrainingSettings(steps=10, batch_size=8, select="last"), callbacks=[watcher])
    assert watcher.affinities.shape == watcher.cosines.shape == (5, 2, 2)
    assert np.isfinite(watcher.affinities).all()


def test_transfer_is_the_gain_over_training_alone(tmp_path, here):
    plain = recipe(tmp_path, ("a0", "b0"))
    found = pt.affinity(plain, kinds="transfer,backward", seeds=1, steps=30, jobs=1, out=tmp_path / "out")
    whole = {**plain, "training": {**plain["training"], "steps": 30, "select": "last"}}
    pair = pt.run(whole, out=tmp_path / "pair", progress=False).scores
    for j, (name, other) in enumerate((("a0", "b0"), ("b0", "a0"))):
        # From a recipe of that task alone, as a person would write it.
        single = {**whole, "tasks": {name: {"type": "regression"}}}
        alone = pt.run(single, out=tmp_path / name, progress=False).scores[name]["rmse"]
        wanted = 100 * (alone - pair[name]["rmse"]) / alone
        assert found["transfer"].values[0, 1 - j, j] == pytest.approx(wanted, abs=1e-6), other
        assert found.alone[name] == ("rmse", pytest.approx(alone, rel=1e-9))
    assert np.isnan(np.diag(found["transfer"].values[0])).all()
    off = ~np.eye(2, dtype=bool)
    assert np.isfinite(found["backward"].values[0][off]).all()
    assert not found["transfer"].interval(0, 1).known
    assert "one seed gives no interval" in (tmp_path / "out" / "report.html").read_text()


def test_intervals_are_over_seeds_or_over_stretches_of_one_run():
    random = np.random.default_rng(0)
    parts = random.normal(size=(4, 10, 2, 2))
    of = Estimate(parts.mean(1), parts)
    from scipy.stats import t

    values = parts.mean(1)[:, 0, 1]
    half = t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert of.interval(0, 1).low == pytest.approx(values.mean() - half)
    assert of.step_error[0, 1] == pytest.approx(np.sqrt((parts[:, :, 0, 1].var(1, ddof=1) / 10).mean() / 4))
    one = Estimate(parts[:1].mean(1), parts[:1])
    half = t.ppf(0.975, 9) * parts[0, :, 0, 1].std(ddof=1) / np.sqrt(10)
    assert one.interval(0, 1).high == pytest.approx(parts[0, :, 0, 1].mean() + half)


def test_looks_without_a_number_are_left_out_of_means():
    looks = np.arange(40.0).reshape(20, 2, 1) * np.ones((1, 1, 2))
    looks[0, 0, 0] = np.nan
    found = np.array(means(looks), dtype=float)
    assert found.shape == (10, 2, 2)
    assert found[0, 0, 0] == looks[1, 0, 0]
    assert found[1, 1, 1] == looks[2:4, 1, 1].mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": "tagg"}, r"kind: Unknown kind 'tagg'. Known: tag, cosine, transfer, backward. Did you mean 'tag'\?"),
        ({"seeds": 0}, "seeds is 0; it has to be at least 1"),
        ({"steps": 3, "epochs": 3}, "Give epochs or steps, not both"),
        ({"jobs": 0}, "jobs is 0; at least one worker is needed"),
        ({"overrides": ["model.sharing=separate"]}, "has no shared parameters"),
        ({"overrides": ["data.split.validation=0"]}, "affinity scores on validation rows; this recipe has none"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, here, change, message):
    with pytest.raises(RecipeError, match=message):
        pt.affinity(recipe(tmp_path), **{"kinds": "cosine", "steps": 5, "jobs": 1, "out": tmp_path / "o", **change})


def test_from_the_command_line(tmp_path, here):
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, ("a0", "b0"))))
    sizes = ["--steps", "6", "--seeds", "2", "--looks", "3", "--jobs", "1"]
    out = ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["affinity", str(path), "--kind", "cosine", *sizes, *out])
    assert done.exit_code == 0, done.output
    assert "cosine (row helps column)" in done.output
    assert "2 of 2: looks-seed1" in done.output
    wrong = CliRunner().invoke(main, ["affinity", str(path), "--kind", "cosin", *sizes, *out])
    assert wrong.exit_code == 1
    assert "Did you mean 'cosine'?" in wrong.output
    out = ["--out", str(tmp_path / "groups")]
    split = CliRunner().invoke(main, ["group", str(path), "--no-check", "--quiet", *sizes, *out])
    assert split.exit_code == 0, split.output
    assert "group 2: b0" in split.output
    assert "nobody knows whether it holds" in split.output


def test_a_single_task_and_a_foreign_folder_are_refused(tmp_path):
    plain = recipe(tmp_path, ("a0",))
    with pytest.raises(RecipeError, match="The recipe has one task, 'a0'"):
        pt.affinity(plain, out=tmp_path / "out")
    with pytest.raises(RecipeError, match="exists and is no folder of polytask affinity"):
        pt.affinity(recipe(tmp_path), out=tmp_path)
    found = Affinity("x", ("a", "b"), {}, (0,), "1 steps")
    with pytest.raises(DataError, match="Unknown kind 'tag'"):
        found["tag"]


def test_a_page_without_numbers_says_so():
    nothing = Estimate(np.full((2, 3, 3), np.nan))
    found = Affinity("x", ("a", "b", "c"), {"transfer": nothing}, (0, 1), "5 steps")
    assert found.linkage("transfer") is None
    page = render_page(affinity_page(found))
    assert "Forward transfer: no pair of tasks has a number." in page
    assert Affinity.from_dict(json.loads(json.dumps(found.to_dict()))).tasks == found.tasks
    with pytest.raises(DataError, match="Some affinities are undefined"):
        best_split(found["transfer"].mean, 2)
