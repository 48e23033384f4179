"""Training strategies equal loops written by hand, to the bit, and say when they cannot work."""

import csv
import itertools
import math

import pytest
import torch
from torch import nn

import polytask as pt
from polytask.balancing.gramian.plain import Mean
from polytask.data.source import TensorSource
from polytask.errors import RecipeError
from polytask.tasks.task import mean_loss
from polytask.training.fit import train
from polytask.training.settings import PenaltySettings, TrainingSettings
from polytask.training.state import load_state

ROWS, SIZE = 48, 16
LAMBDA = {"up": 1.0, "size": 0.25}
WEIGHED = {"name": "static", "weights": LAMBDA}
PHASES = [{"tasks": ["up"], "epochs": 1}, {"tasks": "all", "epochs": 1}, {"tasks": "all", "train": "heads"}]


def rows(seed=0, missing=0.3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 5, generator=g)
    up = (x[:, 0] + 0.1 * torch.randn(ROWS, generator=g) > 0).float()
    size = 3 + 2 * x[:, 1]
    for target in (up, size):
        target[torch.rand(ROWS, generator=g) < missing] = math.nan
    return TensorSource(x, {"up": up, "size": size})


def model(sharing="hard"):
    """BatchNorm and dropout both in the shared part and in each task's own layers."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2))
    made = {
        "hard": lambda: pt.sharing.Hard(encoder, private=[8], norm="batch", dropout=0.2),
        "hierarchical": lambda: pt.sharing.Hierarchical(encoder, {"size": ["up"]}, layers=[8], norm="batch"),
        "separate": lambda: pt.sharing.Separate(encoder),
    }[sharing]()
    tasks = [pt.tasks.binary("up"), pt.tasks.regression("size")]
    return pt.MultiTaskModel(made, tasks, example=torch.zeros(2, 5))


def settings(**changes):
    standard = {"epochs": 3, "batch_size": SIZE, "lr": 0.02, "weight_decay": 0.1, "select": "last", "seed": 5}
    return TrainingSettings(**{**standard, **changes})


class Keep(pt.Callback):
    """Keeps the optimizer's state and what each step changed."""

    def on_start(self, loop):
        self.loop = loop

    def on_end(self, loop):
        self.optimizer = loop.optimizer.state_dict()["state"]


def fit(strategy, source=None, *, balancer=WEIGHED, sharing="hard", m=None, **changes):
    keep = Keep()
    options = settings(strategy=strategy, **changes)
    m = m or model(sharing)
    run = train(m, [source or rows()], balancer=balancer, settings=options, callbacks=[keep])
    return m, keep.optimizer, run


def own_of(m, task):
    return [*m.sharing.task_parameters(task), *m.heads[task].parameters()]


def by_hand(steps, source, *, sharing="hard", lr=0.02, weights=LAMBDA, extra=lambda m, number: 0.0):
    """The loop that a person would write: ``steps`` says the batch, the trained part, and the tasks of each step."""
    m = model(sharing)
    m.replace_tasks([task.fitted(source.targets(name)) for name, task in m.tasks.items()])
    matrices = [p for p in m.parameters() if p.dim() > 1]
    vectors = [p for p in m.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    owned = {task: own_of(m, task) for task in m.tasks}
    heads = {id(p) for of in owned.values() for p in of}
    torch.manual_seed(5)
    m.train()
    for number, (position, part, tasks) in enumerate(steps):
        batch = source.batch(position, SIZE, (5, 0))
        train_these = set() if part == "heads" else {id(p) for p in m.parameters()} - heads
        train_these |= set() if part == "shared" else {id(p) for task in tasks for p in owned[task]}
        for p in m.parameters():
            p.requires_grad_(id(p) in train_these)
        norms = [n for n in m.modules() if isinstance(n, nn.BatchNorm1d) and id(n.weight) not in train_these]
        before = [{k: v.clone() for k, v in n.named_buffers()} for n in norms]
        optimizer.zero_grad()
        out = m(batch.inputs, tasks)
        total = extra(m, number)
        for task in tasks:
            known = batch.targets[task].isnan().logical_not()
            # The mean of PyTorch's own losses where no label is missing, as a person would write it.
            total = total + weights[task] * mean_loss(m.tasks[task].loss, out[task][known], batch.targets[task][known])
        total.backward()
        optimizer.step()
        for norm, buffers in zip(norms, before, strict=True):
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)
    return m, optimizer.state_dict()["state"]


