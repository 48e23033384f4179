"""Every registered balancer keeps to what all must, and to the traits that it declares."""

import importlib
import inspect
import pkgutil

import pytest

from polytask import catalogue, registry
from polytask.balancing.base import Balancer
from polytask.testing.balancers import CHECKS

OPTIONS = {"static": lambda tasks: {"weights": {task: 1.0 + int(task[-1]) for task in tasks}}}


WITHOUT_PAPER = ("sum", "mean")


def maker(key):
    return lambda tasks: registry.build("balancers", key, OPTIONS.get(key, lambda _: {})(tasks))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("key", catalogue.BALANCERS)
def test_conforms(key, check):
    if check == "reference" and key in WITHOUT_PAPER:
        pytest.skip("the plain sum and mean come from no paper")
    CHECKS[check](maker(key))


@pytest.mark.parametrize("key", catalogue.BALANCERS)
def test_help_is_the_first_line_of_the_docstring(key):
    assert catalogue.BALANCERS[key].help == inspect.cleandoc(registry.get("balancers", key).__doc__).splitlines()[0]


def concrete(cls):
    for child in cls.__subclasses__():
        if not inspect.isabstract(child):
            yield child
        yield from concrete(child)


def test_every_balancer_class_of_the_package_is_registered():
    families = [importlib.import_module(f"polytask.balancing.{name}") for name in ("loss", "gramian", "gradient")]
    for family in families:
        for module in pkgutil.iter_modules(family.__path__, f"{family.__name__}."):
            importlib.import_module(module.name)
    homes = tuple(f"{family.__name__}." for family in families)
    known = {registry.get("balancers", key) for key in catalogue.BALANCERS}
    missing = {cls for cls in concrete(Balancer) if cls.__module__.startswith(homes)} - known
    assert not missing
