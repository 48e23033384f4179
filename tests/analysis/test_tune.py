"""A search finds a better setting, goes on where it was, and refuses what cannot be."""

import json
import sqlite3

import pytest
import yaml
from click.testing import CliRunner

import polytask as pt
from polytask.analysis import tune_jobs
from polytask.analysis.rows import open_rows, write_rows
from polytask.analysis.tune_jobs import try_setting
from polytask.analysis.tuning import Setting, Tuning
from polytask.cli import main
from polytask.errors import RecipeError, TrainingError
from polytask.recipes.build import build
from polytask.recipes.load import dump_recipe, load_recipe

SPACE = {"training.lr": "log:1e-5..1e-1", "model.encoder.hidden": "[4],[8,4]", "balancer.name": "equal,uncertainty"}


def search(recipe, out, **options):
    return pt.tune(recipe, **{"space": SPACE, "trials": 6, "jobs": 1, "out": out, **options})


@pytest.fixture(scope="module")
def slow(recipe):
    """A recipe whose learning rate is far too low."""
    return {**recipe, "training": {**recipe["training"], "lr": 1e-5}}


@pytest.fixture(scope="module")
def done(slow, tmp_path_factory, here):
    return search(slow, tmp_path_factory.mktemp("tune") / "out")


def test_the_best_setting_beats_the_recipe_and_is_written_as_one(done, slow, tmp_path):
    (best,) = done.best
    assert len(done.settings) == 6
    assert best.scores[0] > 0.05 > done.as_it_stands[0] == 0.0
    assert best.values["training.lr"] > 1e-4
    written = yaml.safe_load((done.path / "best.yaml").read_text())
    assert written["training"]["lr"] == best.values["training.lr"]
    assert written["model"]["encoder"]["hidden"] == best.values["model.encoder.hidden"]
    assert written["balancer"] == {"name": best.values["balancer.name"]}
    # The value is the mean improvement over the recipe as it stands: train both as a person would.
    ours = pt.run(done.path / "best.yaml", out=tmp_path / "best", progress=False)
    base = pt.run(slow, out=tmp_path / "base", progress=False)
    wanted = pt.evaluation.Criterion("mean_improvement", ours.model.tasks)(ours.scores, base.scores)
    assert best.scores[0] == pytest.approx(wanted, rel=1e-4)
    page = (done.path / "report.html").read_text()
    assert "better than the recipe as it stands" in page
    assert "best so far" in page


def test_the_search_goes_on_and_draws_what_it_would_have_drawn(done, slow, tmp_path):
    first = search(slow, tmp_path / "out", trials=3)
    heard = []
    whole = search(slow, tmp_path / "out", trials=6, say=heard.append)
    assert first.settings == whole.settings[:3]
    assert [text.split(":")[0] for text in heard] == ["trial 3", "trial 4", "trial 5"]
    assert [(s.values, s.scores) for s in whole.settings] == [(s.values, s.scores) for s in done.settings]


def test_a_trial_that_was_cut_off_is_tried_again(done, slow, tmp_path):
    search(slow, tmp_path / "out", trials=2)
    with sqlite3.connect(tmp_path / "out" / "study.sqlite3") as store:
        store.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
    found = search(slow, tmp_path / "out", trials=2)
    assert [setting.number for setting in found.settings] == [0, 2]


def test_several_objectives_give_a_front(slow, tmp_path, here):
    found = search(slow, tmp_path / "out", trials=4, objectives="up.auroc,size.rmse")
    assert found.objectives == ("up.auroc", "size.rmse")
    scores = [setting.scores for setting in found.settings]
    front = [s for s in scores if not any(o[0] >= s[0] and o[1] >= s[1] and o != s for o in scores)]
    assert sorted(setting.scores for setting in found.best) == sorted(front)
    assert all(score[1] < 0 for score in scores)  # lower is better, so the sign is turned
    assert len(list((tmp_path / "out").glob("best-*.yaml"))) == len(found.best)


def test_a_key_of_the_encoding_reads_the_data_again(slow, tmp_path, here, monkeypatch):
    built = []
    monkeypatch.setattr(tune_jobs, "build", lambda recipe: built.append(recipe.preprocessing) or build(recipe))
    space = {"preprocessing.scale": "standard,quantile", "training.lr": "log:1e-3..1e-2"}
    found = search(slow, tmp_path / "out", space=space, trials=3)
    assert [dict(of)["scale"] for of in built] == [s.values["preprocessing.scale"] for s in found.settings]


def test_index_and_criterion_are_what_is_searched_for(slow, tmp_path, here):
    plain = {**slow, "index": "0.5*up.auroc + 0.5*kind.accuracy", "training": {**slow["training"], "select": "index"}}
    found = search(plain, tmp_path / "out", trials=2)
    assert found.objectives == ("index",)
    ours = pt.run(tmp_path / "out" / "best.yaml", out=tmp_path / "run", progress=False).scores
    assert found.best[0].scores[0] == pytest.approx(ours.index, rel=1e-5)


class Hopeless:
    """A trial that is given up after its first epoch."""

    def __init__(self):
        self.reports = []

    def report(self, value, epoch):
        self.reports.append(epoch)

    def should_prune(self):
        return True


