"""The list of balancing methods, written from the registry, the classes and one step of each."""

from __future__ import annotations

import inspect
import re
import warnings

from docutils import nodes
from docutils.parsers.rst import Directive
from polytask_reference import arguments, parsed

KINDS = {"loss": "LossWeighting", "gramian": "GramianWeighting", "jacobian": "JacobianAggregator"}
KIND_WORDS = {
    "loss": ("loss weighting", "the losses, which the step has anyway; one ordinary backward"),
    "gramian": ("Gramian weighting", "the inner products of the tasks' gradients, and one problem of size m x m"),
    "jacobian": ("Jacobian aggregator", "all gradients at once: m x n numbers"),
}
PROMISES = {
    "non_conflicting": "no task gets worse to first order",
    "pareto_fixed_points": "the update is zero at Pareto stationary points",
    "scale_equivariant": "an update that scales with the gradients (and losses)",
    "scale_invariant": "the same update at any scale of the gradients (and losses)",
    "permutation_equivariant": "the order of the tasks does not matter",
    "identity_for_one_task": "with one task present, its plain gradient",
}
HABITS = {"stateful": "keeps a state between steps", "random": "draws from its own seeded generator"}
# Options without a default, for the example step.
NEEDED = {"static": {"weights": [2.0, 1.0, 1.0]}}
SECTIONS = ("Args", "Raises", "Example", "Reference", "Returns", "Attributes", "Note")


def kind_of(cls: type) -> str:
    """Which of the three kinds a class is: a key of KINDS."""
    from polytask.balancing import base

    return next(kind for kind, name in KINDS.items() if issubclass(cls, getattr(base, name)))


def methods(kind: str | None = None) -> dict[str, type]:
    """Registered methods by key, of one kind or all."""
    from polytask import catalogue, registry

    found = {key: registry.get("balancers", key) for key in catalogue.BALANCERS}
    return {key: cls for key, cls in found.items() if kind is None or kind_of(cls) == kind}


def parts(cls: type) -> dict[str, str]:
    """A docstring cut into its body (under ``""``) and its named sections."""
    cuts = re.split(rf"^({'|'.join(SECTIONS)}):\n", inspect.getdoc(cls) or "", flags=re.MULTILINE)
    found = {"": cuts[0].partition("\n")[2].strip()}
    for name, text in zip(cuts[1::2], cuts[2::2], strict=True):
        found[name] = inspect.cleandoc(text)
    return found


def ready(key: str):
    """A method set up for three tasks, two of them regressions."""
    from polytask import balancing

    kinds = {"a": "regression", "b": "regression", "c": "classification"}
    return balancing.build(key, ["a", "b", "c"], kinds, **NEEDED.get(key, {}))


def cost(cls: type, made) -> str:
    """What a step needs beyond the losses and one backward, in words."""
    words = [KIND_WORDS[kind_of(cls)][1]]
    if kind_of(cls) != "loss" and cls.needs_losses:
        words.append("the losses")
    if cls.looks_again:
        words.append("a second forward of the same batch after the step")
    if cls.halves:
        looks = "; a backward of each and two forwards of the first beforehand" if kind_of(cls) == "loss" else ""
        words.append(f"two halves of the step's rows{looks}")
    if any(True for _ in made.parameters()):
        words.append("an optimizer of its own for its learned weights")
    return "; ".join(words)


def numbers(values) -> str:
    return "(" + ", ".join(f"{float(value) + 0.0:.3g}" for value in values) + ")"


def example(key: str, cls: type, made) -> str:
    """What the first step does with a zero loss or a zero gradient: computed now, not remembered."""
    import torch

    from polytask.balancing.warn import BalancerWarning

    losses = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)
    rows = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BalancerWarning)
        if kind_of(cls) == "loss":
            return f"Losses (4, 1, 0) get the weights {numbers(made.weigh(losses, made.tasks))}."
        if kind_of(cls) == "jacobian":
            text = f"update {numbers(made.aggregate(rows, losses, made.tasks))}."
        else:
            further = {"cross": rows @ rows.T} if made.halves else {}
            found = made.weigh(rows @ rows.T, losses, made.tasks, **further)
            text = f"weights {numbers(found)}, update {numbers(found @ rows)}."
    told = " A BalancerWarning says so." if caught else ""
    return f"Gradients (2, 0), (-1, 1), (0, 0): {text}{told}"


