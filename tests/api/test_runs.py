"""From a table to a folder with everything in it, and on from there."""

import csv
import json
import re

import polars as pl
import pytest
from click.testing import CliRunner

import polytask as pt
from polytask.api import evaluate_run, predict_file, resume_run, summary
from polytask.cli import main
from polytask.errors import DataError, RecipeError
from polytask.recipes.load import write_yaml


@pytest.fixture
def done(recipe, tmp_path):
    return pt.run(recipe, out=tmp_path / "run", progress=False)


def test_a_run_leaves_what_the_readme_says(done, recipe):
    names = {path.name for path in done.path.iterdir()}
    assert names == {
        "bundle",
        "checkpoints",
        "history.csv",
        "metrics.json",
        "recipe.yaml",
        "report.html",
        "report.json",
        "run.json",
        "timings.csv",
    }
    metrics = json.loads((done.path / "metrics.json").read_text())
    assert set(metrics) == {"test", "validation"}
    assert set(metrics["test"]) == set(recipe["tasks"])
    assert 0 <= metrics["test"]["buys"]["auroc"] <= 1
    facts = json.loads((done.path / "run.json").read_text())
    assert facts["seed"] == 0
    assert facts["versions"]["torch"]
    with (done.path / "timings.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert not list(done.path.rglob(".*")), "unfinished files are left"


def test_the_resolved_recipe_gives_the_same_run(done, tmp_path):
    again = pt.run(done.path / "recipe.yaml", out=tmp_path / "again", progress=False)
    for name in ("metrics.json", "history.csv"):
        assert (again.path / name).read_bytes() == (done.path / name).read_bytes()


def test_the_report_is_one_file_that_loads_nothing(done):
    page = (done.path / "report.html").read_text()
    for task in ("buys", "segment", "spends", "visits", "rating", "interests"):
        assert task in page
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "<svg" in page


def test_a_bundle_predicts_on_a_machine_without_the_data(done, table):
    predictor = pt.load(done.path / "bundle")
    frame = pl.read_csv(table).drop(list(predictor.tasks))
    out = predictor.predict(frame)
    assert len(out) == 300
    assert set(predictor.tasks) <= set(out.columns)
    assert out["buys_probability"].is_between(0, 1).all()
    assert set(out["segment"].unique()) <= {"A", "B", "C"}
    # Loaded and trained models say the same.
    scores = evaluate_run(done.path, table)
    labelled = pl.read_csv(table).filter(pl.col("spends").is_not_null())
    own = predictor.predict(labelled, ["spends"])
    error = ((own["spends"] - labelled["spends"]) ** 2).mean() ** 0.5
    assert scores["spends"]["rmse"] == pytest.approx(error, rel=1e-5)
    pandas = predictor.predict(frame.to_pandas(), ["buys"])
    assert pandas["buys_probability"].to_list() == pytest.approx(out["buys_probability"].to_list(), abs=1e-6)


def test_predictions_are_written_in_the_asked_format(done, table, tmp_path):
    for suffix, read in ((".csv", pl.read_csv), (".parquet", pl.read_parquet), (".arrow", pl.read_ipc)):
        out = tmp_path / f"p{suffix}"
        assert predict_file(done.path, table, out, tasks=["buys"], keep=["age"]) == 300
        assert read(out).columns == ["age", "buys", "buys_probability"]
    with pytest.raises(RecipeError, match=r"unknown format '.xlsx'"):
        predict_file(done.path, table, tmp_path / "p.xlsx")
    with pytest.raises(DataError, match=r"Unknown task 'buyss'.*Did you mean 'buys'"):
        predict_file(done.path, table, tmp_path / "q.csv", tasks=["buyss"])


def test_predicting_without_a_column_names_it(done, table):
    frame = pl.read_csv(table).rename({"income": "incme"})
    with pytest.raises(DataError, match=r"no input column 'income'.*Did you mean 'incme'"):
        pt.load(done.path / "bundle").predict(frame)


def test_resuming_a_finished_run_changes_nothing(done):
    before = {name: (done.path / name).read_bytes() for name in ("metrics.json", "history.csv")}
    resume_run(done.path, progress=False)
    assert {name: (done.path / name).read_bytes() for name in before} == before


def test_an_existing_folder_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RecipeError, match=r"exists already.*polytask fit --resume"):
        pt.run({"data": {"table": "none.csv"}, "tasks": {"a": {"type": "binary"}}}, out=tmp_path / "run")


