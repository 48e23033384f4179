"""The loop does what a hand-written one does, whatever the batching, and says when it cannot go on."""

import csv
import math

import pytest
import torch
from torch import nn

import polytask as pt
from polytask.data.source import TensorSource
from polytask.errors import DataError, RecipeError, TrainingError
from polytask.training.fit import train
from polytask.training.settings import OptimizerSettings, PenaltySettings, TrainingSettings


def rows(count=48, seed=0, missing=0.4):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=g)
    up = (x[:, 0] + 0.1 * torch.randn(count, generator=g) > 0).float()
    size = 3 + 2 * x[:, 1] + 0.1 * torch.randn(count, generator=g)
    kind = (x[:, 2] > 0).long() + (x[:, 3] > 0).long()
    for target in (up, size):
        target[torch.rand(count, generator=g) < missing] = math.nan
    kind[torch.rand(count, generator=g) < missing] = -1
    return TensorSource(x, {"up": up, "size": size, "kind": kind})


def model(seed=0):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(5, 16), nn.Tanh())
    tasks = [pt.tasks.binary("up"), pt.tasks.regression("size"), pt.tasks.multiclass("kind", classes=3)]
    return pt.MultiTaskModel(pt.sharing.Hard(encoder), tasks, example=torch.zeros(2, 5))


def settings(**changes):
    return TrainingSettings(
        **{"epochs": 3, "batch_size": 16, "lr": 0.05, "optimizer": "sgd", "select": "last", **changes}
    )


def weights(m):
    return torch.cat([p.detach().flatten() for p in m.parameters()])


def test_equal_weights_are_a_hand_written_loop():
    data = rows(missing=0.0)
    ours = train(model(), [data], settings=settings()).model
    theirs = model()
    theirs.replace_tasks(list(ours.tasks.values()))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05)
    for step in range(9):
        batch = data.batch(step, 16, (0, 0))
        out = theirs(batch.inputs)
        spread = ours.tasks["size"].head.scale
        loss = (
            nn.functional.binary_cross_entropy_with_logits(out["up"], batch.targets["up"])
            + (((out["size"] - batch.targets["size"]) / torch.tensor(spread)) ** 2).mean()
            + nn.functional.cross_entropy(out["kind"], batch.targets["kind"])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-6)


def test_accumulation_equals_the_large_batch_with_uneven_missing_labels():
    whole = train(model(), [rows()], settings=settings()).model
    for pieces in (2, 3, 16):
        cut = train(model(), [rows()], settings=settings(accumulate=pieces)).model
        assert torch.allclose(weights(whole), weights(cut), atol=1e-6)


def test_a_missing_label_changes_nothing_but_its_own_term():
    """Rows without any label for a task may hold any garbage there: the weights are the same."""
    data = rows()
    other = TensorSource(data.take(torch.arange(48)).inputs, {t: data.targets(t).clone() for t in data.tasks})
    other.targets("kind")[other.targets("kind") < 0] = -100
    first, second = (train(model(), [d], settings=settings()).model for d in (data, other))
    assert torch.equal(weights(first), weights(second))


def test_same_seed_same_result_and_other_seed_another():
    noisy = {"input_noise": 0.1, "optimizer": "adamw"}
    first, second, other = (
        weights(train(model(), [rows()], settings=settings(seed=s, **noisy)).model) for s in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_global_generators_are_given_back():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    train(model_ready := model(), [rows()], settings=settings(epochs=1))
    assert model_ready.is_built
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), expected)


def test_absent_task_keeps_its_head_and_its_optimizer_state():
    data = rows()
    no_size = TensorSource(data.take(torch.arange(48)).inputs, {"up": data.targets("up"), "kind": data.targets("kind")})
    only = rows(8, missing=0.0)
    size = TensorSource(only.take(torch.arange(8)).inputs, {"size": only.targets("size")})
    m = model()
    before = {}

    class Watch(pt.Callback):
        def on_start(self, loop):
            before["head"] = loop.model.heads["size"].output.weight.detach().clone()

    train(
        m,
        [no_size, size],
        settings=settings(optimizer="adamw", steps=1, sampler="round_robin", weight_decay=0.1),
        callbacks=[Watch()],
    )
    assert torch.equal(m.heads["size"].output.weight, before["head"])


