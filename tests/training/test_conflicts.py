"""Conflict figures of a run: in the history, in words, and without any effect on what is trained."""

import csv
import math

import pytest
import torch
from torch import nn

import polytask as pt
from polytask.balancing import GramianWeighting
from polytask.data.source import TensorSource
from polytask.errors import RecipeError
from polytask.training.conflicts import ConflictLog
from polytask.training.fit import train
from polytask.training.settings import TrainingSettings


def rows(count=64):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, 5, generator=g)
    up, size = (x[:, 0] > 0).float(), 3 + 2 * x[:, 1]
    up[torch.rand(count, generator=g) < 0.3] = math.nan
    return TensorSource(x, {"up": up, "size": size, "kind": (x[:, 2] > 0).long()})


def model(sharing=pt.sharing.Hard, tasks=3):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
    made = [pt.tasks.binary("up"), pt.tasks.regression("size"), pt.tasks.multiclass("kind", classes=2)]
    return pt.MultiTaskModel(sharing(encoder), made[:tasks], example=torch.zeros(2, 5))


def run(monitor_every, balancer="equal", path=None, made=None, **changes):
    settings = {"steps": 12, "batch_size": 16, "optimizer": "adamw", "select": "last", "input_noise": 0.1, **changes}
    chosen = TrainingSettings(monitor_every=monitor_every, **settings)
    return train(made or model(), [rows()], balancer=balancer, settings=chosen, path=path)


