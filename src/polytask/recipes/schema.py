"""What a recipe can say: dataclasses that YAML is validated against, and that Python can fill as well.

The recipe reference of the documentation is generated from the docstrings here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from polytask.data.spec import InputSpec
from polytask.data.table import NA
from polytask.errors import RecipeError, unknown
from polytask.evaluation import DecisionSettings, IndexSettings
from polytask.training.settings import TrainingSettings

FORMATS = ("auto", "conll")
ON_BAD = ("error", "skip")


@dataclass(frozen=True)
class SplitSettings:
    """How rows are divided where the data do not come divided.

    Args:
        validation: Share of the training rows that is held out for choosing and stopping.
        test: Share of all rows that is held out for the end; unused where the data have test rows.
        by: A column that says ``train``, ``validation`` or ``test`` for every row.
        stratify: A task or column whose values every part gets in the same shares.
        seed: Of the draw; it does not depend on ``training.seed``.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    validation: float = 0.1
    test: float = 0.2
    by: str | None = None
    stratify: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise RecipeError(f"data.split.{name} is {value}; it is a share of the rows, from 0 to below 1.")


@dataclass(frozen=True)
class DataSettings:
    """Where rows come from: one of ``table``, ``dataset``, ``train`` or ``tables``.

    Args:
        table: One file (CSV, TSV, Parquet, Arrow/Feather) that is split by ``split``.
        dataset: A built-in data set by name.
        train: File of the training rows.
        validation: File of the validation rows; a share of ``train`` if left out.
        test: File of the test rows.
        tables: One entry like this for each task, where tasks have different rows. An entry that serves several
            tasks names them in ``tasks`` and may have any name.
        tasks: In an entry of ``tables``: the tasks of its rows; the one that the entry is named after if left out.
        root: Folder with the files of ``dataset``, if you have them; nothing is fetched then.
        format: ``auto`` (by the file's ending) or ``conll``: a line for each word with its tags in ``columns``, an
            empty line between texts.
        columns: Names of the columns of a ``conll`` file.
        header: Whether a CSV starts with the column names; without, columns are ``column_1``, ``column_2``, ...
        separator: Between the fields of a CSV.
        na: What stands for a missing value in a CSV.
        on_bad: What to do with a row that cannot be used, such as a number that does not parse, an image that cannot be
            read, or tags that break their scheme: ``error`` (the default), or ``skip`` it with a warning that counts.
        split: How rows are divided.
        weight: Column with a weight for every row, or one for each task.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    table: str | None = None
    dataset: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    tables: Mapping[str, DataSettings] | None = None
    tasks: Sequence[str] = ()
    root: str | None = None
    format: str = "auto"
    columns: Sequence[str] = ()
    header: bool = True
    separator: str = ","
    na: Sequence[str] = NA
    on_bad: str | None = None
    split: SplitSettings = field(default_factory=SplitSettings)
    weight: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("table", "dataset", "train", "tables") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            raise RecipeError(f"data needs exactly one of table, dataset, train, tables; found {found}.")
        if (self.validation or self.test) and not self.train:
            raise RecipeError("data.validation and data.test go with data.train; found no data.train.")
        if self.format not in FORMATS:
            raise RecipeError(f"data.format: {unknown('format', self.format, FORMATS)}")
        if self.on_bad is not None and self.on_bad not in ON_BAD:
            raise RecipeError(f"data.on_bad: {unknown('way', self.on_bad, ON_BAD)}")
        if (self.format == "conll") != bool(self.columns):
            raise RecipeError("data.columns and data.format: conll go together: columns: [words, tags] names them.")


@dataclass(frozen=True)
class ModelSettings:
    """The network.

    Args:
        encoder: A name or ``{name: ..., options}``; a name with a colon is an import path of your own module.
            ``{hub: MODEL, options}`` says the same as ``{name: hub, model: MODEL, options}``.
        sharing: A name or ``{name: ..., options}``.
        heads: Options of all heads that a task does not set itself, such as ``{hidden: [64], dropout: 0.1}``.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    encoder: str | Mapping[str, Any] = "tabular"
    sharing: str | Mapping[str, Any] = "hard"
    heads: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.encoder, Mapping) and "hub" in self.encoder:
            options = dict(self.encoder)
            model = options.pop("hub")
            if {"name", "model"} & options.keys():
                raise RecipeError(
                    "model.encoder has 'hub' beside 'name' or 'model'. Say {hub: MODEL} or {name: hub, model: MODEL}."
                )
            object.__setattr__(self, "encoder", {"name": "hub", "model": model, **options})


@dataclass(frozen=True)
class ReportSettings:
    """What the report shows beside the results.

    Args:
        title: Its heading.
        reference: For each task, rows ``{label: {metric: value}}`` to print beside ours.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    title: str | None = None
    reference: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A run, described as data.

    Args:
        data: Where rows come from.
        tasks: For each task its ``type`` and the options of that type; ``column`` names its column if it
            is not the task's name, ``weight`` a column of row weights.
        inputs: For each input column its kind, or its kind and how it is read; inferred and printed if left out.
        preprocessing: How columns are read that do not say it themselves, such as ``{scale: quantile}``.
        model: The network.
        balancer: A name or ``{name: ..., options}``.
        training: How to train.
        index: One number over the metrics of several tasks: an expression such as
            ``0.7*income.auroc + 0.3*education.accuracy``, or settings. ``training.select: index`` selects by it.
        decision: A rule such as ``approve if income > 0.8 and risk < 0.1 else decline``, a list of rules, or
            settings; predictions get a column with it.
        report: What the report shows.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    data: DataSettings
    tasks: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, str | InputSpec] | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    model: ModelSettings = field(default_factory=ModelSettings)
    balancer: str | Mapping[str, Any] = "equal"
    training: TrainingSettings = field(default_factory=TrainingSettings)
    index: str | IndexSettings | None = None
    decision: str | tuple[str, ...] | DecisionSettings | None = None
    report: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise RecipeError("A recipe needs at least one task, such as tasks: {income: {type: binary}}.")
        if self.data.tasks:
            raise RecipeError(
                "data.tasks says which tasks an entry of data.tables serves, as in data: {tables: {news: {table: "
                "news.parquet, tasks: [topic, length]}}}. Leave it out where all tasks share rows."
            )
        for name, options in self.tasks.items():
            if "type" not in options:
                raise RecipeError(f"tasks.{name} has no type. Say for example {name}: {{type: binary}}.")


def named(value: str | Mapping[str, Any], default: str, where: str) -> tuple[str, dict[str, Any]]:
    """Split a name with options, as recipes write it.

    Example:
        >>> named({"name": "mlp", "hidden": [8]}, "tabular", "model.encoder")
        ('mlp', {'hidden': [8]})
        >>> named("mlp", "tabular", "model.encoder")
        ('mlp', {})
    """
    if isinstance(value, str):
        return value, {}
    options = dict(value)
    name = options.pop("name", default)
    if not isinstance(name, str):
        raise RecipeError(f"{where}.name is {name!r}; it has to be a name.")
    return name, options
