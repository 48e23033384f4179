"""What a search may try: ranges and choices, written as a person writes them, and drawn by Optuna."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from polytask.errors import MissingExtraError, RecipeError

if TYPE_CHECKING:
    from optuna.study import Study
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
        values = tuple(_plain_number(value) for value in yaml.safe_load(f"[{body}]"))
    except yaml.YAMLError:
        raise RecipeError(
            f"{where}: '{text}' is no list of choices. Write A,B,C, and lists such as [64],[128,64]."
        ) from None
    if log or len(values) < 2:
        raise RecipeError(f"{where}: '{text}' leaves nothing to choose. Write LOW..HIGH, log:LOW..HIGH or A,B,C.")
    return Choice(values)


def _plain_number(value: Any) -> Any:
    """``1e-4`` as the number that a person means; YAML 1.1 reads it as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


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


def open_study(store: str, name: str, directions: Sequence[str] = ("maximize",)) -> Study:
    """A search in a store that several processes may use; made if it is not there.

    A trial is given up if its value in an epoch is below the median of the others' in that epoch, once five are done
    and never in its first epoch.

    Args:
        store: Address such as ``sqlite:///search.sqlite3``.
        name: Of the search in the store.
        directions: One for each objective.

    Raises:
        RecipeError: if there is no store at the address.
    """
    optuna = require_optuna()
    from sqlalchemy.exc import ArgumentError, OperationalError

    # Other processes write as well: wait for them.
    options = {"connect_args": {"timeout": 60}} if store.startswith("sqlite") else {}
    try:
        study: Study = optuna.create_study(
            storage=optuna.storages.RDBStorage(store, engine_kwargs=options),
            study_name=name,
            directions=list(directions),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
            load_if_exists=True,
        )
    except (ArgumentError, OperationalError, ImportError) as error:
        told = str(error).splitlines()[0]
        raise RecipeError(f"The store '{store}' cannot be opened: {told} Write sqlite:///PATH for a file.") from None
    return study
