"""The list of architectures, written from the registry, the classes and one small model of each."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from docutils import nodes
from docutils.parsers.rst import Directive
from polytask_balancers import options, parts
from polytask_reference import parsed

TASKS = ("a", "b")
# Options without a default, for the small model.
NEEDED = {
    "hierarchical": {"feeds": {"b": ["a"]}},
    "esmm": {"order": ["a", "b"]},
    "aitm": {"order": ["a", "b"]},
}
# Widths that no other layer of the small models has: copies of the first layer are counted by its shape.
INPUTS, WIDTH = 5, 22
COPIES = {
    (False, False): "one trunk",
    (False, True): "one trunk",
    (True, False): "whole copies",
    (True, True): "towers in lockstep",
}
ENCODERS = {
    "any": "any module",
    "named": "any module, with its stages named",
    "stages": "a staged encoder or ``nn.Sequential``",
}


@dataclass(frozen=True)
class Facts:
    """What a small model of an architecture, with default options, was seen to do.

    Args:
        group: How the tasks' computations lie to each other.
        encoders: Which encoders it takes: a key of ENCODERS.
        features: Whether balancing can happen at the features.
        penalties: Names of its penalties.
        shows: First words of the names of the matrices that the report draws.
    """

    group: str
    encoders: str
    features: bool
    penalties: tuple[str, ...]
    shows: tuple[str, ...]


def stages():
    """Two stages of dense layers, as an ``nn.Sequential``."""
    from torch import nn

    first, second = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, 8)
    return nn.Sequential(nn.Sequential(first, nn.ReLU()), nn.Sequential(second, nn.ReLU()))


def opaque():
    """The same layers in a module that does not say what its stages are."""
    from torch import nn

    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = stages()

        def forward(self, inputs):
            return self.body(inputs)

    return Opaque()


def ready(key: str, encoder, **given):
    """A sharing set up for two tasks, after one forward in training."""
    import torch

    from polytask import registry

    made = registry.get("sharings", key)(encoder, **NEEDED.get(key, {}), **given)
    inputs = torch.ones(6, INPUTS)
    made.setup(TASKS, inputs)
    # As a model's heads do: a penalty may be on what they predict.
    made.outputs({task: features.sum(1) for task, features in made(inputs, TASKS).items()}, TASKS)
    return made


def taken(key: str) -> str:
    """Which encoders an architecture takes, by trying: a key of ENCODERS."""
    from polytask import registry
    from polytask.errors import ShapeError

    tries = [("any", {})]
    if "stages" in registry.options_of(registry.get("sharings", key)):
        tries.append(("named", {"stages": ["body.0"]}))
    for kind, given in tries:
        try:
            ready(key, opaque(), **given)
        except ShapeError:
            continue
        return kind
    return "stages"


@functools.cache
def facts(key: str) -> Facts:
    """What a small model shows of an architecture."""
    made = ready(key, stages())
    shape = (WIDTH, INPUTS)
    copies = sum(p.numel() for p in made.parameters() if tuple(p.shape[-2:]) == shape) // (WIDTH * INPUTS)
    encoders = taken(key)
    shows = tuple(dict.fromkeys(name.split()[0] for name in made.inspect()))
    group = COPIES[copies > 1, encoders == "stages"]
    return Facts(group, encoders, made.supports_features, tuple(made.penalties()), shows)


def architectures() -> dict[str, type]:
    """Registered architectures by key."""
    from polytask import catalogue, registry

    return {key: registry.get("sharings", key) for key in catalogue.SHARINGS}


def described(key: str, cls: type) -> list[str]:
    """One architecture's section, as reStructuredText."""
    from polytask import catalogue

    text, found = parts(cls), facts(key)
    lines = [catalogue.SHARINGS[key].help, "", *text[""].splitlines(), "", *options(cls, without=("encoder",))]
    lines += [f":class: ``{cls.__name__}``", f":computation: {found.group}", f":encoders: {ENCODERS[found.encoders]}"]
    lines += [f":balancing at the features: {'yes' if found.features else 'no'}"]
    lines += [f":penalties: {', '.join(f'``{name}``' for name in found.penalties) or 'none'}"]
    lines += [f":in the report: {', '.join(found.shows) or 'nothing'}"]
    if "Reference" in text:
        lines += [f":from: {' '.join(text['Reference'].split())}"]
    return [*lines, ""]


class SharingSections(Directive):
    """A section for every architecture."""

    def run(self) -> list[nodes.Node]:
        made = []
        for key, cls in architectures().items():
            section = nodes.section(ids=[f"sharing-{key.replace('_', '-')}"], names=[f"sharing {key}"])
            section += nodes.title(key, "", nodes.literal(key, key))
            section += parsed(self, described(key, cls))
            made.append(section)
        return made


def rows() -> list[list[str]]:
    """The cells of the table, its heading first."""
    from polytask import registry

    cells = [["name", "computation", "encoders", "features", "penalties", "options"]]
    for key, cls in architectures().items():
        found = facts(key)
        named = [name for name in registry.options_of(cls) if name != "encoder"]
        link = f"`{key} <#sharing-{key.replace('_', '-')}>`__"
        listed = [", ".join(f"``{name}``" for name in of) or "\\" for of in (found.penalties, named)]
        cells.append([link, found.group, ENCODERS[found.encoders], "yes" if found.features else "\\", *listed])
    return cells


class SharingTable(Directive):
    """All architectures in one table."""

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 14 14 22 8 14 28", ""]
        for cells in rows():
            lines += [f"   {'* -' if place == 0 else '  -'} {cell}" for place, cell in enumerate(cells)]
        return parsed(self, lines)


def setup(app):
    app.add_directive("sharing-sections", SharingSections)
    app.add_directive("sharing-table", SharingTable)
    return {"version": "1", "parallel_read_safe": True}
