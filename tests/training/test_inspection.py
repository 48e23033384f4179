"""What a sharing shows of itself is kept over training: labelled, bounded, and the same after a resume."""

import itertools
from types import SimpleNamespace

import pytest
import torch

import polytask as pt
from polytask.data.source import TensorSource
from polytask.sharing import LTB, MTAN, CrossStitch, Hard, MMoE, Sluice, TaskAttention
from polytask.training.fit import train
from polytask.training.inspection import MOST_EPOCHS, MOST_NUMBERS, MOST_TOGETHER, SharingLog, matrices
from polytask.training.settings import TrainingSettings

TASKS = ["up", "size"]


def layers():
    return torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU()),
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()),
    )


def shows(values):
    """A sharing that shows these matrices."""
    return SimpleNamespace(inspect=lambda: values)


def source(rows=60):
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0))
    return TensorSource(x, {"up": (x[:, 0] > 0).float(), "size": x.norm(dim=1)})


def run(sharing, validation=(), callbacks=(), **options):
    torch.manual_seed(1)
    tasks = [pt.tasks.binary("up"), pt.tasks.regression("size")]
    data = source()
    model = pt.MultiTaskModel(sharing(layers()), tasks, example=data.example)
    path, resume = options.pop("path", None), options.pop("resume", False)
    settings = TrainingSettings(**{"epochs": 6, "batch_size": 20, "seed": 3, "lr": 0.05, **options})
    return train(model, [data], validation, settings=settings, callbacks=callbacks, path=path, resume=resume)


def test_gates_are_kept_for_every_epoch_with_tasks_and_experts():
    done = run(lambda encoder: MMoE(encoder, experts=3))
    (entry,) = done.sharing
    assert (entry["name"], entry["axes"]) == ("gates", ("task", "expert"))
    assert (entry["rows"], entry["columns"]) == (("up", "size"), ("1", "2", "3"))
    assert entry["epochs"] == (1, 2, 3, 4, 5, 6)
    sums = torch.tensor(entry["values"]).sum(-1)
    torch.testing.assert_close(sums, torch.ones(6, 2), rtol=1e-4, atol=0)
    assert entry["values"][0] != entry["values"][-1]


def test_stitches_after_training_are_those_of_the_model():
    done = run(CrossStitch)
    assert [entry["name"] for entry in done.sharing] == ["stitch 1", "stitch 2"]
    shown = done.model.sharing.inspect()
    for entry in done.sharing:
        assert entry["rows"] == entry["columns"] == ("up", "size")
        torch.testing.assert_close(torch.tensor(entry["values"][-1]), shown[entry["name"]], rtol=1e-5, atol=0)


def test_a_sharing_without_anything_to_show_leaves_nothing():
    done = run(Hard)
    assert done.sharing == []


def test_with_validation_only_validated_epochs_are_kept():
    done = run(CrossStitch, validation=[source()], validate_every=2, select="last")
    assert done.sharing[0]["epochs"] == (2, 4, 6)


def test_the_chosen_epoch_shows_the_chosen_weights():
    done = run(CrossStitch, validation=[source(30)], lr=1.0, epochs=5)
    entry = done.sharing[0]
    at = entry["epochs"].index(done.best_epoch)
    assert at < 4, "the last epoch must not be the best one, or this shows nothing"
    shown = done.model.sharing.inspect()["stitch 1"]
    torch.testing.assert_close(torch.tensor(entry["values"][at]), shown, rtol=1e-5, atol=0)


class Die(pt.Callback):
    def on_epoch_end(self, loop, row):
        if loop.epoch == 4:
            raise RuntimeError("killed")


