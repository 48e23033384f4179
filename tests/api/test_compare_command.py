"""polytask compare on the command line."""

import pytest
from click.testing import CliRunner

from polytask.analysis.pool import Pool
from polytask.cli import main
from polytask.recipes.load import write_yaml


@pytest.fixture
def command(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks = {name: recipe["tasks"][name] for name in ("buys", "spends")}
    (tmp_path / "people.yaml").write_text(write_yaml({**recipe, "tasks": tasks}))
    return lambda *arguments: CliRunner().invoke(main, ["compare", "people.yaml", "--jobs", "1", *arguments])


def test_table_conclusion_and_report(command, tmp_path):
    done = command("--balancers", "uncertainty", "--seeds", "1", "--set", "training.epochs=1")
    assert done.exit_code == 0, done.output
    assert "hard + uncertainty" in done.output
    assert "With one seed no interval can be given" in done.output
    assert "1: separate, seed 0: buys auroc" in done.output
    assert done.output.rstrip().endswith("Report: comparisons/people/report.html")
    assert (tmp_path / "comparisons" / "people" / "report.html").exists()


def test_an_unknown_name_ends_before_anything_starts(command, monkeypatch):
    def refuse(*given, **options):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(Pool, "__init__", refuse)
    done = command("--balancers", "equal,uncertanty")
    assert done.exit_code == 1
    assert "Did you mean 'uncertainty'?" in done.output


def test_ctrl_c_says_how_to_go_on(command, monkeypatch):
    monkeypatch.setattr(Pool, "wait", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    done = command("--balancers", "equal")
    assert done.exit_code == 130
    assert "the same command goes on in comparisons/people" in done.output


def test_help_shows_examples():
    done = CliRunner().invoke(main, ["compare", "--help"])
    assert 'compare recipes/census.yaml --balancers "equal,cagrad(c=0.4)" --sharings hard,mmoe' in done.output
