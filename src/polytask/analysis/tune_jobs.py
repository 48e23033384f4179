"""What the workers of a search do: train with one setting, report every epoch, stop when it is hopeless."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polytask.analysis.jobs import Result
from polytask.analysis.rows import Rows
from polytask.analysis.space import open_study
from polytask.errors import TrainingError
from polytask.evaluation import CompositeIndex, Criterion, Scores
from polytask.evaluation.criterion import MEAN_IMPROVEMENT
from polytask.models import MultiTaskModel
from polytask.recipes.build import build, make_index, make_model
from polytask.recipes.load import load_recipe
from polytask.recipes.schema import Recipe
from polytask.training.callbacks import Callback
from polytask.training.fit import seeded, train

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

    from polytask.data.source import Source
    from polytask.training.loop import Loop

ENCODED = ("preprocessing", "inputs", "tasks")
"""Parts of a recipe that change the encoded rows: a setting of them reads the data again."""


class Judge(Callback):
    """Keeps the best value of the criterion, and asks whether the trial goes on.

    Args:
        criterion: One number for scores.
        reference: The scores that it is relative to; None takes those of the first validation.
        last: Whether the last validation counts, and not the best.
        trial: Hears of every validation and can end the run; None lets it go on.
    """

    def __init__(self, criterion: Criterion, reference: Scores | None, last: bool, trial: Trial | None):
        self.criterion, self.reference, self.last, self.trial = criterion, reference, last, trial
        self.best: Scores | None = None
        self.value = math.nan
        self.epoch = 0
        self.pruned = False

    def on_validation_end(self, loop: Loop, scores: Scores) -> None:
        """Compare, report, and stop a trial that is below the others."""
        self.reference = self.reference or scores
        value = self.criterion(scores, self.reference)
        epoch = -(-loop.step // loop.steps_per_epoch)
        if self.last or self.best is None or value > self.value or math.isnan(self.value):
            self.best, self.value, self.epoch = scores, value, epoch
        if self.trial is not None and not math.isnan(value):
            self.trial.report(value, epoch)
            if self.trial.should_prune():
                self.pruned, loop.stop_reason = True, "the search gave it up"


def try_setting(
    rows: Rows,
    *,
    recipe: Mapping[str, Any],
    reads: bool,
    reference: Mapping[str, Any] | None,
    store: str | None = None,
    study: str | None = None,
    trial: int | None = None,
) -> Result:
    """Train what a recipe describes and judge it by its best validation; no weights are kept.

    Args:
        rows: The worker's rows.
        recipe: The plain recipe with the setting in it.
        reads: Whether the setting changes how rows are encoded.
        reference: Scores that the criterion is relative to, or None.
        store: Where the search's store lies, if the trial may be given up early.
        study: Name of the search in it.
        trial: Number of the trial in it.

    Returns:
        ``value``, ``validation`` (scores of the best epoch), ``epoch``, ``epochs``, ``pruned``, ``failed``,
        ``seconds``, ``parameters``.
    """
    loaded = load_recipe(recipe)
    began = time.perf_counter()
    model, training, validation, index = _prepared(rows, loaded, reads)
    judge = Judge(
        criterion_of(loaded, model, index),
        None if reference is None else Scores.from_dict(reference),
        loaded.training.select == "last",
        _trial(store, study, trial) if store is not None else None,
    )
    failed = None
    try:
        run = train(
            model, training, validation, balancer=loaded.balancer, settings=loaded.training, index=index,
            callbacks=[judge],
        )  # fmt: skip
        epochs = len(run.history)
    except TrainingError as error:
        failed, epochs = str(error), 0
    if failed is None and (judge.best is None or math.isnan(judge.value)) and reference is not None:
        failed = "the criterion is undefined in every epoch"
    return {
        "value": None if math.isnan(judge.value) else judge.value,
        "validation": judge.best.to_dict() if judge.best is not None else None,
        "epoch": judge.epoch,
        "epochs": epochs,
        "pruned": judge.pruned,
        "failed": failed,
        "seconds": time.perf_counter() - began,
        "parameters": sum(part.parameters for part in model.summary()),
    }


def criterion_of(recipe: Recipe, model: MultiTaskModel, index: CompositeIndex | None) -> Criterion:
    """What a search maximises: the recipe's criterion, or the mean improvement where it keeps the last epoch."""
    select = recipe.training.select
    return Criterion(MEAN_IMPROVEMENT if select == "last" else select, model.tasks, index)


def _prepared(
    rows: Rows, recipe: Recipe, reads: bool
) -> tuple[MultiTaskModel, tuple[Source, ...], tuple[Source, ...], CompositeIndex | None]:
    """Model, training and validation rows, and index of a recipe."""
    with seeded(recipe.training.seed):
        if reads:
            built = build(recipe)
            return built.model, built.sources["train"], built.sources["validation"], built.index
        model = make_model(recipe, rows.schema, rows.tasks)
    return model, rows.sources["train"], rows.sources["validation"], make_index(recipe, rows.tasks)


@functools.cache
def _opened(store: str, study: str) -> Study:
    """One connection for all trials of this worker."""
    return open_study(store, study)


def _trial(store: str, study: str | None, number: int | None) -> Trial:
    import optuna

    opened = _opened(store, str(study))
    found = next(trial for trial in opened.get_trials(deepcopy=False) if trial.number == number)
    return optuna.trial.Trial(opened, found._trial_id)
