"""What a training run can be told: plain data, the same for the recipe and for Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from polytask.errors import RecipeError


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimizer, and its options.

    Args:
        name: ``adamw``, ``adam``, ``sgd``, or an import path such as ``torch.optim:NAdam``.
        options: Further options of that class, such as ``{momentum: 0.9}``.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    name: str = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate goes over the run.

    Args:
        name: ``constant``, ``cosine``, ``linear``, ``step`` or ``exponential``.
        warmup: Share of the run (below 1) or number of steps (from 1) in which the rate rises from 0.
        end: What part of the rate is left at the end (``cosine``, ``linear``, ``exponential``).
        at: Parts of the run at which ``step`` multiplies the rate by ``factor``.
        factor: The factor of ``step``.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    name: Literal["constant", "cosine", "linear", "step", "exponential"] = "constant"
    warmup: float = 0.0
    end: float = 0.0
    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1


@dataclass(frozen=True)
class PenaltySettings:
    """Penalties that are added to the balanced loss, outside of balancing.

    Args:
        l1: Times the sum of absolute weights.
        l2: Times half the sum of squared weights.
        elastic_net: Times (ratio * L1 + (1 - ratio) * L2).
        ratio: Share of L1 in the elastic net.
        sharing: Weights of the sharing's own penalties by name; one that is not named counts with 1.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    l1: float = 0.0
    l2: float = 0.0
    elastic_net: float = 0.0
    ratio: float = 0.5
    sharing: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AugmentSettings:
    """Random changes of the images of training batches; boxes, masks and maps move along.

    Args:
        flip: Probability that an image is mirrored, left and right exchanged.
        flip_vertical: Probability that it is turned upside down.
        crop: Largest change of the size of the part that is shown, and largest shift of its middle as a part of the
            image on both sides together.
        noise: Deviation of Gaussian noise, where images go from 0 to 1.
        colour: Largest relative change of contrast and of each channel's brightness.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    flip: float = 0.0
    flip_vertical: float = 0.0
    crop: float = 0.0
    noise: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "flip_vertical"):
            value = getattr(self, name)
            _require(f"augment.{name}", value, 0 <= value <= 1, "a probability from 0 to 1")
        for name in ("crop", "colour"):
            value = getattr(self, name)
            _require(f"augment.{name}", value, 0 <= value < 1, "from 0 to below 1")
        _require("augment.noise", self.noise, self.noise >= 0, "at least 0")

    @property
    def moves(self) -> bool:
        """Whether anything is somewhere else afterwards."""
        return bool(self.flip or self.flip_vertical or self.crop)

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.moves or self.noise or self.colour)


@dataclass(frozen=True)
class RateSettings:
    """Learning rates of parts, as factors of ``lr``; the schedule works on all alike.

    Args:
        encoder: Of the encoder's last stage, or of the whole encoder without ``layer_decay``.
        heads: Of the heads.
        layer_decay: From each stage of the encoder to the one below it. What the encoder has outside of its stages,
            such as embeddings, counts as a stage below the first.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    encoder: float = 1.0
    heads: float = 1.0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        for name in ("encoder", "heads", "layer_decay"):
            _require(
                f"rates.{name}", getattr(self, name), getattr(self, name) > 0, "above 0; freeze: [...] fixes parts"
            )


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Args:
        epochs: Passes over the data; ``steps`` wins where given.
        steps: Length of the run in optimizer steps instead of epochs.
        batch_size: Rows of one optimizer step, over all processes and micro-batches (and per task where
            tables are separate).
        batch_sizes: Batch sizes of single tasks where tables are separate.
        accumulate: Into how many micro-batches a step is cut to save memory; the result is the same.
        strategy: Which parameters and tasks a step touches: ``joint``, ``alternating`` or ``hierarchical``, or name
            and options.
        freeze: Path of a part that is not trained, or several, such as ``encoder.stages.0``; ``*`` stands for
            anything. Their BatchNorm statistics stay and are what they normalise by.
        unfreeze_every: Start with the encoder frozen, and after every so many epochs train one more of its stages,
            from the last to the first; null trains all from the start.
        lr: Learning rate.
        rates: Factors of ``lr`` for the encoder, its stages and the heads.
        optimizer: Name, or name and options.
        schedule: Name, or name and options.
        weight_decay: Of the optimizer; biases and normalisation layers are left out.
        clip: Largest norm of the whole gradient; larger ones are scaled down.
        precision: ``32`` or ``bf16-mixed``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        seed: Of everything random.
        select: The multi-task criterion for the best model and early stopping: ``mean_improvement`` (mean
            normalised improvement over the first validation), a task's metric such as ``income.auroc``, or
            ``index``, the composite index; ``last`` keeps the last weights.
        patience: Stop after so many validations without an improvement; null never stops early.
        validate_every: Epochs between validations.
        checkpoint_every: Steps between checkpoints besides the one at the end of every epoch.
        log_every: Steps between rows of ``history.csv``.
        monitor_every: Steps between looks at how much the tasks' gradients conflict; 0 never looks. A look costs
            a part of a step where the method takes no gradients apart, and nothing else where it does (those
            methods are looked at every tenth step, or as often as this says if that is more often). It never
            changes what is trained.
        monitor_layers: Whether these looks also go through the last eight shared layers, one backward a task, and show
            where in the network the tasks conflict.
        penalties: L1, L2, elastic net, and weights of the sharing's penalties.
        input_noise: Standard deviation of the Gaussian noise that training adds to numeric inputs.
        augment: Random changes of images that boxes and masks follow, such as ``{flip: 0.5, crop: 0.1}``.
        sampler: How separate sources take turns: a name, or name and options.
        loggers: ``tensorboard`` writes event files beside history.csv.
        evaluation_batch_size: Rows of a batch where nothing is trained.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    epochs: int = 10
    steps: int | None = None
    batch_size: int = 1024
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    accumulate: int = 1
    strategy: str | Mapping[str, Any] = "joint"
    freeze: str | tuple[str, ...] = ()
    unfreeze_every: int | None = None
    lr: float = 0.001
    rates: RateSettings = field(default_factory=RateSettings)
    optimizer: OptimizerSettings | str = "adamw"
    schedule: ScheduleSettings | str = "constant"
    weight_decay: float = 0.0
    clip: float | None = None
    precision: str | int = "32"
    device: str = "auto"
    seed: int = 0
    select: str = "mean_improvement"
    patience: int | None = None
    validate_every: int = 1
    checkpoint_every: int | None = None
    log_every: int = 1
    monitor_every: int = 100
    monitor_layers: bool = False
    penalties: PenaltySettings = field(default_factory=PenaltySettings)
    input_noise: float = 0.0
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    sampler: str | Mapping[str, Any] = "proportional"
    loggers: tuple[str, ...] = ()
    evaluation_batch_size: int = 8192

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "accumulate", "validate_every", "log_every", "evaluation_batch_size")
        for name in counts:
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "patience", "checkpoint_every", "unfreeze_every"):
            value = getattr(self, name)
            _require(name, value, value is None or value >= 1, "at least 1, or null")
        for name in ("weight_decay", "input_noise", "monitor_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _require("monitor_every", 0, self.monitor_every > 0 or not self.monitor_layers, "above 0 with monitor_layers")
        _require("lr", self.lr, self.lr > 0, "above 0")
        _require("clip", self.clip, self.clip is None or self.clip > 0, "above 0, or null")
        _require("precision", self.precision, str(self.precision) in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        if isinstance(self.schedule, str):
            _require("schedule", self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        for name in self.loggers:
            _require("loggers", name, name in LOGGERS, f"among: {', '.join(LOGGERS)}")

    @property
    def optimizer_settings(self) -> OptimizerSettings:
        """The optimizer with its options, also where only a name was given."""
        return OptimizerSettings(self.optimizer) if isinstance(self.optimizer, str) else self.optimizer

    @property
    def schedule_settings(self) -> ScheduleSettings:
        """The schedule with its options, also where only a name was given."""
        if not isinstance(self.schedule, str):
            return self.schedule
        return ScheduleSettings(self.schedule)  # type: ignore[arg-type]  # checked when these settings were made

    @property
    def sampler_options(self) -> tuple[str, dict[str, Any]]:
        """The sampler's name and options."""
        return _named(self.sampler, "proportional")

    @property
    def strategy_options(self) -> tuple[str, dict[str, Any]]:
        """The strategy's name and options."""
        return _named(self.strategy, "joint")


def _named(value: str | Mapping[str, Any], default: str) -> tuple[str, dict[str, Any]]:
    options = {} if isinstance(value, str) else dict(value)
    return (value if isinstance(value, str) else str(options.pop("name", default))), options


PRECISIONS = ("32", "bf16-mixed")
LOGGERS = ("tensorboard",)
SCHEDULES = ("constant", "cosine", "linear", "step", "exponential")


def _require(name: str, value: Any, good: bool, wanted: str) -> None:
    if not good:
        raise RecipeError(f"training.{name} is {value!r}; it has to be {wanted}.")
