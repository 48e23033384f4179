"""What a search may try: ranges and choices, written as a person writes them, and drawn by Optuna."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from polytask.errors import MissingExtraError, RecipeError

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass(frozen=True)
class Range:
    """Numbers between two ends; whole ones if both ends are.

    Args:
        low: Lower end.
        high: Upper end; part of the range.
        log: Whether equal ratios are equally likely, not equal differences.
    """

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Trial, name: str) -> float:
        """A value for one trial."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Choice:
    """One of several plain values.

    Args:
        values: Numbers, text, truth values, None, or lists of them.
    """

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value for one trial."""
        if all(isinstance(value, str | int | float | bool | None) for value in self.values):
            return trial.suggest_categorical(name, list(self.values))
        # A store keeps no lists: their text stands for them.
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in self.values]))


Space = Mapping[str, Range | Choice]


def parse(text: str, where: str = "space") -> Range | Choice:
    """Read ``0.1..0.9``, ``log:1e-4..1e-2`` or ``equal,uncertainty``.

    Args:
        text: What a person wrote.
        where: What errors call it.

    Raises:
        RecipeError: for ends that are no numbers or in the wrong order, or a single choice.

    Example:
        >>> parse("log:1e-4..1e-2")
        Range(low=0.0001, high=0.01, log=True)
        >>> parse("1..8"), parse("equal,uncertainty")
        (Range(low=1, high=8, log=False), Choice(values=('equal', 'uncertainty')))
        >>> parse("[64],[128,64]")
        Choice(values=([64], [128, 64]))
    """
    log, body = text.startswith("log:"), text.removeprefix("log:")
    low, dots, high = body.partition("..")
    if dots:
        ends = [_number(end, f"{where}: '{text}'") for end in (low, high)]
        if not ends[0] < ends[1] or (log and ends[0] <= 0):
            need = "the lower end first" + (", above 0" if log else "")
            raise RecipeError(f"{where}: '{text}' needs {need}, such as log:1e-4..1e-2.")
        return Range(ends[0], ends[1], log)
    try:
        values = tuple(yaml.safe_load(f"[{body}]"))
    except yaml.YAMLError:
        raise RecipeError(
            f"{where}: '{text}' is no list of choices. Write A,B,C, and lists such as [64],[128,64]."
        ) from None
    if log or len(values) < 2:
        raise RecipeError(f"{where}: '{text}' leaves nothing to choose. Write LOW..HIGH, log:LOW..HIGH or A,B,C.")
    return Choice(values)


def _number(text: str, where: str) -> float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise RecipeError(f"{where}: '{text}' is no number. Write LOW..HIGH, such as 0.1..0.9.")


def require_optuna() -> Any:
    """The package ``optuna``, quiet.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("A search needs Optuna. Install it with: pip install 'polytask[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
