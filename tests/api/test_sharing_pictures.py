"""A run from a recipe leaves pictures of what its tasks share."""

import re

import pytest

import polytask as pt
from polytask.reporting import RunRecord


@pytest.mark.parametrize(
    ("sharing", "names", "columns"),
    [
        ({"name": "mmoe", "experts": 3}, ["gates"], ("1", "2", "3")),
        ({"name": "cross_stitch", "stages": [0]}, ["stitch 1"], ("buys", "spends")),
    ],
)
def test_a_recipe_leaves_pictures_of_its_sharing(recipe, tmp_path, sharing, names, columns):
    chosen = {name: recipe["tasks"][name] for name in columns if name in recipe["tasks"]} or {
        name: recipe["tasks"][name] for name in ("buys", "spends")
    }
    model = {**recipe["model"], "sharing": sharing}
    done = pt.run({**recipe, "tasks": chosen, "model": model}, out=tmp_path / "run", progress=False)
    record = RunRecord.load(done.path / "report.json")
    assert [entry.name for entry in record.sharing] == names
    entry = record.sharing[0]
    assert (entry.rows, entry.columns, entry.epochs) == (("buys", "spends"), columns, (1, 2))
    section = re.search(r'<section id="sharing">.*?</section>', (done.path / "report.html").read_text(), re.DOTALL)
    assert section is not None
    assert section[0].count("<svg") >= 3
    for task in ("buys", "spends"):
        assert task in section[0]


def test_plain_sharing_has_no_such_section(recipe, tmp_path):
    done = pt.run(recipe, out=tmp_path / "run", progress=False)
    assert '<section id="sharing">' not in (done.path / "report.html").read_text()
