"""What a person hands to the Python door -> sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polytask.data.arrays import as_source
from polytask.data.infer import infer_inputs
from polytask.data.preprocess import TablePreprocessor
from polytask.data.source import Source
from polytask.data.spec import InputSpec
from polytask.data.table import as_frame
from polytask.data.target_forms import target_columns
from polytask.errors import DataError
from polytask.models import MultiTaskModel
from polytask.tasks.task import Task


def is_frame(data: Any) -> bool:
    """Whether ``data`` is a polars or pandas frame."""
    return type(data).__name__ in ("DataFrame", "LazyFrame")


def as_sources(model: MultiTaskModel, data: Any) -> tuple[Source, ...]:
    """Sources of whatever a person has.

    Args:
        model: Its tasks say what the targets are; its ``input_schema`` says how frames are read.
        data: As for ``fit``; None gives no source.

    Raises:
        DataError: if data and tasks do not fit together, or a frame comes to a model that was trained on
            something else.
    """
    if data is None:
        return ()
    preprocessor = None
    if is_frame(data):
        if model.input_schema is None:
            raise DataError("This model was not trained on a frame. Pass arrays or tensors, as in training.")
        preprocessor = TablePreprocessor.from_schema(model.input_schema)
    made = as_source(data, list(model.tasks.values()), preprocessor=preprocessor)
    return tuple(made) if isinstance(made, list) else (made,)


def read_training_frame(model: MultiTaskModel, frame: Any) -> None:
    """Let the model remember how the columns of its training frame become inputs.

    Columns that are not targets are inputs, and their kinds are inferred. Numbers are standardised by the
    training rows. The model gets a dict of ``numbers``, ``missing`` and ``categories``, as the encoder
    ``tabular`` takes it; if all columns are numbers and no value is missing, it gets them as one tensor. A single
    column of images or texts reaches it as it is, as in a recipe.
    """
    table = as_frame(frame)
    tasks: Mapping[str, Task] = model.tasks
    targets = {column for task in tasks.values() for column in target_columns(task)}
    kinds = infer_inputs(table, exclude=targets)
    schema = TablePreprocessor.fit(table, {name: InputSpec(kind) for name, kind in kinds.items()}).schema
    only_numbers = set(kinds.values()) == {"number"} and not schema.missing
    model.input_schema = replace(schema, single=only_numbers or list(kinds.values()) in (["image"], ["text"]))
