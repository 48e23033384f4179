"""The page about sharing: every registered architecture is described in full, and the page's examples run."""

import doctest
import re
import sys
from pathlib import Path

import pytest

from polytask import catalogue, registry

DOCS = Path(__file__).parents[2] / "docs"
# Facts from the papers: who copies whole networks, and who works stage by stage.
GROUPS = {
    "hard": "one trunk", "film": "one trunk", "lora": "one trunk", "adapters": "one trunk", "mtan": "one trunk",
    "separate": "whole copies", "mmoe": "whole copies", "soft": "whole copies", "esmm": "whole copies",
    "cross_stitch": "towers in lockstep", "ple": "towers in lockstep", "ltb": "towers in lockstep",
}  # fmt: skip


@pytest.fixture(scope="module")
def extension():
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        import polytask_sharings

        yield polytask_sharings
    finally:
        sys.path.remove(str(DOCS / "_ext"))


def test_the_examples_of_the_page_run():
    blocks = re.findall(r"^```\{doctest\}\n(.*?)^```$", (DOCS / "sharing.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "sharing.md", "sharing.md", 0)
    told = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test, out=told.append).failed == 0, "".join(told)


@pytest.mark.parametrize("key", catalogue.SHARINGS)
def test_every_architecture_is_described_in_full(extension, key):
    cls = registry.get("sharings", key)
    text = "\n".join(extension.described(key, cls))
    assert catalogue.SHARINGS[key].help in text
    for option in registry.options_of(cls):
        assert (f"* - ``{option}``\n" in text) == (option != "encoder")
    for field in ("class", "computation", "encoders", "penalties", "in the report"):
        assert re.search(rf"^:{field}: \S", text, re.MULTILINE)


def test_the_table_has_a_row_for_each_that_leads_to_its_section(extension):
    head, *rows = extension.rows()
    assert {len(row) for row in rows} == {len(head)}
    links = [re.fullmatch(r"`(\w+) <#sharing-([\w-]+)>`__", row[0]).groups() for row in rows]
    assert links == [(key, key.replace("_", "-")) for key in catalogue.SHARINGS]


def test_the_groups_that_are_seen_are_those_of_the_papers(extension):
    assert {key: extension.facts(key).group for key in GROUPS} == GROUPS


@pytest.mark.parametrize(
    ("key", "encoders"), [("mmoe", "any"), ("film", "named"), ("cross_stitch", "stages"), ("mtan", "named")]
)
def test_the_encoders_are_those_that_construction_takes(extension, key, encoders):
    assert extension.facts(key).encoders == encoders


@pytest.mark.parametrize(
    ("key", "penalties", "shows"),
    [
        ("dselect_k", ("entropy",), ("gates",)),
        ("soft", ("distance",), ()),
        ("sluice", ("orthogonality",), ("alpha", "beta")),
        ("ltb", (), ("stage", "tasks")),
        ("aitm", ("calibrator",), ("transfer",)),
    ],
)
def test_penalties_and_pictures_are_those_of_the_small_model(extension, key, penalties, shows):
    found = extension.facts(key)
    assert (found.penalties, found.shows) == (penalties, shows)