def test_a_penalty_has_its_gradient_and_is_not_balanced():
    data = rows(missing=0.0)
    plain = train(model(), [data], settings=settings(steps=1)).model
    with_penalty = train(model(), [data], settings=settings(steps=1, penalties=PenaltySettings(l2=0.5))).model
    start = model().sharing.encoder[0].weight
    difference = plain.sharing.encoder[0].weight - with_penalty.sharing.encoder[0].weight
    assert torch.allclose(difference, 0.05 * 0.5 * start, atol=1e-6)


def test_a_loss_that_is_not_finite_names_task_and_step(tmp_path):
    data = rows(missing=0.0)
    data.targets("size")[20] = 1e30
    with pytest.raises(
        TrainingError, match=r"The loss of '\w+' became \w+ in step \d+ \(epoch 1\).*lower learning rate"
    ):
        train(model(), [data], settings=settings(lr=1e30), path=tmp_path)
    assert not (tmp_path / "checkpoints" / "last.safetensors").exists()


def test_a_parameter_without_gradient_is_named():
    m = model()
    m.sharing.encoder.append(nn.Module())
    m.sharing.encoder[2].forward = lambda x: x
    m.sharing.encoder[2].unused = nn.Parameter(torch.zeros(3))
    with pytest.warns(UserWarning, match=r"No gradient reached sharing.encoder.2.unused in a whole epoch"):
        train(m, [rows()], settings=settings(epochs=1))


def test_history_has_steps_and_epochs(tmp_path):
    run = train(model(), [rows()], [rows(seed=1)], settings=settings(log_every=2), path=tmp_path)
    with (tmp_path / "history.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table if row["scope"] == "step"] == ["2", "4", "6", "8"]
    epochs = [row for row in table if row["scope"] == "epoch"]
    assert [row["epoch"] for row in epochs] == ["1", "2", "3"]
    assert float(epochs[-1]["up.auroc"]) == run.scores["up"]["auroc"]
    assert run.history[-1]["loss.up"] == float(epochs[-1]["loss.up"])


def test_the_best_epoch_is_kept_and_patience_stops(tmp_path):
    # A learning rate that makes things worse after the first epochs.
    run = train(
        model(),
        [rows(missing=0.0)],
        [rows(seed=1)],
        settings=settings(epochs=30, select="size.rmse", patience=2, schedule="constant", lr=0.3),
        path=tmp_path,
    )
    scores = [row["size.rmse"] for row in run.history]
    assert run.scores["size"]["rmse"] == min(scores)
    assert len(scores) == 30 or len(scores) == scores.index(min(scores)) + 3


def test_what_does_not_fit_together_is_refused():
    data = rows()
    with pytest.raises(DataError, match=r"No training data for task 'size'"):
        train(model(), [TensorSource(torch.zeros(4, 5), {"up": torch.zeros(4), "kind": torch.zeros(4).long()})])
    with pytest.raises(DataError, match=r"Unknown task 'siez'.*Did you mean 'size'"):
        train(model(), [TensorSource(torch.zeros(4, 5), {"siez": torch.zeros(4)})])
    with pytest.raises(RecipeError, match="patience needs validation data"):
        train(model(), [data], settings=settings(select="mean_improvement", patience=2))
    with pytest.raises(RecipeError, match=r"batch_sizes: Unknown task 'upp'"):
        train(model(), [data], settings=settings(batch_sizes={"upp": 3}))
    empty = {**{t: data.targets(t) for t in data.tasks}, "up": torch.full((48,), math.nan)}
    with pytest.raises(DataError, match=r"'up' has no label at all"):
        train(model(), [TensorSource(torch.zeros(48, 5), empty)])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "torch.optim:RMSprop"])
def test_optimizers_lower_the_loss(name):
    run = train(
        model(), [rows(missing=0.1)], settings=settings(optimizer=OptimizerSettings(name), lr=0.01, epochs=15, clip=1.0)
    )
    assert run.history[-1]["loss.size"] < run.history[0]["loss.size"]


def test_bf16_mixed_trains():
    run = train(model(), [rows()], settings=settings(precision="bf16-mixed", epochs=10))
    assert run.history[-1]["loss.size"] < run.history[0]["loss.size"]
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