def test_a_hopeless_trial_ends_early(slow, tmp_path, monkeypatch):
    built = build(load_recipe(slow))
    write_rows(built, tmp_path, ("train", "validation"))
    trial = Hopeless()
    monkeypatch.setattr(tune_jobs, "_trial", lambda *where: trial)
    plain = dump_recipe(load_recipe({**slow, "training": {**slow["training"], "epochs": 5}}))
    rows = open_rows(str(tmp_path))
    result = try_setting(rows, recipe=plain, reads=False, reference=None, store="x", study="y", trial=0)
    assert result["pruned"]
    assert result["epochs"] == 1
    assert trial.reports == [1]


def test_median_pruning_gives_up_what_lies_behind(slow, tmp_path, here):
    plain = {**slow, "training": {**slow["training"], "epochs": 4}}
    found = search(plain, tmp_path / "out", space={"training.lr": "log:1e-6..1e-1"}, trials=14)
    given_up = [setting for setting in found.settings if setting.state == "pruned"]
    assert given_up
    assert all(2 <= setting.epochs < 4 for setting in given_up)
    best = found.best[0].values["training.lr"]
    assert all(setting.values["training.lr"] < best for setting in given_up)


def test_trials_that_diverge_are_reported(slow, tmp_path, here):
    plain = {**slow, "training": {**slow["training"], "optimizer": "sgd"}}
    found = search(plain, tmp_path / "out", space={"training.lr": [1e-3, 1e30]}, trials=4)
    failed = [setting for setting in found.settings if setting.state == "fail"]
    assert failed
    assert all(setting.values["training.lr"] == 1e30 for setting in failed)
    assert "failed" in repr(found)
    with pytest.raises(TrainingError, match=r"None of 2 trials came to a value. The first failed"):
        search(plain, tmp_path / "other", space={"training.lr": [1e29, 1e30]}, trials=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"training.lrr": "0.1..0.2"}}, r"Unknown key 'lrr'.*Did you mean 'lr'\?"),
        (
            {"space": {"balancer.name": "equal,uncertanty"}},
            r"Unknown balancer 'uncertanty'.*Did you mean 'uncertainty'\?",
        ),
        ({"space": {"balancer.c": "0.1..0.5"}}, r"balancer.c=0.1 cannot be"),
        ({"space": {"training.lr.x": "1..2"}}, "'lr' is 1e-05, which has no keys below it"),
        ({"space": {"training.lr": "0.1"}}, "leaves nothing to choose"),
        ({"space": {"training.lr": [0.1]}}, r"\[0.1\] leaves nothing to choose"),
        ({"space": {"data.split.seed": "1..5"}}, "a search cannot change data"),
        ({"space": {"training.seed": "1..5"}}, "a search cannot change training.seed"),
        ({"trials": 0}, "trials is 0; at least one is needed"),
        ({"minutes": 0.0}, "minutes is 0; it has to be above 0"),
        ({"objectives": "up.auroc"}, "objectives has one, 'up.auroc'"),
        ({"objectives": "up.aurok,size"}, r"Did you mean 'auroc'\?"),
        ({"store": "nonsense"}, "The store 'nonsense' cannot be opened"),
    ],
)
def test_what_cannot_be_searched_is_refused(slow, tmp_path, here, options, message):
    with pytest.raises(RecipeError, match=message):
        search(slow, tmp_path / "out", **options)


def test_a_store_of_another_search_is_refused(done, slow, tmp_path):
    store = f"sqlite:///{done.path / 'study.sqlite3'}"
    with pytest.raises(RecipeError, match="is of another recipe, space, objectives or rows"):
        search(slow, tmp_path / "out", space={"training.lr": "0.1..0.2"}, store=store)
    with pytest.raises(RecipeError, match=r"is of another recipe: recipe.training.epochs was 2 and is 3"):
        search(slow, done.path, overrides=["training.epochs=3"])
    # The same search from another folder adds to the same store.
    found = search(slow, tmp_path / "second", store=store, trials=7)
    assert len(found.settings) == 7


def test_the_front_is_what_no_other_dominates():
    made = [Setting(i, {}, "complete", s) for i, s in enumerate([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.4, 0.4)])]
    found = Tuning("x", {}, ("a", "b"), (0.0, 0.0), (*made, Setting(4, {}, "fail", ())))
    assert [setting.number for setting in found.best] == [0, 2, 1]


def test_from_the_command_line(slow, tmp_path, here):
    path = tmp_path / "slow.yaml"
    path.write_text(yaml.safe_dump(slow))
    arguments = ["tune", str(path), "--space", "training.lr=log:1e-3..1e-1", "--trials", "2", "--jobs", "1"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "The best of 2 trials is trial" in done.output
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["settings"]) == 2
    wrong = CliRunner().invoke(main, ["tune", str(path), "--space", "training.lr"])
    assert wrong.exit_code == 1
    assert "--space training.lr: write KEY=VALUES" in wrong.output


@pytest.mark.slow
def test_workers_of_their_own_report_to_the_same_store(slow, tmp_path):
    plain = {**slow, "training": {**slow["training"], "epochs": 4}}
    found = search(plain, tmp_path / "out", space={"training.lr": "log:1e-6..1e-1"}, trials=16, jobs=2)
    assert len(found.settings) == 16
    assert any(setting.state == "pruned" for setting in found.settings)
    assert found.best[0].scores[0] > 0