def assert_same(first, second):
    """Two models, or optimizers' states, with equal bits."""
    for name, value in first.items():
        if isinstance(value, dict):
            assert_same(value, second[name])
        else:
            assert torch.equal(value, second[name]), name
    assert first.keys() == second.keys()


BOTH = ("up", "size")


@pytest.mark.parametrize("batch", ["same", "next"])
def test_alternating_is_a_hand_written_loop(batch):
    ours, state, run = fit({"name": "alternating", "batch": batch})
    twice = [(n, part, BOTH) for n in range(9) for part in ("shared", "heads")]
    once = [(n, ("shared", "heads")[n % 2], BOTH) for n in range(9)]
    theirs, expected = by_hand(twice if batch == "same" else once, rows())
    assert_same(ours.state_dict(), theirs.state_dict())
    assert_same(state, expected)
    assert [row["step"] for row in run.history] == ([6, 12, 18] if batch == "same" else [3, 6, 9])
    assert run.notes[1] == f"Strategy: alternating, the shared part and then the heads, on the {batch} batch."


@pytest.mark.parametrize("task", [None, "size"])
def test_finetuning_after_joint_training_is_a_hand_written_loop(task):
    ours, state, run = fit({"name": "finetune", "joint": 2} | ({"task": task} if task else {}))
    joint = [(n, "all", BOTH) for n in range(6)]
    after = [(n, "all" if task else "heads", (task,) if task else BOTH) for n in range(6, 9)]
    theirs, expected = by_hand(joint + after, rows())
    assert_same(ours.state_dict(), theirs.state_dict())
    assert_same(state, expected)
    assert run.notes[1] == f"Strategy: finetune, all tasks for 2 epochs, then {task or 'the heads'} to the end."


def test_wrong_finetuning_is_named():
    for options, text in (
        ({"joint": 3}, r"joint is 3, but the run has 3 epochs, .* Raise training\.epochs"),
        ({"joint": 0}, "joint is 0; it is a whole number of epochs from 1"),
        ({"joint": 1, "task": "sise"}, "Unknown task 'sise'. .* Did you mean 'size'"),
        ({}, "option 'joint' is required"),
    ):
        with pytest.raises(RecipeError, match=text):
            fit({"name": "finetune", **options})


def test_levels_are_a_hand_written_loop():
    ours, state, _ = fit("hierarchical", sharing="hierarchical")
    theirs, expected = by_hand([(n, "all", (task,)) for n in range(9) for task in BOTH], rows(), sharing="hierarchical")
    assert_same(ours.state_dict(), theirs.state_dict())
    assert_same(state, expected)


@pytest.mark.parametrize("anchor", [0.0, 0.3])
def test_phases_are_a_hand_written_loop(anchor):
    ours, state, run = fit({"name": "hierarchical", "phases": PHASES, "anchor": anchor})
    steps = [(n, "heads" if n > 5 else "all", ("up",) if n < 3 else BOTH) for n in range(9)]
    kept = {}

    def change(m, number):
        if number in (3, 6):
            kept.update(
                {name: p.detach().clone() for name, p in m.named_parameters() if number == 6 or "size" not in name}
            )
        pairs = [(m.get_parameter(name), value) for name, value in kept.items()]
        terms = [(p - value).square().sum() for p, value in pairs if p.requires_grad]
        return anchor * torch.stack(terms).sum() if terms and anchor else 0.0

    theirs, expected = by_hand(steps, rows(), extra=change)
    assert_same(state, expected)
    assert_same(ours.state_dict(), theirs.state_dict())
    assert run.notes[1] == (
        "Strategy: hierarchical, in phases: up for 1 epochs, all tasks for 1 epochs, all tasks (heads) to the end."
    )


