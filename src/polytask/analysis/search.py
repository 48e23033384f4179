"""Each method's search over its own options and learning rate, on validation rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytask.analysis.jobs import Result
from polytask.analysis.method_result import finite
from polytask.analysis.methods import Method, defaults_of, space_of
from polytask.analysis.methods import Path as KeyPath
from polytask.analysis.plan import Budget
from polytask.analysis.space import require_optuna
from polytask.evaluation import Criterion, Scores

RANDOM_TRIALS = 5
"""Settings that are drawn at random before the search learns from what it saw."""


@dataclass(frozen=True)
class Trial:
    """A setting that was tried.

    Args:
        settings: Values by path.
        value: The criterion on the validation rows, relative to the first trial; higher is better, NaN if undefined.
        seconds: Training time.
    """

    settings: Mapping[KeyPath, Any]
    value: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        settings = [[list(path), value] for path, value in self.settings.items()]
        return {"settings": settings, "value": finite(self.value), "seconds": self.seconds}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Trial:
        """What ``to_dict`` wrote."""
        settings = {tuple(path): value for path, value in plain["settings"]}
        return cls(settings, math.nan if plain["value"] is None else plain["value"], plain["seconds"])


def best(trials: list[Trial]) -> Trial:
    """The best trial; the earlier of equal ones, and the first if none has a value."""
    return max(trials, key=lambda trial: -math.inf if math.isnan(trial.value) else trial.value)


def search(
    method: Method, rate: float, budget: Budget, criterion: Criterion, store: Path
) -> Generator[Mapping[KeyPath, Any], Result, list[Trial]]:
    """Try settings until the budget is spent: yields a setting, is sent its result.

    What is tried depends on the results so far only, not on who asks or how often it was interrupted: every draw has
    a seed of its own, made of the method's name and the trial's number. The first trial is the recipe's setting.

    Args:
        method: The method.
        rate: The recipe's learning rate.
        budget: When to stop.
        criterion: Makes one number of validation scores, relative to those of the first trial that has any.
        store: SQLite file of the method's Optuna study.

    Returns:
        All trials in order.
    """
    optuna = require_optuna()
    space = space_of(method, rate)
    names = {".".join(path): path for path in space}
    study = optuna.create_study(
        storage=f"sqlite:///{store}", study_name=method.name, direction="maximize", load_if_exists=True
    )
    # Of a sitting before this one; one that was killed while it drew leaves a trial that is not whole.
    before = [trial for trial in study.trials if set(trial.params) == set(names)]
    if not before and not any(trial.state is optuna.trial.TrialState.WAITING for trial in study.trials):
        study.enqueue_trial({name: defaults_of(method, rate)[path] for name, path in names.items()})
    trials: list[Trial] = []
    first: Scores | None = None
    while not budget.is_spent(len(trials), sum(trial.seconds for trial in trials)):
        number = len(trials)
        if number < len(before):
            # Its result is on disk if it came to an end.
            asked, values = before[number].number, before[number].params
        else:
            study.sampler = optuna.samplers.TPESampler(seed=_seed(method, number), n_startup_trials=RANDOM_TRIALS)
            asked = study.ask()
            values = {name: space[path].suggest(asked, name) for name, path in names.items()}
        settings = {names[name]: value for name, value in values.items()}
        result = yield settings
        scores = Scores.from_dict(result["validation"]) if "validation" in result else None
        first = first or scores
        value = criterion(scores, first) if scores is not None and first is not None else math.nan
        trials.append(Trial(settings, value, result["seconds"]))
        if number >= len(before) or not before[number].state.is_finished():
            failed = math.isnan(value)
            study.tell(asked, state=optuna.trial.TrialState.FAIL) if failed else study.tell(asked, value)
    return trials


def _seed(method: Method, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{method.name}/{number}".encode(), digest_size=4).digest())
