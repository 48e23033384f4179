"""What all task types share: checking options, checking targets, and filling in what data fix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polytask.errors import DataError, RecipeError, listed, suggestion, unknown
from polytask.tasks.task import HeadSpec, Metric, labelled

Weights = str | Sequence[float] | Mapping[str, float] | None
Fill = Callable[[str, Mapping[str, Any], Tensor, Tensor | None], Mapping[str, Any]]


@dataclass(frozen=True)
class Refit:
    """Fills in a task's options from training data; compares equal by value, as a closure would not.

    Args:
        name: The task's name, for messages.
        options: The task's options.
        fill: ``(name, options, targets, weights) -> changed options``.
    """

    name: str
    options: Mapping[str, Any]
    fill: Fill

    def __call__(self, targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
        """All options, with those that the data fix filled in."""
        if weights is not None and weights.shape != targets.shape[:1]:
            raise DataError(
                f"Task '{self.name}' has {len(targets)} targets but weights of shape {tuple(weights.shape)}. "
                "Give one weight a row."
            )
        return {**self.options, **self.fill(self.name, self.options, targets, weights)}


def bad_option(name: str, option: str, value: Any, wanted: str) -> RecipeError:
    """The error for an option's value that cannot be used."""
    return RecipeError(f"Task '{name}': {option} is {value!r}. Use {wanted}.")


