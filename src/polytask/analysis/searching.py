"""A search while it runs: its store, what it tries next, and what came of it."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polytask.analysis.pool import Job
from polytask.analysis.space import Choice, Range, open_study, require_optuna
from polytask.analysis.tune_jobs import ENCODED, criterion_of
from polytask.analysis.tuning import Setting, Tuning
from polytask.analysis.workshop import Workshop
from polytask.errors import PolytaskError, RecipeError, TrainingError
from polytask.evaluation import Criterion, Scores
from polytask.recipes.build import make_model, make_tasks
from polytask.recipes.load import dump_recipe, load_recipe, with_values
from polytask.recipes.schema import Recipe
from polytask.reporting.versions import versions
from polytask.training.fit import build_engine, seeded
from polytask.training.runtime import Runtime

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

STUDY = "polytask"
RANDOM_TRIALS = 8
"""Settings that are drawn at random before the search learns from what it saw."""
JOBS = "polytask.analysis.tune_jobs"


def written(space: Mapping[str, Range | Choice]) -> dict[str, Any]:
    """The space as plain data."""
    return {
        key: list(of.values) if isinstance(of, Choice) else {"low": of.low, "high": of.high, "log": of.log}
        for key, of in space.items()
    }


@dataclass
class Search:
    """A search while it runs.

    Args:
        shop: The recipe with its workers.
        plain: The recipe as it was given, as plain data.
        space: What to try for each key.
        goals: Several criteria, or none for the recipe's own.
        address: Of the store.
    """

    shop: Workshop
    plain: Mapping[str, Any]
    space: Mapping[str, Range | Choice]
    goals: Sequence[str]
    address: str

    def __post_init__(self) -> None:
        tasks, index = self.shop.built.model.tasks, self.shop.built.index
        self.criteria = [Criterion(goal, tasks, index) for goal in self.goals]
        self.reads = any(key.split(".")[0] in ENCODED for key in self.space)
        self.owner = f"{platform.node()}:{self.shop.folder.path.resolve()}"

    def recipe(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The plain recipe with a setting."""
        return dump_recipe(load_recipe(with_values(self.plain, values)))

    def try_out(self) -> None:
        """Build models of settings from all corners, so that a mistake is found before anything is trained.

        Raises:
            RecipeError: that names the setting.
        """
        corner = {key: next(iter(_ends(of))) for key, of in self.space.items()}
        for values in [{**corner, key: end} for key, of in self.space.items() for end in _ends(of)]:
            try:
                self._build(load_recipe(with_values(self.plain, values)))
            except PolytaskError as error:
                told = ", ".join(f"{key}={value}" for key, value in values.items())
                raise RecipeError(f"space: {told} cannot be: {error}") from None

    def _build(self, recipe: Recipe) -> None:
        built = self.shop.built
        make_tasks(recipe)
        with seeded(0):
            model = make_model(recipe, built.schema, list(built.model.tasks.values()))
        if not model.is_built:
            model.build(built.sources["train"][0].example)
        build_engine(model, recipe.balancer, 0, Runtime("cpu"))

    def open(self, facts: Mapping[str, Any]) -> None:
        """Open the store, and check that it is of this search.

        Raises:
            RecipeError: if it is of another recipe, space or data.
        """
        count = max(len(self.goals), 1)
        self.study: Study = open_study(self.address, STUDY, ["maximize"] * count)
        told = json.dumps({"recipe": self.shop.base, "data": self.shop.data, **facts}, sort_keys=True)
        mark = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
        known = self.study.user_attrs.get("of")
        if known is None and not self.study.trials:
            self.study.set_user_attr("of", mark)
        elif known != mark:
            raise RecipeError(
                f"The store '{self.address}' is of another recipe, space, objectives or rows. Choose another --store "
                "or --out."
            )
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # The folder is locked, so whoever ran it from here is gone. Those of other machines go on.
            if trial.user_attrs.get("owner") == self.owner:
                self.study.tell(trial.number, state=TrialState.FAIL)

    def run(self, workers: int, trials: int | None, minutes: float | None) -> None:
        """Try settings until there are enough, or the time is up."""
        began = time.monotonic()
        asked: dict[str, Trial] = {}
        reference = self._reference()
        while True:
            late = minutes is not None and time.monotonic() - began > 60 * minutes
            while len(asked) < workers and not late and not (trials is not None and self._started() >= trials):
                trial = self._ask()
                job = self._job(trial, reference)
                asked[job.key] = trial
                self.shop.pool.submit(job)
            if not asked:
                return
            outcome = self.shop.pool.wait()
            self._tell(asked.pop(outcome.job.key), outcome.value, outcome.error)

    def _started(self) -> int:
        from optuna.trial import TrialState

        # A trial that was cut off by a kill has no reason, and is tried again.
        return sum(
            trial.state is not TrialState.FAIL or "failed" in trial.user_attrs
            for trial in self.study.get_trials(deepcopy=False)
        )

    def _reference(self) -> dict[str, Any]:
        """What the recipe as it stands gives; trained once a store."""
        known: dict[str, Any] | None = self.study.user_attrs.get("as_it_stands")
        if known is None:
            self.shop.say("The recipe as it stands is trained first.")
            arguments = {"recipe": dict(self.plain), "reads": False, "reference": None}
            self.shop.pool.submit(Job("as it stands", f"{JOBS}:try_setting", arguments))
            outcome = self.shop.pool.wait()
            if outcome.error is not None or outcome.value["failed"]:
                reason = outcome.error or outcome.value["failed"]
                raise TrainingError(f"The recipe as it stands cannot be trained, so nothing compares to it: {reason}")
            known = outcome.value
            self.study.set_user_attr("as_it_stands", known)
        assert known is not None
        return known

    def _ask(self) -> Trial:
        optuna = require_optuna()
        # A seed of its own for every trial: a search that was interrupted draws what it would have drawn.
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(
            seed=7907 + number, n_startup_trials=RANDOM_TRIALS, constant_liar=len(self.goals) < 2
        )
        trial = self.study.ask()
        trial.set_user_attr("owner", self.owner)
        trial.set_user_attr("values", {key: of.suggest(trial, key) for key, of in self.space.items()})
        return trial

    def _job(self, trial: Trial, reference: Mapping[str, Any]) -> Job:
        arguments: dict[str, Any] = {
            "recipe": with_values(self.plain, trial.user_attrs["values"]),
            "reads": self.reads,
            "reference": reference["validation"],
        }
        if len(self.goals) < 2:
            arguments |= {"store": self.address, "study": STUDY, "trial": trial.number}
        return Job(f"trial {trial.number}", f"{JOBS}:try_setting", arguments)

    def _tell(self, trial: Trial, result: Mapping[str, Any] | None, error: str | None) -> None:
        from optuna.trial import TrialState

        failed = error or (result["failed"] if result is not None else "")
        told = ", ".join(f"{key}={value}" for key, value in trial.user_attrs["values"].items())
        values = self._values(result) if result is not None and not failed else []
        if not failed and any(math.isnan(value) for value in values):
            failed = "an objective is undefined"
        for key in ("validation", "epoch", "epochs", "seconds", "parameters"):
            if result is not None:
                trial.set_user_attr(key, result[key])
        if failed:
            trial.set_user_attr("failed", failed)
            self.study.tell(trial, state=TrialState.FAIL)
            self.shop.say(f"trial {trial.number}: {told}: failed: {failed}")
        elif result is not None and result["pruned"]:
            self.study.tell(trial, state=TrialState.PRUNED)
            self.shop.say(f"trial {trial.number}: {told}: given up after epoch {result['epochs']}")
        else:
            self.study.tell(trial, values)
            shown = ", ".join(f"{value:.5g}" for value in values)
            self.shop.say(f"trial {trial.number}: {told}: {shown}")

    def _values(self, result: Mapping[str, Any]) -> list[float]:
        """What is maximised."""
        if not self.criteria:
            return [result["value"]]
        reference = Scores.from_dict(self.study.user_attrs["as_it_stands"]["validation"])
        return [criterion(Scores.from_dict(result["validation"]), reference) for criterion in self.criteria]

    def result(self, title: str) -> Tuning:
        """What the search found so far, from the store.

        Raises:
            TrainingError: if no trial came to a value.
        """
        built = self.shop.built
        settings = tuple(_settings(self.study))
        done = [setting for setting in settings if setting.state == "complete"]
        if not done:
            reasons = [setting.failed for setting in settings if setting.failed]
            more = f" The first failed: {reasons[0]}" if reasons else ""
            raise TrainingError(f"None of {len(settings)} trials came to a value.{more}")
        stands = self.study.user_attrs["as_it_stands"]
        criterion = criterion_of(built.recipe, built.model, built.index)
        reference = Scores.from_dict(stands["validation"])
        # The stated recipe relative to itself, as every trial is relative to it.
        base = [c(reference, reference) for c in self.criteria] or [criterion(reference, reference)]
        return Tuning(
            title=title,
            space=written(self.space),
            objectives=tuple(self.goals) or (criterion.spec,),
            as_it_stands=tuple(base),
            settings=settings,
            importance=_importance(self.study, len(self.goals)),
            versions=versions(),
            path=self.shop.folder.path,
        )


def _ends(of: Range | Choice) -> Iterator[Any]:
    yield from (of.values if isinstance(of, Choice) else (of.low, of.high))


def _settings(study: Study) -> Iterator[Setting]:
    for trial in study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        if (
            not trial.state.is_finished()
            or "values" not in attrs
            or (trial.state.name == "FAIL" and "failed" not in attrs)
        ):
            continue
        values = tuple(trial.values) if trial.values is not None else ()
        yield Setting(
            number=trial.number,
            values=attrs["values"],
            state=trial.state.name.lower(),
            scores=values,
            epoch=attrs.get("epoch", 0),
            epochs=attrs.get("epochs", 0),
            seconds=attrs.get("seconds", 0.0),
            failed=attrs.get("failed", ""),
        )


def _importance(study: Study, goals: int) -> dict[str, float]:
    """How much of the differences each key explains; empty for several objectives or a handful of trials."""
    optuna = require_optuna()
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if goals > 1 or len(done) < 10 or len({trial.value for trial in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