def options(cls: type, without: tuple[str, ...] = ()) -> list[str]:
    """A table of the options of a class, but for those in ``without``; a missing text is an error of the build."""
    from polytask import registry

    texts = arguments(cls)
    known = {name: option for name, option in registry.options_of(cls).items() if name not in without}
    if not known:
        return ["Options: none.", ""]
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 18 17 65", ""]
    lines += ["   * - option", "     - default", "     - meaning"]
    for name, parameter in known.items():
        default = "**required**" if parameter.default is parameter.empty else f"``{parameter.default!r}``"
        lines += [f"   * - ``{name.rstrip('_')}``", f"     - {default}", f"     - {texts[name]}"]
    return [*lines, ""]


def described(key: str, cls: type) -> list[str]:
    """One method's section, as reStructuredText."""
    from polytask import catalogue

    made, text = ready(key), parts(cls)
    promised = [words for trait, words in PROMISES.items() if trait in cls.traits]
    habits = [words for trait, words in HABITS.items() if trait in cls.traits]
    lines = [catalogue.BALANCERS[key].help, "", *text[""].splitlines(), "", *options(cls)]
    lines += [f":class: ``{cls.__name__}``", f":kind: {KIND_WORDS[kind_of(cls)][0]}", f":needs: {cost(cls, made)}"]
    if hasattr(cls, "default_at"):
        lines += [f":gradients taken at: ``{cls.default_at}``, unless told otherwise"]
    lines += [f":promises: {'; '.join(promised) or 'nothing beyond what all methods keep to'}"]
    if habits:
        lines += [f":habits: {'; '.join(habits)}"]
    lines += [f":example: {example(key, cls, made)}"]
    if "Reference" in text:
        lines += [f":from: {' '.join(text['Reference'].split())}"]
    return [*lines, ""]


class BalancerMethods(Directive):
    """A section for every method of one kind."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        made = []
        for key, cls in methods(self.arguments[0]).items():
            section = nodes.section(ids=[f"method-{key.replace('_', '-')}"], names=[f"method {key}"])
            section += nodes.title(key, "", nodes.literal(key, key))
            section += parsed(self, described(key, cls))
            made.append(section)
        return made


class BalancerTable(Directive):
    """All methods in one table: kind and promises."""

    def run(self) -> list[nodes.Node]:
        marks = ("non_conflicting", "pareto_fixed_points", "scale_equivariant", "scale_invariant", *HABITS)
        heads = ("method", "kind", "no conflict", "zero at Pareto", "scales", "scale-free", "state", "random")
        lines = [".. list-table::", "   :header-rows: 1", ""]
        lines += [f"   {'* -' if place == 0 else '  -'} {head}" for place, head in enumerate(heads)]
        for key, cls in methods().items():
            cells = [f"`{key} <#method-{key.replace('_', '-')}>`__", KIND_WORDS[kind_of(cls)][0]]
            cells += ["yes" if mark in cls.traits else "\\" for mark in marks]
            lines += [f"   {'* -' if place == 0 else '  -'} {cell}" for place, cell in enumerate(cells)]
        return parsed(self, lines)


class BalancerTransforms(Directive):
    """All transforms of a chain in one table."""

    def run(self) -> list[nodes.Node]:
        from polytask.balancing import transforms

        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 25 75", ""]
        lines += ["   * - transform", "     - what it does"]
        for name, cls in vars(transforms).items():
            if name.islower() and inspect.isclass(cls) and issubclass(cls, transforms.Transform):
                taken = [str(option) for option in inspect.signature(cls).parameters.values()]
                spelled = ", ".join(re.sub(r": .*?(?= = |$)", "", option) for option in taken)
                lines += [f"   * - ``{name}({spelled.replace(' = ', '=')})``"]
                lines += [f"     - {(inspect.getdoc(cls) or '').splitlines()[0]}"]
        return parsed(self, lines)


def setup(app):
    app.add_directive("balancer-transforms", BalancerTransforms)
    app.add_directive("balancer-methods", BalancerMethods)
    app.add_directive("balancer-table", BalancerTable)
    return {"version": "1", "parallel_read_safe": True}
