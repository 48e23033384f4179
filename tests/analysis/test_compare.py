"""The comparison as a user meets it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import polytask as pt
from polytask.analysis.claims import Claims
from polytask.analysis.comparison import Comparison
from polytask.analysis.folder import Folder
from polytask.analysis.jobs import write_json
from polytask.analysis.rows import open_rows, read_part, write_rows
from polytask.api import run
from polytask.errors import DataError, RecipeError, TrainingError
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe, write_yaml


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "copy")
    return tmp_path / "copy"


def results(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}


def test_every_method_scores_as_polytask_fit_does(finished, recipe, tmp_path):
    # The same recipe and seed, in a worker on mapped rows and by itself.
    ways = {"hard + pcgrad": ["balancer=pcgrad"], "separate": ["model.sharing=separate"]}
    for name, changes in ways.items():
        alone = run(
            recipe, overrides=[*changes, "training.seed=4"], out=tmp_path / name.replace(" ", ""), progress=False
        )
        metrics = json.loads((alone.path / "metrics.json").read_text())
        assert finished[name].scores[4] == metrics["test"]
        assert finished[name].validation[4] == metrics["validation"]


def test_the_folder_has_everything_and_no_rows(finished):
    names = {path.name for path in finished.path.iterdir()}  # and no claim of a process that worked here
    assert names == {
        "comparison.json", "lock", "openings.json", "report.html", "results", "results.json", "table.md", "table.tex",
        "weights",
    }  # fmt: skip
    page = (finished.path / "report.html").read_text()
    assert page.count("<svg") == 1 + 3 + 3 + 2  # gains, seeds of tasks, pairs of tasks, costs
    assert "hard\N{NO-BREAK SPACE}+\N{NO-BREAK SPACE}pcgrad" in page
    assert "The test rows were opened once, when everything had been trained." in page
    again = Comparison.load(finished.path)
    assert repr(again) == repr(finished)
    assert again.to_dict() == finished.to_dict()


def test_interrupted_by_kill_goes_on_and_trains_nothing_twice(recipe, tmp_path):
    slow = {**recipe, "training": {**recipe["training"], "epochs": 20}}
    path, out = tmp_path / "slow.yaml", tmp_path / "out"
    path.write_text(write_yaml(slow))
    line = [sys.executable, "-m", "polytask.cli", "compare", path, "--seeds", "3", "--jobs", "1", "--out", out]
    process = subprocess.Popen(list(map(str, line)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while len(list(out.glob("results/*.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # the worker ends as well
    before = results(out)
    found = pt.compare(path, out=out, jobs=1)
    after = results(out)
    assert {name: after[name] for name in before} == before
    assert found.trained == 6 - len(before)
    assert len(found.seeds) == 3  # as it was asked for at first
    assert not (out / "rows").exists()


def test_a_method_and_a_seed_are_added_and_the_rest_is_kept(copied, recipe):
    before = results(copied)
    found = pt.compare(recipe, balancers="uncertainty", sharings="mmoe(experts=2)", seeds=2, jobs=1, out=copied)
    assert found.names() == ["separate", "trees", "hard + equal", "hard + pcgrad", "mmoe(experts=2) + uncertainty"]
    assert found.trained == 2
    after = results(copied)
    assert {name: after[name] for name in before} == before
    assert found["mmoe(experts=2) + uncertainty"].parameters > found["hard + equal"].parameters
    first = "separate, trees, hard + equal, hard + pcgrad"
    told = f"The test rows were opened 2 times, for {first}; then for mmoe(experts=2) + uncertainty."
    assert told in (copied / "report.html").read_text()


def test_a_worker_that_trains_cannot_read_test_rows(recipe, tmp_path):
    built = build(load_recipe(recipe))
    write_rows(built, tmp_path, ("train", "validation"))
    rows = open_rows(str(tmp_path))
    assert set(rows.sources) == {"train", "validation"}
    assert len(rows.sources["train"][0]) == len(built.sources["train"][0])
    with pytest.raises(TrainingError, match="There is no checkpoint"):
        read_part(tmp_path, "test")


def test_other_recipe_data_budget_or_folder(copied, recipe, table, tmp_path):
    with pytest.raises(RecipeError, match=r"compares another recipe: training\.epochs was 2 and is 3"):
        pt.compare(recipe, overrides=["training.epochs=3"], out=copied, jobs=1)
    with pytest.raises(RecipeError, match=r"has the budget trials=1, not trials=2"):
        pt.compare(recipe, budget="trials=2", out=copied, jobs=1)
    plan = json.loads((copied / "comparison.json").read_text())
    plan["data"] = "0" * 32
    (copied / "comparison.json").write_text(json.dumps(plan))
    with pytest.raises(RecipeError, match="on other rows: the data have changed"):
        pt.compare(recipe, out=copied, jobs=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(RecipeError, match="exists and holds no comparison"):
        pt.compare(recipe, out=tmp_path / "mine", jobs=1)


def test_a_folder_of_an_earlier_version_goes_on_if_only_options_that_it_did_not_set_are_new(copied):
    folder = Folder(copied)
    plan, plain = folder.plan(), json.loads((copied / "comparison.json").read_text())
    del plain["recipe"]["training"]["augment"]
    write_json(copied / "comparison.json", plain)
    assert folder.settle(plan).to_dict() == plan.to_dict()
    assert json.loads((copied / "comparison.json").read_text())["recipe"] == plan.recipe
    plain["recipe"]["training"]["forgotten"] = 1
    write_json(copied / "comparison.json", plain)
    with pytest.raises(RecipeError, match=r"another version of polytask.*Unknown key 'forgotten'"):
        folder.settle(plan)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"balancers": "equal,pcgard"}, r"Unknown balancer 'pcgard'.*Did you mean 'pcgrad'\?"),
        ({"sharings": "hadr"}, r"Unknown sharing 'hadr'.*Did you mean 'hard'\?"),
        ({"baselines": "tree"}, r"Unknown baseline 'tree'.*Did you mean 'trees'\?"),
        ({"balancers": "cagrad(d=1)"}, r"Method 'hard \+ cagrad\(d=1\)'.*Unknown option 'd'"),
        ({"balancers": "pcgrad", "sharings": "separate"}, r"Method 'separate \+ pcgrad'.*share none"),
        ({"balancers": "equal(", }, "brackets in 'equal\\(' do not match"),
        ({"balancers": "two words"}, "'two words' is no name"),
        ({"balancers": "cagrad(0.4)"}, "'0.4' in 'cagrad\\(0.4\\)' is no option"),
        ({"balancers": []}, "balancers is empty"),
        ({"balancers": [{"nam": "equal"}]}, "has no 'name'. Did you mean 'nam'"),
        ({"budget": "trials=0"}, "budget is 'trials=0'; write trials=NUMBER"),
        ({"budget": "forever"}, "write trials=NUMBER"),
        ({"baselines": "tuned_static"}, "budget is one trial"),
        ({"seeds": 0}, "seeds is 0; at least 1"),
        ({"overrides": ["data.split.validation=0"]}, "chooses on validation rows, and this recipe has none"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_before_anything_trains(recipe, tmp_path, asked, message):
    with pytest.raises(RecipeError, match=message):
        pt.compare(recipe, out=tmp_path / "out", jobs=1, **asked)
    assert not (tmp_path / "out" / "results").exists()


def without_times(found):
    plain = found.to_dict()
    for name in ("trained", "worker_seconds"):
        plain.pop(name)
    for method in plain["methods"]:
        for name in ("seconds", "search_seconds", "peak_memory_bytes"):
            method.pop(name)
    return plain


def test_two_processes_share_a_comparison_and_find_what_one_finds(finished, recipe, tmp_path):
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(write_yaml(recipe))
    asked = ["--balancers", "equal,pcgrad", "--baselines", "trees", "--seeds", "2", "--jobs", "1", "--out", out]
    line = [sys.executable, "-m", "polytask.cli", "compare", path, *asked]
    process = subprocess.Popen(list(map(str, line)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(out.glob("results/*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    # It stands still with what it has claimed while this one works, and goes on when this one has to wait or is done.
    process.send_signal(signal.SIGSTOP)
    first = len(list(out.glob("results/*.json")))
    assert first < 7

    def say(text):
        if text.startswith("Waiting"):
            process.send_signal(signal.SIGCONT)

    found = pt.compare(recipe, balancers="equal,pcgrad", baselines="trees", seeds=2, jobs=1, out=out, say=say)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    assert 0 < found.trained <= 7 - first
    once = {**without_times(finished), "title": found.title}
    assert without_times(found) == once
    again = Comparison.load(out)  # as the other process wrote it
    assert again.trained + found.trained == 7
    assert {**without_times(again), "title": found.title} == once
    assert not (out / "rows").exists()
    assert not (out / "claims").exists()


def test_a_training_that_another_process_does_is_waited_for_and_what_it_adds_is_taken_up(copied, recipe):
    result, of_test = sorted((copied / "results").glob("hard-pcgrad-seed4-*"))
    result.unlink()
    of_test.unlink()
    said = []
    with Claims(copied) as other:
        assert other.take(result.stem)

        def say(text):
            said.append(text)
            if text.startswith("Waiting"):
                plan = json.loads((copied / "comparison.json").read_text())
                added = {**plan["methods"][-1], "name": "hard + dwa", "balancer": {"name": "dwa"}}
                write_json(copied / "comparison.json", {**plan, "methods": [*plan["methods"], added]})
                other.drop(result.stem)

        found = pt.compare(recipe, jobs=1, out=copied, say=say)
    assert said[0].startswith("Waiting for what another process does")
    assert [text.partition(":")[0] for text in said[1:]] == [
        "1",
        "2",
        "3",
        "Scoring 3 trained models on the test rows.",
    ]
    assert found.names() == ["separate", "trees", "hard + equal", "hard + pcgrad", "hard + dwa"]
    assert Comparison.load(copied).names() == found.names()


def test_one_seed_a_training_that_diverges_and_test_rows_that_are_not_on_disk_before_the_end(recipe, tmp_path):
    seen = []
    out = tmp_path / "out"

    def look(text):
        seen.append((text.startswith("Scoring"), any(out.glob("rows/*/test.safetensors"))))

    huge = {"name": "static", "weights": {"up": 1e38, "size": 1e38, "kind": 1e38}}
    plain = {**recipe, "training": {**recipe["training"], "optimizer": "sgd"}}
    found = pt.compare(plain, balancers=["equal", huge], seeds=1, jobs=1, out=out, say=look)
    assert seen == [(False, False), (False, False), (False, False), (True, False)]
    assert found.conclusion[0].startswith("With one seed no interval can be given")
    assert "one seed, so no interval can be given" in (out / "table.md").read_text()
    assert not found.interval("separate", "up", "auroc").known
    (name,) = [name for name in found.names() if "static" in name]
    assert set(found[name].failed) == {3}
    assert any(f"{name} failed with 1 of 1 seeds" in line for line in found.conclusion)
    assert "Trainings that failed" in (out / "report.html").read_text()
    assert Comparison.load(out).to_dict() == found.to_dict()


def test_a_search_chooses_on_validation_rows_and_is_reused(recipe, tmp_path):
    asked = {"balancers": "cagrad", "baselines": "tuned_static", "budget": "trials=3", "seeds": 2, "jobs": 1}
    recipe = {**recipe, "index": "up.auroc - 0.1 * size.rmse", "training": {**recipe["training"], "select": "index"}}
    found = pt.compare(recipe, out=tmp_path / "out", **asked)
    assert found.trained == 3 * 3 + 3  # three methods; the chosen trial is the first seed's training
    for method in found.methods:
        assert len(method.trials) == 3
        best = max(method.trials, key=lambda trial: trial["value"])
        assert method.settings == best["settings"]
        validation = method.validation[3]
        assert best["value"] == pytest.approx(validation["up"]["auroc"] - 0.1 * validation["size"]["rmse"])
        assert "training.lr" in method.settings
    assert "balancer.c" in found["hard + cagrad"].settings
    assert {f"balancer.weights.{task}" for task in ("up", "size", "kind")} < set(found["tuned_static"].settings)
    assert len(list((tmp_path / "out" / "weights").iterdir())) == 3 * 2
    # Chosen again from what the searches wrote down, after what came of it and Optuna's stores are gone.
    (tmp_path / "out" / "results.json").unlink()
    for store in (tmp_path / "out" / "searches").glob("*.sqlite3"):
        store.unlink()
    again = pt.compare(recipe, out=tmp_path / "out", jobs=1)
    assert again.trained == 0
    assert [m.settings for m in again.methods] == [m.settings for m in found.methods]
    assert again.to_dict()["figures"] == found.to_dict()["figures"]


def test_no_results_to_load(tmp_path):
    with pytest.raises(DataError, match=r"has no results\.json"):
        Comparison.load(tmp_path)


def test_torchrun_is_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="without torchrun"):
        pt.compare(recipe, out=tmp_path / "out")
