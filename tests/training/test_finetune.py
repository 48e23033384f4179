"""Freezing, thawing and learning rates by stage, in the optimizer and in what a run changes."""

import itertools

import pytest
import torch
from torch import nn

import polytask as pt
from polytask.data.source import TensorSource
from polytask.errors import BalancerError, RecipeError
from polytask.models.encoders import MLP
from polytask.training.fit import train
from polytask.training.settings import OptimizerSettings, RateSettings, TrainingSettings

ROWS = 32


def rows():
    x = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0))
    return TensorSource(x, {"up": (x[:, 0] > 0).float(), "size": x[:, 1] * 2})


def model(sharing=pt.sharing.Hard, encoder=None):
    torch.manual_seed(0)
    encoder = encoder or MLP(5, hidden=[8, 8, 8], norm="batch")
    return pt.MultiTaskModel(
        sharing(encoder), [pt.tasks.binary("up"), pt.tasks.regression("size")], example=torch.zeros(2, 5)
    )


def settings(**changes):
    return TrainingSettings(
        **{"epochs": 4, "batch_size": 16, "lr": 0.1, "optimizer": "sgd", "select": "last", **changes}
    )


class Watch(pt.Callback):
    """Keeps the model's state at the start and after every epoch, and the loop."""

    def on_start(self, loop):
        self.loop, self.states = loop, [copied(loop.model)]

    def on_epoch_end(self, loop, row):
        self.states.append(copied(loop.model))

    def moved(self):
        """For each epoch the names of what changed."""
        return [
            {name for name in after if not torch.equal(before[name], after[name])}
            for before, after in itertools.pairwise(self.states)
        ]


def copied(m):
    return {name: value.clone() for name, value in m.state_dict().items()}


def fit(m=None, balancer="equal", **changes):
    watch = Watch()
    run = train(m or model(), [rows()], balancer=balancer, settings=settings(**changes), callbacks=[watch])
    return run, watch


@pytest.mark.parametrize("pattern", ["encoder.stages.0", "sharing.encoder.stages.0", "encoder.*.0.?.*", "*stages.0"])
@pytest.mark.parametrize("balancer", ["equal", "mgda", {"name": "mgda", "at": "features"}], ids=str)
def test_a_frozen_stage_keeps_weights_and_statistics_under_every_balancer(pattern, balancer):
    m = model()
    _, watch = fit(m, balancer, freeze=(pattern,), optimizer="adamw", weight_decay=0.1)
    for moved in watch.moved():
        assert not {name for name in moved if "stages.0" in name}
        assert {name for name in moved if "stages.1" in name and "running" in name}
    inside = {id(p) for group in watch.loop.optimizer.param_groups for p in group["params"]}
    assert not inside & {id(p) for p in m.sharing.encoder.stages[0].parameters()}
    assert all(p.requires_grad for p in m.parameters())


def test_a_frozen_batchnorm_normalises_by_its_own_statistics():
    m = model()
    norm = m.sharing.encoder.stages[0][1]
    norm.running_mean.fill_(3.0)
    seen = []
    norm.register_forward_hook(
        lambda module, given, made: seen.append((given[0], made)) if module.training is False else None
    )
    fit(m, freeze=("encoder.stages.0",), steps=1)
    given, made = seen[0]
    expected = (given - 3.0) / (1 + norm.eps) ** 0.5 * norm.weight + norm.bias
    assert torch.allclose(made, expected, atol=1e-6)
    assert norm.training


def test_a_stage_that_was_frozen_before_is_named_all_the_same():
    m = model()
    m.sharing.encoder.stages[0].requires_grad_(False)
    _, watch = fit(m, freeze=("encoder.stages.0",))
    assert not {name for moved in watch.moved() for name in moved if "stages.0" in name}
    assert not any(p.requires_grad for p in m.sharing.encoder.stages[0].parameters())