def test_data_that_cannot_be_used_leave_no_folder(recipe, tmp_path):
    with pytest.raises(DataError):
        pt.run({**recipe, "inputs": {"agee": "number"}}, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_summary_shows_scores_and_references(recipe, tmp_path):
    reference = {"report": {"reference": {"buys": {"trees": {"auroc": 0.9}}}}}
    done = pt.run({**recipe, **reference}, out=tmp_path / "run", progress=False)
    text = summary(done.path)
    assert "trees: auroc 0.9000" in text
    assert str(done.path / "report.html") in text


def test_separate_tables_train_together(tmp_path, people):
    first, second = people(200, 1), people(60, 2)
    first.drop("spends").write_csv(tmp_path / "a.csv")
    second.drop("buys").write_parquet(tmp_path / "b.parquet")
    for sampler in ("proportional", "together", "loss_driven"):
        done = pt.run(
            {
                "data": {
                    "tables": {
                        "buys": {"table": str(tmp_path / "a.csv")},
                        "spends": {"table": str(tmp_path / "b.parquet")},
                    }
                },
                "inputs": {"age": "number", "job": "category", "income": "number"},
                "tasks": {"buys": {"type": "binary"}, "spends": {"type": "regression"}},
                "training": {"epochs": 2, "batch_size": 32, "batch_sizes": {"spends": 16}, "sampler": sampler},
            },
            out=tmp_path / sampler,
            progress=False,
        )
        assert set(done.scores) == {"buys", "spends"}


class TestCommands:
    def run(self, *arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    def test_fit_evaluate_predict_report(self, recipe, table, tmp_path):
        path = tmp_path / "people.yaml"
        path.write_text(write_yaml(recipe))
        fitted = self.run("fit", path, "--out", tmp_path / "r", "--seed", "3", "--set", "training.epochs=1", "--quiet")
        assert fitted.exit_code == 0, fitted.output
        assert "Scores on the test rows" in fitted.output
        assert json.loads((tmp_path / "r" / "run.json").read_text())["seed"] == 3
        scores = self.run("evaluate", tmp_path / "r", "--json")
        assert json.loads(scores.output) == json.loads((tmp_path / "r" / "metrics.json").read_text())["test"]
        predicted = self.run("predict", tmp_path / "r", table, "--out", tmp_path / "p.csv")
        assert "300 rows" in predicted.output
        (tmp_path / "r" / "report.html").unlink()
        assert self.run("report", tmp_path / "r").exit_code == 0
        assert (tmp_path / "r" / "report.html").exists()

    def test_errors_are_one_line_without_a_traceback(self, tmp_path):
        missing = self.run("fit", tmp_path / "none.yaml")
        assert missing.exit_code == 1
        assert missing.output.startswith("Error: There is no recipe at")
        assert self.run("evaluate", tmp_path / "none").output.startswith("Error: There is no run at")

    def test_options_that_do_not_go_together(self, tmp_path):
        assert "Give a RECIPE, or --resume RUN" in self.run("fit").output
        both = self.run("fit", "--resume", tmp_path, "--seed", "1")
        assert "--resume takes everything from the run" in both.output

    def test_list_names_every_entry(self):
        from polytask import catalogue, registry

        for group in catalogue.GROUPS:
            output = self.run("list", group).output
            assert all(name in output for name in registry.entries(group))


def test_a_run_can_be_resumed_with_and_without_its_display(recipe, tmp_path, capsys):
    done = pt.run(recipe, out=tmp_path / "run", progress=True)
    before = (done.path / "metrics.json").read_bytes()
    resume_run(done.path, progress=False)
    assert (done.path / "metrics.json").read_bytes() == before


def test_the_report_gets_the_rows_that_have_conflict_figures(recipe, tmp_path):
    changes = {"balancer": {"name": "mgda", "at": "features"}, "training": {**recipe["training"], "epochs": 20}}
    done = pt.run({**recipe, **changes}, out=tmp_path / "run", progress=False)
    record = json.loads((done.path / "report.json").read_text())
    assert record["balancing"]
    assert all("conflict_rate" in row for row in record["balancing"])
    assert record["tasks"][0]["labelled"]["train"] > 100