def history(path):
    with (path / "history.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["scope"] == "step"]


@pytest.mark.parametrize("balancer", ["equal", "uncertainty", "famo", "rlw", "graddrop"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_looking_changes_no_bit(balancer, accumulate):
    seen, unseen = (run(every, balancer, accumulate=accumulate).model.state_dict() for every in (1, 0))
    for name, tensor in seen.items():
        assert torch.equal(tensor, unseen[name]), name


def test_a_loss_weighting_has_figures_in_its_history(tmp_path):
    run(5, path=tmp_path)
    found = {int(row["step"]): row for row in history(tmp_path) if row["conflict_rate"]}
    assert sorted(found) == [1, 5, 10]
    for row in found.values():
        cosines = [float(row[f"cosine.{pair}"]) for pair in ("up.size", "up.kind", "size.kind")]
        assert float(row["conflict_rate"]) == pytest.approx(sum(c < 0 for c in cosines) / 3)
        assert 0 < float(row["smallest_ratio"]) <= 1


def test_a_look_waits_for_a_row_of_the_history(tmp_path):
    run(5, path=tmp_path, log_every=3)
    assert [int(row["step"]) for row in history(tmp_path) if row["conflict_rate"]] == [3, 6, 12]


@pytest.mark.parametrize(("every", "steps"), [(100, [10, 20]), (4, [4, 8, 12, 16, 20])])
def test_a_gramian_that_is_there_is_looked_at_more_often(tmp_path, every, steps):
    run(every, "mgda", path=tmp_path, steps=20)
    assert [int(row["step"]) for row in history(tmp_path) if row["conflict_rate"]] == steps


def test_weights_that_are_renewed_rarely_are_looked_at_when_they_are(tmp_path):
    run(100, {"name": "mgda", "every": 7}, path=tmp_path, steps=24)
    assert [int(row["step"]) for row in history(tmp_path) if row["conflict_rate"]] == [15, 22]


@pytest.mark.parametrize("balancer", ["equal", "mgda"])
def test_zero_never_looks(tmp_path, balancer):
    notes = run(0, balancer, path=tmp_path).notes
    assert "conflict_rate" not in history(tmp_path)[0]
    assert notes[0].endswith("Conflict figures: none (switched off).")


def test_the_log_says_which_figures_there_will_be():
    assert run(7).notes[0].endswith("Conflict figures: of the gradients at the shared features, every 7 steps.")
    own = run(100, "mgda").notes[0]
    assert own.endswith("Conflict figures: of the gradients that the method takes, every 10 steps.")
    separate = run(1, made=model(pt.sharing.Separate)).notes[0]
    assert separate.endswith("Conflict figures: none (there are no common features or no pair of tasks).")


def test_a_wrong_number_is_refused():
    with pytest.raises(RecipeError, match=r"training.monitor_every is -1; it has to be at least 0"):
        TrainingSettings(monitor_every=-1)


class Holder(GramianWeighting):
    """Nearly all weight for one task; a fallback in every second step."""

    def weigh(self, gramian, losses, tasks):
        steps = self.fallbacks.get("no solution for a test", 0)
        self.fallbacks["no solution for a test"] = steps + 1
        return torch.tensor([0.98 if task == "size" else 0.01 for task in tasks], dtype=torch.float64)


def test_what_stands_out_is_said():
    notes = run(100, Holder(), steps=220).notes
    assert "'size' has held 98 % of the weight for 220 steps." in notes
    assert "'Holder' fell back in 220 steps: no solution for a test." in notes


def test_weights_that_stay_equal_are_said_unless_they_are_fixed():
    class Same(GramianWeighting):
        def weigh(self, gramian, losses, tasks):
            return torch.full((len(tasks),), 0.3, dtype=torch.float64)

    assert any("equals equal weighting so far: in 25 steps" in note for note in run(100, Same(), steps=25).notes)
    for balancer in ("equal", "mean", {"name": "static", "weights": [1.0, 1.0, 1.0]}):
        assert not any("equals equal" in note for note in run(100, balancer, steps=25).notes)


def test_the_state_goes_on():
    class Fake:
        balancer, figures = Holder(), "own"

    first = ConflictLog(Fake(), 100, 1)
    first.note_weights({"a": 0.95, "b": 0.05})
    Fake.balancer.fallbacks["x"] = 2
    saved = first.state_dict()
    Fake.balancer = Holder()
    second = ConflictLog(Fake(), 100, 1)
    second.load_state_dict(saved)
    assert second.state_dict() == saved
    assert second.sentences() == ["'Holder' fell back in 2 steps: x."]


def test_an_aggregator_runs_at_the_features_of_one_process():
    made = run(1, {"name": "graddrop", "at": "features"})
    assert "(at: features)" in made.notes[0]
    assert made.history[-1]["loss.size"] > 0


def deep():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 8))
    made = [pt.tasks.binary("up"), pt.tasks.regression("size"), pt.tasks.multiclass("kind", classes=2)]
    return pt.MultiTaskModel(pt.sharing.Hard(encoder), made, example=torch.zeros(2, 5))


@pytest.mark.parametrize("balancer", ["equal", "mgda", "famo"])
def test_looking_at_layers_changes_no_bit(balancer):
    seen, unseen = (run(2, balancer, made=deep(), monitor_layers=on).model.state_dict() for on in (True, False))
    for name, tensor in seen.items():
        assert torch.equal(tensor, unseen[name]), name


@pytest.mark.parametrize("balancer", ["equal", "mgda"])
def test_cosines_by_layer_are_those_of_plain_gradients(tmp_path, balancer):
    plain = {"input_noise": 0.0, "batch_size": 64, "steps": 1, "monitor_layers": True}
    made = deep()
    made.sharing.encoder[3].p = 0.0
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    done = run(1, balancer, path=tmp_path, made=made, **plain)
    assert "By shared layer: every 1 steps." in done.notes[0]
    found = {k: float(v) for k, v in history(tmp_path)[0].items() if k.startswith("layer_cosine.")}
    other = deep()
    other.sharing.encoder[3].p = 0.0
    other.replace_tasks(list(done.model.tasks.values()))
    other.load_state_dict(before, strict=False)
    other.train()
    batch = rows().batch(0, 64, (0, 0))
    raw = other(batch.inputs)
    layers = {f"layer_cosine.sharing.encoder.{i}": list(other.sharing.encoder[i].parameters()) for i in (0, 4)}
    assert set(found) == set(layers)
    for name, parameters in layers.items():
        gradients = []
        for task in other.tasks.values():
            known = task.labelled(batch.targets[task.name])
            loss = task.loss(raw[task.name][known], batch.targets[task.name][known]).mean()
            parts = torch.autograd.grad(loss, parameters, retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in parts]).double())
        pairs = [torch.cosine_similarity(gradients[i], gradients[j], 0).item() for i, j in ((0, 1), (0, 2), (1, 2))]
        assert found[name] == pytest.approx(sum(pairs) / 3, abs=1e-5)


def test_layers_need_looks():
    with pytest.raises(RecipeError, match=r"training.monitor_every is 0; it has to be above 0 with monitor_layers"):
        TrainingSettings(monitor_every=0, monitor_layers=True)