def test_what_is_named_in_vain_is_refused():
    with pytest.raises(
        RecipeError, match=r"training.freeze: Unknown part 'encoder.stage.0'.*Did you mean 'encoder.stages.0"
    ):
        fit(freeze=("encoder.stage.0",))
    with pytest.raises(RecipeError, match="No parameter is trainable"):
        fit(freeze=("*",))


@pytest.mark.parametrize("balancer", ["equal", "mgda", {"name": "nash_mtl", "at": "features"}, "graddrop"], ids=str)
def test_stages_thaw_from_the_last_to_the_first(balancer):
    _, watch = fit(balancer=balancer, unfreeze_every=2, epochs=8, optimizer="adamw", weight_decay=0.1)
    for epoch, moved in enumerate(watch.moved()):
        parts = {name.split(".")[3] for name in moved if "stages" in name}
        assert parts == [set(), {"2"}, {"1", "2"}, {"0", "1", "2"}][epoch // 2]
        assert any("heads" in name for name in moved)
    ours = {name: p for name, p in watch.loop.model.named_parameters() if "stages.0" in name and p.dim() > 1}
    state = watch.loop.optimizer.state
    assert all(state[p]["step"].item() == 4 for p in ours.values())


@pytest.mark.parametrize("balancer", ["equal", "sum", {"name": "sum", "at": "features"}], ids=str)
def test_layers_between_frozen_and_free_ones(balancer):
    """A layer behind the stages thaws after them: gradients go through it, and none stays on it."""

    class Encoder(MLP):
        def __init__(self):
            super().__init__(5, [64, 64])
            self.last = nn.Linear(64, 8)
            self.out_features = 8

        def end(self, state):
            return self.last(state)

    x = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0))
    source = TensorSource(x, {f"t{i}": x[:, i] for i in range(4)})
    torch.manual_seed(0)
    tasks = [pt.tasks.regression(f"t{i}") for i in range(4)]
    m = pt.MultiTaskModel(pt.sharing.Hard(Encoder()), tasks, example=x)
    watch = Watch()
    chosen = settings(unfreeze_every=1, epochs=3, batch_size=4, lr=0.01)
    train(m, [source], balancer=balancer, settings=chosen, callbacks=[watch])
    for stage, moved in enumerate(watch.moved()):
        assert not {name for name in moved if "last" in name}
        assert {name.split(".")[3] for name in moved if "stages" in name} == [set(), {"1"}, {"0", "1"}][stage]


def test_shared_layers_above_a_trunk_that_waits_train_under_a_method_at_the_features():
    def sharing(encoder):
        return pt.sharing.Hierarchical(encoder, {"size": ["up"]}, layers=[8])

    balancer = {"name": "mgda", "at": "features"}
    for accumulate in (1, 2):
        _, watch = fit(model(sharing), balancer, unfreeze_every=1, accumulate=accumulate)
        first, second, *_ = watch.moved()
        assert {name for name in first if "layers.up" in name}
        assert not {name for name in first if "encoder" in name}
        assert {name for name in second if "encoder" in name}
    # A trunk that never learns leaves the method nothing to do, and that is an error.
    with pytest.raises(BalancerError, match="The features need no gradient"):
        fit(model(sharing), balancer, freeze=("encoder",))


def test_an_encoder_that_has_not_begun_to_thaw_is_a_frozen_one():
    first, _ = fit(unfreeze_every=4)
    second, _ = fit(freeze=("encoder",))
    for one, two in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_rates_fall_from_stage_to_stage_and_follow_the_schedule():
    rates = RateSettings(encoder=0.5, heads=2.0, layer_decay=0.1)
    _, watch = fit(rates=rates, weight_decay=0.1, optimizer="adamw", schedule="linear", steps=4)
    m, found = watch.loop.model, {}
    for group, rate in zip(watch.loop.optimizer.param_groups, watch.loop.schedule.rates, strict=True):
        found |= {id(p): rate for p in group["params"]}
        assert group["lr"] == pytest.approx(rate / 4)  # in the last of four steps
    stages = m.sharing.encoder.stages
    for number, expected in enumerate([0.1 * 0.5 * 0.01, 0.1 * 0.5 * 0.1, 0.1 * 0.5]):
        assert [found[id(p)] for p in stages[number].parameters()] == pytest.approx([expected] * 4)
    assert [found[id(p)] for p in m.heads.parameters()] == pytest.approx([0.2] * 4)
    decay = {id(p): group["weight_decay"] for group in watch.loop.optimizer.param_groups for p in group["params"]}
    assert all(decay[id(p)] == (0.1 if p.dim() > 1 else 0.0) for p in m.parameters())


