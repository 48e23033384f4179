"""The page about balancing: every registered method is described in full, and the page's examples run."""

import doctest
import re
import sys
from pathlib import Path

import pytest

from polytask import catalogue, registry

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def extension():
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        import polytask_balancers

        yield polytask_balancers
    finally:
        sys.path.remove(str(DOCS / "_ext"))


def test_the_examples_of_the_page_run():
    blocks = re.findall(r"^```\{doctest\}\n(.*?)^```$", (DOCS / "balancing.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "balancing.md", "balancing.md", 0)
    told = []
    assert doctest.DocTestRunner().run(test, out=told.append).failed == 0, "".join(told)


def test_every_method_stands_in_exactly_one_list(extension):
    page = (DOCS / "balancing.md").read_text()
    listed = [key for kind in extension.KINDS if f":: {kind}\n" in page for key in extension.methods(kind)]
    assert sorted(listed) == sorted(catalogue.BALANCERS)


@pytest.mark.parametrize("key", catalogue.BALANCERS)
def test_every_method_is_described_in_full(extension, key):
    cls = registry.get("balancers", key)
    text = "\n".join(extension.described(key, cls))
    assert ":math:" in text or ".. math::" in text, "the docstring does not say which problem it solves"
    assert re.search(r"\bzeros?\b", extension.parts(cls)[""].lower()), "the docstring does not speak of zeros"
    for option in registry.options_of(cls):
        assert f"``{option.rstrip('_')}``\n" in text
    for field in ("kind", "needs", "promises", "example"):
        assert re.search(rf"^:{field}: \S", text, re.MULTILINE)
    assert "nan" not in re.search(r"^:example: (.*)$", text, re.MULTILINE)[1]


def test_the_example_is_computed_and_not_remembered(extension):
    # The shortest vector in the hull of (2, 0), (-1, 1) and 0 is 0; the sum is (1, 1).
    assert "update (0, 0)." in "\n".join(extension.described("mgda", registry.get("balancers", "mgda")))
    assert "update (1, 1)." in "\n".join(extension.described("sum", registry.get("balancers", "sum")))


def test_an_option_without_a_text_stops_the_build(extension):
    from polytask.balancing import base

    class Bare(base.LossWeighting):
        """A method that does not say what its option means."""

        def __init__(self, secret=1.0):
            super().__init__()

        def weigh(self, losses, tasks):
            return losses

    with pytest.raises(KeyError, match="secret"):
        extension.options(Bare)


def test_every_transform_stands_in_the_table(extension, tmp_path):
    from sphinx.application import Sphinx

    from polytask.balancing import transforms

    (tmp_path / "index.md").write_text("# t\n\n```{eval-rst}\n.. balancer-transforms::\n```\n")
    extensions = ["myst_parser", "polytask_balancers"]
    app = Sphinx(tmp_path, None, tmp_path / "o", tmp_path / "d", "text", {"extensions": extensions}, status=None)
    app.build()
    told = (tmp_path / "o" / "index.txt").read_text()
    for name in ("log_losses", "normalize_rows", "preference", "ema_gradients", "ema_weights", "rescale_to"):
        assert hasattr(transforms, name)
        assert f'"{name}(' in told
    assert '"ema_weights(beta=0.9)"' in told
