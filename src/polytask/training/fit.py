"""Putting a run together: from a model and sources to a finished loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polytask import registry
from polytask.balancing.engines.choose import engine as make_engine
from polytask.balancing.making import split
from polytask.balancing.types import Engine
from polytask.data.mixing import Mixer
from polytask.data.source import Source
from polytask.errors import DataError, RecipeError, unknown
from polytask.evaluation import CompositeIndex, Criterion, Scores
from polytask.files import remove_unfinished
from polytask.models import MultiTaskModel
from polytask.tasks.task import Task, labelled
from polytask.training.callbacks import Callback
from polytask.training.finetune import Unfreezing, freezing, rate_factors
from polytask.training.history import HistoryFile, TimingsFile
from polytask.training.inspection import SharingLog
from polytask.training.loop import Loop, total_steps
from polytask.training.optim import build_optimizer, build_schedule
from polytask.training.partial import PartialUpdates
from polytask.training.runtime import Runtime
from polytask.training.selection import BestModel
from polytask.training.settings import TrainingSettings
from polytask.training.state import random_state, set_random_state
from polytask.training.strategies import Strategy


@dataclass
class Run:
    """What ``fit`` gives back.

    Attributes:
        model: The trained model, with the chosen weights.
        history: One row an epoch: training losses and validation scores.
        timings: One row an epoch: seconds, rows a second, peak memory.
        scores: Scores on the validation data of the chosen weights; None without validation data.
        path: Folder of the run, or None.
        notes: What the log said: how balancing runs, then warnings.
        best_epoch: The epoch whose weights were kept, or None for the last.
        stop_reason: Why the run stopped early, or None.
        is_main: Whether this is the process that prints and writes.
        sharing: What the sharing showed of itself over training, as ``SharingLog.entries`` gives it.
    """

    model: MultiTaskModel
    history: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    scores: Scores | None
    path: Path | None
    notes: list[str] = field(default_factory=list)
    best_epoch: int | None = None
    stop_reason: str | None = None
    is_main: bool = True
    sharing: list[dict[str, Any]] = field(default_factory=list)


def train(
    model: MultiTaskModel,
    sources: Sequence[Source],
    validation: Sequence[Source] = (),
    *,
    balancer: Any = "equal",
    settings: TrainingSettings | None = None,
    index: CompositeIndex | None = None,
    callbacks: Sequence[Callback] = (),
    path: Path | None = None,
    resume: bool = False,
) -> Run:
    """Train a model on sources.

    Args:
        model: Built or not; its tasks get what the training data fix, its heads are built if they are not.
        sources: Training rows, one source for each group of tasks that share rows.
        validation: The same for validation.
        balancer: A name, a mapping with a name and options, or an instance.
        settings: How to train.
        index: One number over the tasks, for the history and for ``select="index"``.
        callbacks: Further hooks.
        path: Folder of the run; None leaves nothing on disk.
        resume: Go on from the checkpoint in ``path``.

    Raises:
        DataError: if a task has no source, or a source's targets do not fit its task.
    """
    settings = settings or TrainingSettings()
    runtime = Runtime(settings.device, str(settings.precision))
    with seeded(settings.seed + runtime.rank), collected_warnings() as caught:
        prepare_model(model, sources)
        model.to(runtime.device)
        runtime.same_start(model)
        with freezing(model, settings.freeze) as frozen:
            hooks = _callbacks(model, validation, settings, path, runtime, index) + list(callbacks)
            loop, lines = _assemble(model, sources, validation, balancer, settings, runtime, hooks, path, frozen, index)
            if resume:
                assert path is not None
                if runtime.is_main:
                    remove_unfinished(path)
                loop.restore(path)
            loop.run()
            scores = loop.validate() if validation else None
    timings = next(callback for callback in loop.callbacks if isinstance(callback, TimingsFile))
    best = next((callback.best_epoch for callback in loop.callbacks if isinstance(callback, BestModel)), None)
    shown = next(callback for callback in loop.callbacks if isinstance(callback, SharingLog))
    if best and runtime.is_main:
        # The validation above ran with the chosen weights.
        shown.settle(model.sharing, best)
    return Run(
        model,
        loop.history,
        timings.rows,
        scores,
        path,
        [*lines, *loop.conflicts.sentences(), *caught],
        best,
        loop.stop_reason,
        runtime.is_main,
        shown.entries(),
    )


def _assemble(
    model: MultiTaskModel,
    sources: Sequence[Source],
    validation: Sequence[Source],
    balancer: Any,
    settings: TrainingSettings,
    runtime: Runtime,
    callbacks: Sequence[Callback],
    path: Path | None,
    frozen: frozenset[int],
    index: CompositeIndex | None,
) -> tuple[Loop, list[str]]:
    mixer = build_mixer(sources, settings, runtime)
    partial = _partial(model, mixer, settings, frozen)
    engine = build_engine(model, balancer, settings.seed, runtime)
    factors = rate_factors(model, settings.rates)
    parameters = model.parameters()
    optimizer = build_optimizer(settings.optimizer_settings, parameters, settings.lr, settings.weight_decay, factors)
    schedule = build_schedule(settings, optimizer, total_steps(settings, partial.steps_per_epoch))
    loop = Loop(
        model, mixer, validation, engine, optimizer, schedule, runtime, settings, partial, callbacks, path, index
    )
    strategy = partial.strategy.describe()
    return loop, [f"{engine.describe()} {loop.conflicts.describe()}", *([strategy] if strategy else [])]


def build_engine(model: MultiTaskModel, balancer: Any, seed: int, runtime: Runtime) -> Engine:
    """The engine that runs a balancer on a model.

    Raises:
        RecipeError: for an unknown name or option.
        BalancerError: for a balancer that cannot work with the model's sharing; the message says what can.
    """
    kinds = {name: task.kind for name, task in model.tasks.items()}
    method, options = split(balancer, tasks=list(model.tasks), kinds=kinds, seed=seed)
    return make_engine(
        method.to(runtime.device),
        model,
        reduce=runtime.sum if runtime.world > 1 else None,
        features_ok=model.supports_features,
        why_not=f"the sharing '{type(model.sharing).__name__}' has no common features",
        **options,
    )


def build_strategy(settings: TrainingSettings, tasks: Sequence[str]) -> Strategy:
    """The strategy of the settings, for tasks by name.

    Raises:
        RecipeError: for an unknown name or option.
    """
    name, options = settings.strategy_options
    strategy: Strategy = registry.build("strategies", name, options, tasks=list(tasks))
    return strategy


def _partial(model: MultiTaskModel, mixer: Mixer, settings: TrainingSettings, frozen: frozenset[int]) -> PartialUpdates:
    strategy = build_strategy(settings, list(model.tasks))
    steps_per_epoch = mixer.steps_per_epoch * strategy.steps_per_batch
    strategy.check(mixer, -(-total_steps(settings, steps_per_epoch) // steps_per_epoch))
    return PartialUpdates(model, strategy, steps_per_epoch, Unfreezing(model, settings.unfreeze_every, frozen))


def _callbacks(
    model: MultiTaskModel,
    validation: Sequence[Source],
    settings: TrainingSettings,
    path: Path | None,
    runtime: Runtime,
    index: CompositeIndex | None,
) -> list[Callback]:
    found: list[Callback] = [TimingsFile(path if runtime.is_main else None), SharingLog(list(model.tasks))]
    if path is None and settings.loggers:
        raise RecipeError("training.loggers need a folder to write to. Give the run one with out=...")
    if path is not None:
        found.append(HistoryFile(path, runtime.is_main))
        if "tensorboard" in settings.loggers:
            from polytask.training.tensorboard import TensorBoard

            found.append(TensorBoard(path))
    if settings.select != "last":
        criterion = Criterion(settings.select, model.tasks, index)
        if validation:
            found.append(BestModel(criterion, settings.patience, path))
        elif settings.patience is not None:
            raise RecipeError("training.patience needs validation data. Pass validation rows, or leave it out.")
    return found


def prepare_model(model: MultiTaskModel, sources: Sequence[Source]) -> None:
    """Fit the tasks to the training targets and build the heads.

    Raises:
        DataError: if a source has targets for an unknown task, or a task has none.
    """
    for source in sources:
        for name in source.tasks:
            if name not in model.tasks:
                raise DataError(f"The training data have targets that no head predicts. {_unknown(name, model)}")
    model.replace_tasks([_fitted(task, sources) for task in model.tasks.values()])
    if not model.is_built:
        model.build(sources[0].example)


def _unknown(name: str, model: MultiTaskModel) -> str:
    return unknown("task", name, model.tasks)


def _fitted(task: Task, sources: Sequence[Source]) -> Task:
    mine = [source for source in sources if task.name in source.tasks]
    if not mine:
        found = sorted({name for source in sources for name in source.tasks})
        raise DataError(f"No training data for task '{task.name}'; there are targets for: {', '.join(found)}.")
    targets = [source.targets(task.name) for source in mine]
    if any(values is None for values in targets):
        # A data set that is read row by row: the task stays as the user declared it.
        return task
    known = torch.cat([values for values in targets if values is not None])
    if not labelled(known).any():
        raise DataError(f"Task '{task.name}' has no label at all in the {len(known)} training rows.")
    weights = [source.weights(task.name) for source in mine]
    whole = torch.cat([w for w in weights if w is not None]) if all(w is not None for w in weights) else None
    return task.fitted(known, whole)


def build_mixer(sources: Sequence[Source], settings: TrainingSettings, runtime: Runtime) -> Mixer:
    """The mixer over the training sources.

    Raises:
        RecipeError: for a batch size of an unknown task.
    """
    known = sorted({task for source in sources for task in source.tasks})
    for task in settings.batch_sizes:
        if task not in known:
            raise RecipeError(f"training.batch_sizes: {unknown('task', task, known)}")
    sizes = [_batch_size(source, settings.batch_sizes, settings.batch_size) for source in sources]
    name, options = settings.sampler_options
    sampler = registry.build("samplers", name, options)
    return Mixer(sources, sizes, sampler, settings.seed, runtime.rank, runtime.world)


def _batch_size(source: Source, sizes: Mapping[str, int], default: int) -> int:
    own = [sizes[task] for task in source.tasks if task in sizes]
    return max(own) if own else default


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for dropout, initial weights and user code; give the caller's back afterwards."""
    before = random_state()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - user code may use it
    import random

    random.seed(seed)
    try:
        yield
    finally:
        set_random_state(before)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the texts of warnings for the report while they are shown as usual."""
    texts: list[str] = []
    show = warnings.showwarning

    def note(message: Any, category: Any, *rest: Any, **named: Any) -> None:
        if str(message) not in texts:
            texts.append(str(message))
        show(message, category, *rest, **named)

    warnings.showwarning = note
    try:
        yield texts
    finally:
        warnings.showwarning = show
