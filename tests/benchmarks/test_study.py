"""Studies of architectures: intervals, tables, and going on where a study was stopped."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("study")
    for name in ("study", "census_sharing", "fashion_sharing"):
        sys.modules.pop(name, None)


def row(name, seed, score, form="f"):
    test = {"a": {"accuracy": score}}
    return {"form": form, "name": name, "seed": seed, "epoch": 1, "seconds": 2.0, "parameters": 1234, "test": test}


COLUMNS = {"a accuracy": ("a", "accuracy", 3)}


def test_intervals_are_those_of_student(study):
    stats = pytest.importorskip("scipy.stats")
    values = [0.91, 0.93, 0.92, 0.97]
    for count in (2, 3, 4):
        mean, half = study.interval(values[:count])
        low, high = stats.t.interval(0.95, count - 1, np.mean(values[:count]), stats.sem(values[:count]))
        assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-4)
    assert np.isnan(study.interval([0.9])[1])


def test_tables_have_means_and_differences_seed_by_seed(study):
    rows = [
        row("hard", 0, 0.5),
        row("mmoe", 0, 0.6),
        row("hard", 1, 0.7),
        row("mmoe", 1, 0.8),
        row("mmoe", 0, 0.1, "g"),
    ]
    assert "| `hard` | 1,234 | 2 | 0.600 ± 1.271 | 2 |" in study.table(rows, "f", COLUMNS)
    # Both seeds gained 0.1, however far the seeds are from each other.
    assert study.beside(rows, "f", "hard", COLUMNS).splitlines()[2] == "| `mmoe` | +0.100 ± 0.000 |"
    assert "| `mmoe` | 1,234 | 1 | 0.100 | 2 |" in study.table(rows, "g", COLUMNS)


def test_a_study_goes_on_where_it_was(study, monkeypatch, tmp_path, capsys):
    ran = []

    def run_case(case, seed):
        ran.append((case.name, seed))
        return row(case.name, seed, 0.5)

    monkeypatch.setattr(study, "run_case", run_case)
    cases = [study.Case("f", name, "r.yaml", ()) for name in ("hard", "mmoe")]
    log = tmp_path / "log.jsonl"

    def start(*words):
        monkeypatch.setattr(sys, "argv", ["study", "--out", str(log), *words])
        study.main("About.", cases, {"f": COLUMNS}, log)

    start("--seeds", "0", "--only", "mmoe")
    start("--seeds", "0", "1")
    assert ran == [("mmoe", 0), ("hard", 0), ("hard", 1), ("mmoe", 1)]
    start("--table")
    start("--seeds", "2", "--minutes", "-1")
    assert len(ran) == 4
    assert "| `mmoe` | 1,234 | 2 | 0.500 ± 0.000 | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["census_sharing", "fashion_sharing"])
def test_the_recipes_of_a_study_can_be_read_with_its_changes(study, name, monkeypatch):
    from polytask.recipes.load import load_recipe

    monkeypatch.chdir(FOLDER.parent)
    module = importlib.import_module(name)
    for case in module.CASES:
        recipe = load_recipe(case.recipe, case.changes)
        chosen = recipe.model.sharing
        assert case.name == (chosen if isinstance(chosen, str) else chosen["name"])
        assert case.form in module.COLUMNS