def snapshots(strategy, **options):
    """The model's state before the first step and after each one; rows are read in every step."""
    states = []

    class Watch(pt.Callback):
        def on_start(self, loop):
            states.append({name: value.clone() for name, value in loop.model.state_dict().items()})

        def on_checkpoint(self, loop):
            if loop.step == len(states):
                states.append({name: value.clone() for name, value in loop.model.state_dict().items()})

    folder = options.pop("folder")
    chosen = settings(strategy=strategy, steps=6, checkpoint_every=1, **options.pop("settings", {}))
    m = model(options.pop("sharing", "hard"))
    run = train(
        m, [options.pop("source", None) or rows()], settings=chosen, callbacks=[Watch()], path=folder, **options
    )
    return states, run


def history(run):
    with (run.path / "history.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["scope"] == "step"]


def changed(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


METHODS = [
    "equal", "dwa", "famo", "uncertainty", "mgda", {"name": "nash_mtl", "at": "features"},
    {"name": "upgrad", "at": "last"}, "graddrop", "gradnorm", "auto_lambda", "modo", {"name": "pcgrad", "every": 1},
]  # fmt: skip


@pytest.mark.parametrize("balancer", METHODS, ids=str)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_round_changes_one_part_and_then_the_other_under_every_kind_of_balancer(tmp_path, balancer, accumulate):
    more = {"accumulate": accumulate, "clip": 1.0}
    states, _ = snapshots("alternating", balancer=balancer, folder=tmp_path, settings=more)
    assert len(states) == 7
    private = {name for name in states[0] if "private" in name or "heads" in name}
    for number, (before, after) in enumerate(itertools.pairwise(states)):
        moved = changed(before, after)
        assert moved
        # Neither weights nor running statistics of the other part move.
        assert moved <= private if number % 2 else not moved & private


@pytest.mark.parametrize("place", [{"at": "parameters"}, {"at": "features"}, {"at": "last"}], ids=str)
@pytest.mark.parametrize("options", [{"strategy": "alternating"}, {"unfreeze_every": 1, "strategy": "joint"}], ids=str)
def test_the_sum_of_gradients_is_the_gradient_of_the_sum(place, options):
    """The engines of gradient methods, which solve nothing while the shared part is fixed, and some of it else."""
    first, second = (
        fit(source=rows(missing=0.0), balancer=balancer, m=deep(), epochs=4, **options)[0]
        for balancer in ("equal", {"name": "sum", **place})
    )
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def deep(tasks=2):
    """A trunk of plain linear layers without dropout."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    targets = [pt.tasks.binary("up"), pt.tasks.regression("size")]
    targets += [pt.tasks.regression(f"more{i}") for i in range(tasks - 2)]
    return pt.MultiTaskModel(pt.sharing.Hard(encoder), targets, example=torch.zeros(2, 5))


def test_the_short_way_over_the_layers_outputs_knows_what_is_frozen(monkeypatch):
    monkeypatch.setattr("polytask.balancing.engines.parameters.FEWEST_WEIGHTS", 1)
    data = rows(missing=0.0)
    wide = {
        **{t: data.targets(t) for t in data.tasks},
        **{f"more{i}": data.take(torch.arange(ROWS)).inputs[:, i] for i in range(2)},
    }
    source = TensorSource(data.take(torch.arange(ROWS)).inputs, wide)
    options = {"strategy": "joint", "unfreeze_every": 1, "epochs": 4, "batch_size": 4, "steps": 20}
    first, second = (fit(source=source, m=deep(4), balancer=b, **options) for b in ("equal", "sum"))
    assert "from the gradients of their outputs" in second[2].notes[0]
    for p, q in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_a_method_rests_with_the_shared_part(tmp_path):
    class Noting(Mean):
        looks = 0

        def after_step(self, relook):
            type(self).looks += 1

    snapshots("alternating", folder=tmp_path / "one", balancer=Noting())
    assert Noting.looks == 3
    _, run = snapshots("alternating", folder=tmp_path / "two", balancer={"name": "mgda", "every": 2})
    weights = [row["weight.up"] for row in history(run) if row["weight.up"]]
    assert len(weights) == 3
    assert weights[0] == weights[1] != weights[2]


RESUMED = {
    "alternating": {"strategy": "alternating", "input_noise": 0.1},
    "next": {"strategy": {"name": "alternating", "batch": "next"}, "schedule": "cosine"},
    "levels": {"strategy": "hierarchical"},
    "phases": {"strategy": {"name": "hierarchical", "phases": PHASES, "anchor": 0.3}},
    "thaw": {"unfreeze_every": 1, "schedule": "linear"},
}


@pytest.mark.parametrize("step", [3, 4, 7])
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_is_cut_at_any_step_of_a_round_goes_on_as_if_nothing_had_happened(tmp_path, name, step):
    class Cut(pt.Callback):
        def on_checkpoint(self, loop):
            loop._interrupted = loop.step == step

    options = settings(**{"checkpoint_every": 1, "validate_every": 2, **RESUMED[name]})
    balancer = "uncertainty" if name != "next" else "nash_mtl"

    def go(folder, **more):
        return train(model(), [rows()], [rows(1)], balancer=balancer, settings=options, path=tmp_path / folder, **more)

    go("straight")
    with pytest.raises(KeyboardInterrupt):
        go("cut", callbacks=[Cut()])
    go("cut", resume=True)
    one, two = (load_state(tmp_path / folder / "checkpoints" / "last.safetensors") for folder in ("straight", "cut"))
    for part in ("model", "optimizer", "engine", "mixer", "anchor", "noise"):
        assert same(one[part], two[part]), part
    assert same(one["random"][0]["torch"], two["random"][0]["torch"])
    assert (tmp_path / "straight" / "history.csv").read_bytes() == (tmp_path / "cut" / "history.csv").read_bytes()


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_an_absent_task_rests_in_both_parts(tmp_path):
    data = rows()
    data.targets("size")[SIZE:] = math.nan
    # The rows come shuffled: one batch of one epoch without any label of the task would do, so all but one row go.
    data.targets("size")[1:] = math.nan
    states, _ = snapshots("alternating", folder=tmp_path, source=data)
    own = {name for name in states[0] if "size" in name and "running" not in name and "tracked" not in name}
    moved = [bool(changed(before, after) & own) for before, after in itertools.pairwise(states)]
    assert sum(moved) == 1
    assert not any(moved[::2])


def test_the_conflict_monitor_changes_nothing_and_sees_only_shared_gradients(tmp_path):
    plain, looked = (fit("alternating", balancer="equal", monitor_every=every)[0] for every in (0, 1))
    assert_same(plain.state_dict(), looked.state_dict())
    by_layer = {"monitor_every": 1, "monitor_layers": True}
    assert_same(plain.state_dict(), fit("alternating", balancer="equal", **by_layer)[0].state_dict())
    _, run = snapshots("alternating", folder=tmp_path, balancer="mgda", settings=by_layer)
    steps = history(run)
    assert all(any(value for name, value in row.items() if "encoder.0" in name) for row in steps)
    assert [bool(row["conflict_rate"]) for row in steps] == [True, False] * 3
    assert [bool(row["weight.up"]) for row in steps] == [True, False] * 3


def test_a_part_that_waits_for_its_turn_is_no_reason_to_warn_and_a_detached_one_is():
    # One step an epoch: each part has no gradient in every second epoch.
    fit({"name": "alternating", "batch": "next"}, batch_size=ROWS, epochs=4)
    m = model()
    m.heads["up"].unused = nn.Parameter(torch.zeros(3))
    with pytest.warns(UserWarning, match=r"No gradient reached heads.up.unused in a whole epoch"):
        fit("alternating", m=m)


def test_penalties_of_weights_leave_what_is_fixed_alone(tmp_path):
    more = {"penalties": PenaltySettings(l1=0.1, l2=0.1), "optimizer": "sgd"}
    strategy = {"name": "hierarchical", "phases": [PHASES[0], {"tasks": "all"}]}
    states, _ = snapshots(strategy, folder=tmp_path, settings=more)
    for before, after in itertools.pairwise(states[:4]):
        assert not {name for name in changed(before, after) if "size" in name}


def tables():
    data = rows(missing=0.0)
    inputs = data.take(torch.arange(ROWS)).inputs
    return [
        TensorSource(inputs[:32], {"up": data.targets("up")[:32]}),
        TensorSource(inputs, {"size": data.targets("size")}),
    ]


def test_tables_of_their_own_train_level_by_level_and_phase_by_phase():
    for strategy, sampler in [
        ("hierarchical", "together"),
        ({"name": "hierarchical", "phases": PHASES}, "proportional"),
    ]:
        run = train(model(), tables(), settings=settings(strategy=strategy, sampler=sampler))
        seen = [{name for name in row if name.startswith("loss.")} for row in run.history]
        assert seen[-1] == {"loss.up", "loss.size"}
        assert seen[0] == ({"loss.up"} if sampler == "proportional" else seen[-1])


def test_the_model_is_left_as_it_was_found():
    m, _, _ = fit("alternating", unfreeze_every=2, freeze=("encoder.0",))
    assert all(p.requires_grad for p in m.parameters())
    assert all(module.training for module in m.modules())


REFUSED = [
    ({"strategy": "alternate"}, r"Unknown strategy 'alternate'.*Did you mean 'alternating'"),
    ({"strategy": {"name": "alternating", "batc": "next"}}, r"Unknown option 'batc'.*Did you mean 'batch'"),
    ({"strategy": {"name": "alternating", "batch": "sam"}}, r"strategy.batch: Unknown word 'sam'.*Did you mean 'same'"),
    ({"strategy": {"name": "hierarchical", "levels": ["up", "sise"]}}, r"levels: Unknown task 'sise'.*'size'"),
    ({"strategy": {"name": "hierarchical", "levels": ["up"]}}, r"levels leaves out 'size'. Every task is in one level"),
    ({"strategy": {"name": "hierarchical", "levels": [["up", "size"], "up"]}}, r"levels names 'up' 2 times"),
    ({"strategy": {"name": "hierarchical", "levels": ["up"], "phases": PHASES}}, r"both levels and phases"),
    ({"strategy": {"name": "hierarchical", "anchor": 0.1}}, r"anchor is 0.1; .* needs phases"),
    ({"strategy": {"name": "hierarchical", "phases": []}}, r"phases is empty"),
    ({"strategy": {"name": "hierarchical", "phases": [{"task": "up"}]}}, r"phase 1: Unknown option 'task'.*'tasks'"),
    ({"strategy": {"name": "hierarchical", "phases": [{"tasks": "upp"}]}}, r"phase 1: Unknown task 'upp'.*'up'"),
    ({"strategy": {"name": "hierarchical", "phases": [{"tasks": []}]}}, r"phase 1 has no task"),
    ({"strategy": {"name": "hierarchical", "phases": [{"tasks": "up"}, PHASES[1]]}}, r"phase 1 has no epochs"),
    ({"strategy": {"name": "hierarchical", "phases": [{"tasks": "up", "epochs": 0}]}}, r"epochs is 0; .* from 1"),
    ({"strategy": {"name": "hierarchical", "phases": [{"tasks": "up", "train": "head"}]}}, r"'head'.*'heads'"),
    ({"strategy": {"name": "hierarchical", "phases": PHASES[:2]}}, r"phases take 2 epochs, but the run has 3"),
    ({"strategy": {"name": "hierarchical", "phases": PHASES}, "epochs": 2}, r"2 epochs before the last, .* has 2"),
    ({"strategy": "alternating", "freeze": ("heads", "private")}, r"steps for the heads, and nothing of it is trained"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=str)
def test_what_cannot_be_is_refused(options, text):
    with pytest.raises(RecipeError, match=text):
        fit(**{"strategy": "joint", **options})


def test_models_and_tables_that_a_strategy_cannot_work_with_are_refused():
    with pytest.raises(RecipeError, match=r"steps for the shared part \(Separate shares nothing that is trained\)"):
        fit("alternating", sharing="separate")
    for strategy, text in [
        ("hierarchical", "levels, which share a batch, but the tasks' tables take turns. Use sampler: together"),
        ({"name": "alternating", "batch": "next"}, "2 tables take turns .* would always meet the same tables"),
    ]:
        with pytest.raises(RecipeError, match=text):
            train(model(), tables(), settings=settings(strategy=strategy, sampler="round_robin"))