def check_choice(name: str, option: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a RecipeError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise RecipeError(
            f"Task '{name}': {option} is {value!r}. Use one of: {listed(choices)}.{suggestion(str(value), choices)}"
        )


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_number(name: str, option: str, value: Any, wanted: str, accept: Callable[[float], bool]) -> None:
    """Raise a RecipeError unless ``value`` is a number that ``accept`` takes."""
    if not is_number(value) or not accept(value):
        raise bad_option(name, option, value, wanted)


def check_smoothing_and_focus(name: str, label_smoothing: float, focal_gamma: float | None) -> None:
    """Check the two options that all class losses share."""
    check_number(name, "label_smoothing", label_smoothing, "a number from 0 to below 1", lambda v: 0 <= v < 1)
    if focal_gamma is not None:
        check_number(name, "focal_gamma", focal_gamma, "None or a number of at least 0", lambda v: v >= 0)


def check_count(name: str, option: str, value: Any, least: int) -> None:
    """Raise a RecipeError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise bad_option(name, option, value, f"a whole number of at least {least}")


def check_list(name: str, option: str, value: Any, wanted: str) -> list[Any]:
    """The value as a list; a RecipeError unless it is a sequence that is not text."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise bad_option(name, option, value, wanted)
    return list(value)


def shared_options(name: str, hidden: Sequence[int], dropout: float, metrics: Sequence[str] | None) -> dict[str, Any]:
    """Check the options that every task type has; the same as plain data."""
    check_list(name, "hidden", hidden, "a list of widths such as [64, 32]")
    for width in hidden:
        check_count(name, "hidden", width, 1)
    check_number(name, "dropout", dropout, "a probability from 0 to below 1", lambda v: 0 <= v < 1)
    if metrics is not None:
        check_list(name, "metrics", metrics, "a list of their names, or None for the usual ones")
    return {"hidden": list(hidden), "dropout": dropout, "metrics": None if metrics is None else list(metrics)}


def head_spec(outputs: int | None, hidden: Sequence[int], dropout: float) -> HeadSpec:
    """A HeadSpec of options that ``shared_options`` has checked."""
    return HeadSpec(outputs=outputs, hidden=tuple(hidden), dropout=float(dropout))


def shifted(head: HeadSpec, shift: tuple[float, ...] | float, scale: tuple[float, ...] | float = 1.0) -> HeadSpec:
    """The same head with another shift and scale."""
    return replace(head, shift=shift, scale=scale)


def pick_metrics(
    name: str, known: Mapping[str, Metric], default: Sequence[str], asked: Sequence[str] | None
) -> tuple[dict[str, Metric], str]:
    """The metrics of a task, and the primary one: the first of those asked for, or of the default ones."""
    if asked is not None and len(asked) == 0:
        raise bad_option(name, "metrics", asked, f"a list with at least one of: {listed(known)}")
    names = tuple(default if asked is None else asked)
    for metric in names:
        if metric not in known:
            raise RecipeError(f"Task '{name}': {unknown('metric', metric, known)}")
    return {metric: known[metric] for metric in names}, names[0]


def class_names(name: str, option: str, classes: int | Sequence[str] | None, least: int) -> tuple[str, ...] | None:
    """Names of classes or labels: as given, "0", "1", ... for a number, None if unknown."""
    if classes is None:
        return None
    if isinstance(classes, int):
        check_count(name, option, classes, least)
        return tuple(str(number) for number in range(classes))
    check_list(name, option, classes, "their number or the list of their names")
    names = tuple(str(entry) for entry in classes)
    twice = sorted({entry for entry in names if names.count(entry) > 1})
    if twice:
        raise RecipeError(f"Task '{name}': {option} has {twice[0]!r} more than once. Name each once.")
    if len(names) < least:
        raise bad_option(name, option, list(names), f"at least {least} names")
    return names


def plain_classes(classes: int | Sequence[str] | None) -> int | list[str] | None:
    """Classes as plain data."""
    return classes if classes is None or isinstance(classes, int) else [str(entry) for entry in classes]


def fixed_weights(name: str, option: str, given: Weights, names: Sequence[str] | None) -> tuple[float, ...] | None:
    """Weights that the user wrote down, one per class; None for none, or for ``"balanced"``.

    Raises:
        RecipeError: for a wrong number of weights, an unknown class, or a weight that is not positive.
    """
    if given is None or given == "balanced":
        return None
    if isinstance(given, Mapping):
        if names is None:
            return None
        for key in given:
            if str(key) not in names:
                raise RecipeError(f"Task '{name}': {option}: {unknown('class', str(key), names)}")
        spelled = {str(key): value for key, value in given.items()}
        missing = [entry for entry in names if entry not in spelled]
        if missing:
            raise RecipeError(f"Task '{name}': {option} has no weight for: {listed(missing)}. Give every class one.")
        values = [spelled[entry] for entry in names]
    else:
        values = check_list(name, option, given, "None, 'balanced', a list of weights or a mapping by class")
    if names is not None and len(values) != len(names):
        raise RecipeError(f"Task '{name}': {option} has {len(values)} weights for {len(names)} classes. Give one each.")
    for value in values:
        check_number(name, option, value, "positive weights", lambda v: v > 0)
    return tuple(float(value) for value in values)


def balanced_weights(shares: Sequence[float]) -> tuple[float, ...]:
    """Weights that give each class with the given share of the training data the same whole weight."""
    present = sum(share > 0 for share in shares)
    # A class that training never shows has no loss to weigh.
    return tuple(1 / (present * share) if share > 0 else 1.0 for share in shares)


def plain_weights(given: Weights) -> Any:
    """Weights as plain data."""
    if given is None or isinstance(given, str):
        return given
    return {str(key): value for key, value in given.items()} if isinstance(given, Mapping) else list(given)


def check_shape(name: str, targets: Tensor, wanted: str, fits: bool) -> None:
    """Raise a DataError about shape or type unless the targets fit."""
    if not fits:
        raise DataError(
            f"Task '{name}' needs targets that are {wanted}; found {str(targets.dtype).removeprefix('torch.')} "
            f"of shape {list(targets.shape)}."
        )


def check_values(name: str, targets: Tensor, bad: Tensor, wanted: str) -> None:
    """Raise a DataError that names the first row with a bad value.

    Args:
        name: The task's name.
        targets: Targets, ``[rows, ...]``.
        bad: Which entries cannot be used, the same shape.
        wanted: What every value should be.
    """
    if bad.any():
        place = bad.nonzero()[0]
        value = targets[tuple(place)].item()
        column = f", column {int(place[1])}" if len(place) > 1 else ""
        raise DataError(
            f"Task '{name}' has the target {value:g} in row {int(place[0])}{column} (rows count from 0); "
            f"{int(bad.sum())} such values in all. Every target has to be {wanted}, or missing."
        )


def known_rows(name: str, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The labelled rows' targets, and their weights in float64 (ones where there are none).

    Raises:
        DataError: if no row is labelled, or the labelled rows have no weight at all.
    """
    known = labelled(targets)
    if not known.any():
        raise DataError(f"Task '{name}' has no label at all in {len(targets)} rows. Check the column, or leave it out.")
    chosen = targets[known]
    of_rows = torch.ones(len(chosen), dtype=torch.float64) if weights is None else weights[known].cpu().double()
    if not of_rows.sum() > 0:
        raise DataError(f"The labelled rows of task '{name}' have weights that add up to {of_rows.sum().item():g}.")
    return chosen, of_rows.to(chosen.device)


def is_integer(targets: Tensor) -> bool:
    """Whether a tensor holds whole numbers by its type."""
    return not targets.is_floating_point() and not targets.is_complex() and targets.dtype != torch.bool


def class_count(
    name: str, classes: int | Sequence[str] | None, targets: Tensor, least: int = 2
) -> tuple[int, dict[str, Any]]:
    """The number of classes: as declared, else as the targets show; and the option to fill in.

    Args:
        name: The task's name.
        classes: As declared.
        targets: Class numbers ``[rows]`` or ``[rows, H, W]``, or one column a class.
        least: Fewest classes.

    Raises:
        DataError: if there are too few classes, or columns do not match the declared ones.
    """
    seen = targets.shape[1] if targets.dim() == 2 else int(targets.max()) + 1 if len(targets) else 0
    if classes is None:
        if seen < least:
            raise DataError(f"Task '{name}' shows {seen} class in the training data and needs {least} or more.")
        return seen, {"classes": seen}
    count = classes if isinstance(classes, int) else len(classes)
    if targets.dim() == 2 and seen != count:
        raise DataError(f"Task '{name}' has {count} classes but its targets have {seen} columns. Give one a class.")
    return count, {}


def check_shares(
    name: str, option: str, given: Sequence[float] | None, names: Sequence[str] | None
) -> tuple[float, ...] | None:
    """Shares from 0 to 1, one per class, or None."""
    if given is None:
        return None
    check_list(name, option, given, "one share a class")
    if names is None or len(given) != len(names):
        raise bad_option(name, option, given, "one share a class")
    for value in given:
        check_number(name, option, value, "shares from 0 to 1", lambda v: 0 <= v <= 1)
    return tuple(float(value) for value in given)


def check_size(name: str, option: str, given: Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width, both at least 1, or None."""
    if given is None:
        return None
    wanted = "None or a list of height and width in pixels"
    sides = check_list(name, option, given, wanted)
    if len(sides) != 2:
        raise bad_option(name, option, given, wanted)
    for side in sides:
        check_count(name, option, side, 1)
    return sides[0], sides[1]


def fitted_size(name: str, declared: Sequence[int] | None, targets: Tensor) -> dict[str, Any]:
    """The option ``size`` as targets ``[rows, H, W]`` show it.

    Raises:
        DataError: if another size was declared.
    """
    found = list(targets.shape[1:])
    if declared is not None and list(declared) != found:
        raise DataError(f"Task '{name}' has the size {list(declared)} but its targets are of {found}. Leave it out.")
    return {"size": found}