def test_one_step_of_sgd_moves_each_part_by_its_rate():
    start = copied(model())
    plain, scaled = (
        fit(steps=1, rates=rates)[0].model.state_dict() for rates in (RateSettings(), RateSettings(0.5, 3.0, 0.1))
    )
    for name, factor in {"sharing.encoder.stages.1.0.weight": 0.05, "heads.up.output.weight": 3.0}.items():
        moved, expected = scaled[name] - start[name], factor * (plain[name] - start[name])
        assert torch.allclose(moved, expected, atol=1e-7)


def test_the_history_has_the_largest_rate(tmp_path):
    run = train(model(), [rows()], settings=settings(rates=RateSettings(encoder=0.5), steps=2), path=tmp_path)
    head, first, *_ = (run.path / "history.csv").read_text().splitlines()
    assert float(dict(zip(head.split(","), first.split(","), strict=True))["lr"]) == 0.1


def test_embeddings_below_the_stages_are_a_stage_of_their_own():
    class Encoder(MLP):
        def __init__(self):
            super().__init__(5, [8, 8])
            self.scale = nn.Parameter(torch.ones(5))

        def begin(self, inputs):
            return inputs * self.scale

    _, watch = fit(model(encoder=Encoder()), rates=RateSettings(layer_decay=0.5), unfreeze_every=1)
    moved = [{name.split(".")[-3] for name in of if "stages" in name or "scale" in name} for of in watch.moved()]
    assert [len({n for n in of if "scale" in n}) for of in watch.moved()] == [0, 0, 0, 1]
    assert moved[0] == set()
    groups = zip(watch.loop.optimizer.param_groups, watch.loop.schedule.rates, strict=True)
    assert {rate for group, rate in groups for p in group["params"] if p.shape == (5,)} == {0.1 * 0.25}


@pytest.mark.parametrize("sharing", [pt.sharing.MMoE, pt.sharing.Separate, pt.sharing.CrossStitch, pt.sharing.LTB])
@pytest.mark.parametrize(
    "options", [{"rates": RateSettings(encoder=0.5)}, {"unfreeze_every": 1}, {"rates": RateSettings(layer_decay=0.5)}]
)
def test_sharings_that_copy_their_encoder_are_refused(sharing, options):
    with pytest.raises(RecipeError, match=r"needs one encoder for all tasks, but the sharing '\w+' works on copies"):
        fit(model(sharing), **options)


def test_an_encoder_without_stages_has_one_rate_and_no_stages_to_thaw():
    class Encoder(nn.Module):
        out_features = 8

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 8)

        def forward(self, inputs):
            return self.layer(inputs)

    fit(model(encoder=Encoder()), rates=RateSettings(encoder=0.5), steps=1)
    with pytest.raises(
        RecipeError, match=r"training.unfreeze_every needs the encoder's stages: Encoder does not run in"
    ):
        fit(model(encoder=Encoder()), unfreeze_every=1)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(
        RecipeError, match=r"training.rates.heads is 0; it has to be above 0; freeze: \[...\] fixes parts"
    ):
        RateSettings(heads=0)
    with pytest.raises(RecipeError, match=r"training.unfreeze_every is 0; it has to be at least 1, or null"):
        settings(unfreeze_every=0)


def test_an_optimizer_by_path_takes_rates_too():
    run, _ = fit(rates=RateSettings(encoder=0.5), optimizer=OptimizerSettings("torch.optim:NAdam"), steps=2)
    assert run.history
