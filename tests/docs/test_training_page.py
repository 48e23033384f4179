"""The page about training schemes: its examples run, and its recipes can be used."""

import doctest
import re
from pathlib import Path

import yaml

from polytask.recipes.load import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_examples_of_the_page_run():
    examples = blocks(r"\{doctest\}")
    assert len(examples) == 4
    test = doctest.DocTestParser().get_doctest("\n".join(examples), {}, "training.md", "training.md", 0)
    told = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test, out=told.append).failed == 0, "".join(told)


def test_the_recipes_of_the_page_are_valid():
    snippets = blocks("yaml")
    assert len(snippets) == 4
    for snippet in snippets:
        whole = {"data": {"table": "a.csv"}, "tasks": {"up": {"type": "binary"}}, **yaml.safe_load(snippet)}
        assert load_recipe(whole).training
