"""The Python door: fit, evaluate, run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polytask.api.frames import as_sources, is_frame, read_training_frame
from polytask.api.results import Context, finish
from polytask.api.rundir import RunDirectory
from polytask.api.runs import SaysHowToResume, display
from polytask.data.source import Source
from polytask.errors import RecipeError
from polytask.evaluation import CompositeIndex, Decision, Scores
from polytask.evaluation import evaluate as evaluate_sources
from polytask.models import MultiTaskModel
from polytask.training.callbacks import Callback
from polytask.training.fit import Run, prepare_model, seeded
from polytask.training.fit import train as train_sources
from polytask.training.runtime import Runtime
from polytask.training.settings import (
    AugmentSettings,
    OptimizerSettings,
    PenaltySettings,
    RateSettings,
    ScheduleSettings,
    TrainingSettings,
)


def fit(
    model: MultiTaskModel,
    train: Any,
    validation: Any = None,
    *,
    test: Any = None,
    balancer: Any = "equal",
    epochs: int = 10,
    steps: int | None = None,
    batch_size: int = 1024,
    batch_sizes: Mapping[str, int] | None = None,
    accumulate: int = 1,
    strategy: str | Mapping[str, Any] = "joint",
    freeze: str | Sequence[str] = (),
    unfreeze_every: int | None = None,
    lr: float = 0.001,
    rates: RateSettings | None = None,
    optimizer: OptimizerSettings | str = "adamw",
    schedule: ScheduleSettings | str = "constant",
    weight_decay: float = 0.0,
    clip: float | None = None,
    penalties: PenaltySettings | None = None,
    input_noise: float = 0.0,
    augment: AugmentSettings | None = None,
    sampler: str | Mapping[str, Any] = "proportional",
    select: str = "mean_improvement",
    index: str | Mapping[str, Any] | None = None,
    decision: str | Sequence[str] | Mapping[str, Any] | None = None,
    patience: int | None = None,
    validate_every: int = 1,
    checkpoint_every: int | None = None,
    log_every: int = 1,
    loggers: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    precision: str | int = "32",
    callbacks: Sequence[Callback] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Train a multi-task model.

    Args:
        model: The model; its heads are built from the first rows if they are not yet.
        train: A dict of arrays or tensors, a polars or pandas frame, a ``Dataset`` or ``DataLoader``
            that yields ``Batch`` or ``(inputs, targets)``, a ``Source``, or a dict of those by task.
        validation: The same, for choosing the best epoch; None keeps the last weights.
        test: The same; evaluated once at the end, for ``out``'s metrics and report.
        balancer: A name, ``{"name": ..., options}`` or an instance.
        epochs: Passes over the data; ``steps`` wins where given.
        steps: Optimizer steps.
        batch_size: Rows of a step, over all processes and micro-batches.
        batch_sizes: Batch sizes of single tasks where tasks have rows of their own.
        accumulate: Micro-batches a step is cut into; the result is the same.
        strategy: ``joint``, ``alternating``, ``hierarchical``, or ``{"name": ..., options}``.
        freeze: Path of a part that is not trained, or several, such as ``encoder.stages.0``.
        unfreeze_every: Epochs after which one more stage of an encoder that starts frozen is trained.
        lr: Learning rate.
        rates: Factors of ``lr`` for the encoder, its stages and the heads.
        optimizer: ``adamw``, ``adam``, ``sgd``, an import path, or settings with options.
        schedule: ``constant``, ``cosine``, ``linear``, ``step``, ``exponential``, or settings with options.
        weight_decay: Of the optimizer, for matrices only.
        clip: Largest norm of the gradient.
        penalties: L1, L2, elastic net; weights of the sharing's penalties.
        input_noise: Deviation of the noise on floating inputs.
        augment: Random changes of images that boxes and masks follow.
        sampler: How separate sources take turns.
        select: Criterion for the best weights, or ``last``.
        index: One number over several tasks, such as ``"0.7*income.auroc + 0.3*education.accuracy"``, as in a recipe.
        decision: A rule over predictions, such as ``"approve if income > 0.8 else decline"``, as in a recipe.
        patience: Validations without improvement until the run stops.
        validate_every: Epochs between validations.
        checkpoint_every: Steps between checkpoints besides those at the end of epochs.
        log_every: Steps between rows of ``history.csv``.
        loggers: ``["tensorboard"]`` writes event files beside ``out``'s history.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``32`` or ``bf16-mixed``.
        callbacks: Further hooks.
        out: Folder for history, metrics, bundle, checkpoints and report; must not exist.
        resume: Folder of a run to go on with instead.
        progress: Whether to show the live display.

    Returns:
        The run: ``.model``, ``.history``, ``.scores`` (validation), ``.path``.

    Raises:
        DataError: if data and tasks do not fit together.
        RecipeError: for an unknown name or option, or an ``out`` that exists.

    Example:
        >>> import torch, polytask as pt
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> data = {"x": x, "up": (x[:, 0] > 0).float(), "size": x.norm(dim=1)}
        >>> tasks = [pt.tasks.binary("up"), pt.tasks.regression("size")]
        >>> model = pt.MultiTaskModel(pt.sharing.Hard(torch.nn.Linear(3, 8)), tasks)
        >>> run = pt.fit(model, data, epochs=2, batch_size=16, progress=False)
        >>> [row["epoch"] for row in run.history]
        [1, 2]
    """
    settings = TrainingSettings(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        batch_sizes=dict(batch_sizes or {}),
        accumulate=accumulate,
        strategy=strategy,
        freeze=freeze if isinstance(freeze, str) else tuple(freeze),
        unfreeze_every=unfreeze_every,
        lr=lr,
        rates=rates or RateSettings(),
        optimizer=optimizer,
        schedule=schedule,
        weight_decay=weight_decay,
        clip=clip,
        penalties=penalties or PenaltySettings(),
        input_noise=input_noise,
        augment=augment or AugmentSettings(),
        sampler=sampler,
        select=select,
        patience=patience,
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        loggers=tuple(loggers),
        seed=seed,
        device=device,
        precision=precision,
    )
    if out is not None and resume is not None:
        raise RecipeError("Give either out= for a new run or resume= to go on with one, not both.")
    if is_frame(train) and model.input_schema is None:
        read_training_frame(model, train)
    given = {"train": train, "validation": validation, "test": test}
    sources = {part: as_sources(model, data) for part, data in given.items()}
    if decision is not None and out is None and resume is None:
        raise RecipeError(
            "A decision goes into the bundle of the run. Give fit a folder with out=..., or leave it out."
        )
    composite, rule = _over_tasks(model, sources["train"], seed, index, decision)
    runtime = Runtime(device, str(precision))
    directory = RunDirectory.open(resume) if resume else _new_directory(out, runtime, seed) if out else None
    plain = {"training": dataclasses.asdict(settings), "balancer": balancer if _is_plain(balancer) else str(balancer)}
    with display(progress) as shown:
        own = [SaysHowToResume(directory.path)] if directory else []
        run = train_sources(
            model,
            sources["train"],
            sources["validation"],
            balancer=balancer,
            settings=settings,
            index=composite,
            callbacks=[*callbacks, *shown, *own],
            path=directory.path if directory else None,
            resume=resume is not None,
        )
    if directory:
        finish(
            directory, run, settings, Context("Run", plain, sources, model.input_schema, index=composite, decision=rule)
        )
    return run