@pytest.mark.parametrize("sharing", [MMoE, CrossStitch])
def test_a_resumed_run_shows_the_same(sharing, tmp_path):
    whole = run(sharing, validation=[source()], path=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        run(sharing, validation=[source()], path=tmp_path / "killed", callbacks=[Die()])
    resumed = run(sharing, validation=[source()], path=tmp_path / "killed", resume=True)
    assert whole.sharing[0]["epochs"] == (1, 2, 3, 4, 5, 6)
    assert resumed.sharing == whole.sharing


def test_long_runs_keep_epochs_evenly_and_the_newest():
    log = SharingLog(TASKS)
    for epoch in range(1, 501):
        log.look(shows({"beta": torch.full((2, 2), float(epoch))}), epoch)
        epochs = log.entries()[0]["epochs"]
        assert len(epochs) <= MOST_EPOCHS
        assert (epochs[0], epochs[-1]) == (1, epoch)
    gaps = {after - before for before, after in itertools.pairwise(epochs[:-1])}
    assert gaps == {16}
    assert [matrix[0][0] for matrix in log.entries()[0]["values"]] == list(epochs)


def test_a_chosen_epoch_that_was_thinned_out_comes_back_in_its_place():
    log = SharingLog(TASKS)
    for epoch in range(1, 301):
        log.look(shows({"beta": torch.zeros(2, 2)}), epoch)
    before = log.entries()[0]["epochs"]
    assert 38 not in before
    log.settle(shows({"beta": torch.ones(2, 2)}), 38)
    (entry,) = log.entries()
    assert entry["epochs"] == tuple(sorted([*before, 38]))
    assert entry["values"][entry["epochs"].index(38)] == ((1.0, 1.0), (1.0, 1.0))


def test_a_restored_log_goes_on_as_the_first_one_does():
    first, second = SharingLog(TASKS), SharingLog(TASKS)
    for epoch in range(1, 301):
        if epoch == 200:
            second.load_state_dict(first.state_dict())
        looking = shows({"beta": torch.full((2, 2), epoch / 7)})
        first.look(looking, epoch)
        if epoch >= 200:
            second.look(looking, epoch)
    assert second.entries() == first.entries()


def test_large_matrices_lose_columns_evenly_and_keep_their_numbers():
    log = SharingLog(TASKS)
    log.look(shows({"scales after x": torch.arange(20_000.0).reshape(2, 10_000)}), 1)
    (entry,) = log.entries()
    assert entry["size"] == (2, 10_000)
    assert len(entry["columns"]) == MOST_NUMBERS // 2
    # The name of a column is its place in the whole matrix, counted from 1.
    assert [int(name) - 1 for name in entry["columns"]] == list(entry["values"][0][0])
    places = torch.tensor(entry["values"][0][0])
    assert set(places.diff().tolist()) == {4.0, 5.0}


def test_many_matrices_share_the_room():
    log = SharingLog(TASKS)
    log.look(shows({f"scales after {n}": torch.zeros(2, 1000) for n in range(40)}), 1)
    assert sum(2 * len(entry["columns"]) for entry in log.entries()) <= MOST_TOGETHER
    assert len(log.entries()) == 40


def test_rows_of_a_matrix_that_is_too_high_are_left_out_too():
    log = SharingLog([])
    log.look(shows({"other": torch.arange(9000.0).reshape(9000, 1)}), 1)
    (entry,) = log.entries()
    assert (len(entry["rows"]), len(entry["columns"]), entry["axes"]) == (4096, 1, ("row", "column"))
    assert [int(name) - 1 for name in entry["rows"]] == [row[0] for row in entry["values"][0]]


def test_vectors_of_tasks_become_rows_in_the_order_of_the_tasks():
    found = {
        "mask of b after stage 1": torch.tensor([3.0, 4.0]),
        "mask of a b after stage 1": torch.tensor([1.0]),
        "loose": torch.tensor([7.0, 8.0]),
        "cube": torch.arange(8.0).reshape(2, 2, 2),
    }
    made = matrices(found, ["a b", "b", "c"])
    assert set(made) == {"loose", "cube", "mask after stage 1"}
    nan = float("nan")
    wanted = torch.tensor([[1.0, nan], [3.0, 4.0], [nan, nan]])
    torch.testing.assert_close(made["mask after stage 1"], wanted, equal_nan=True)
    assert made["loose"].tolist() == [[7.0, 8.0]]
    assert made["cube"].shape == (2, 4)


def test_a_task_named_as_an_entry_is_not_taken_for_it():
    made = matrices({"tasks": torch.eye(2), "mask of tasks": torch.ones(3)}, ["tasks", "other"])
    assert made["tasks"].shape == (2, 2)
    assert made["mask"].shape == (2, 3)


def test_epochs_in_which_attention_had_other_tokens_are_left_out():
    log = SharingLog(TASKS)
    for epoch, tokens in enumerate((4, 5, 5), start=1):
        log.look(shows({f"attention of {task}": torch.ones(tokens) / tokens for task in TASKS}), epoch)
    (entry,) = log.entries()
    assert (entry["epochs"], entry["size"]) == ((2, 3), (2, 5))


@pytest.mark.parametrize(
    ("sharing", "wanted"),
    [
        (LTB, {"stage 2": ("node", "node"), "tasks": ("task", "node")}),
        (MTAN, {"mask after stage 1": ("task", "channel"), "mask after stage 2": ("task", "channel")}),
        (TaskAttention, {"attention": ("task", "token")}),
        (Sluice, {"alpha 1": ("subspace", "subspace"), "alpha 2": ("subspace", "subspace"), "beta": ("task", "layer")}),
    ],
)
def test_what_the_architectures_show_is_named(sharing, wanted):
    done = run(sharing, epochs=2)
    assert {entry["name"]: entry["axes"] for entry in done.sharing} == wanted
    for entry in done.sharing:
        kinds = zip(entry["axes"], (entry["rows"], entry["columns"]), strict=True)
        assert all(names == ("up", "size") for axis, names in kinds if axis == "task")
        assert all(names == ("up · 1", "up · 2", "size · 1", "size · 2") for axis, names in kinds if axis == "subspace")