def _over_tasks(
    model: MultiTaskModel, train: Sequence[Source], seed: int, index: Any, decision: Any
) -> tuple[CompositeIndex | None, Decision | None]:
    """Index and decision over the model's tasks, which have to know their classes for it."""
    if index is None and decision is None:
        return None, None
    with seeded(seed):
        prepare_model(model, train)
    return (
        None if index is None else CompositeIndex(index, model.tasks),
        None if decision is None else Decision(decision, model.tasks),
    )


def _new_directory(out: str | Path, runtime: Runtime, seed: int) -> RunDirectory:
    if runtime.is_main:
        RunDirectory.create(out).write_facts(seed, "polytask.fit(...)")
    runtime.barrier()
    return RunDirectory(Path(out))


def _is_plain(balancer: Any) -> bool:
    return isinstance(balancer, str | Mapping)


def evaluate(
    model: MultiTaskModel, data: Any, *, batch_size: int = 8192, device: str = "auto", precision: str | int = "32"
) -> Scores:
    """Score a model on labelled data.

    Args:
        model: A trained model.
        data: As for ``fit``.
        batch_size: Rows at a time.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``32`` or ``bf16-mixed``.

    Returns:
        Scores: ``scores["income"]["auroc"]``.

    Raises:
        DataError: if the data have no labels for any task of the model.
    """
    runtime = Runtime(device, str(precision))
    sources = as_sources(model, data)
    model.to(runtime.device)
    return evaluate_sources(model, sources, batch_size=batch_size, device=runtime.device, autocast=runtime.autocast)
