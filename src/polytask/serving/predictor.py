"""Predictions for people: decoded labels and probabilities, one column set a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polytask.data.batch import first_tensor, joined_rows, map_tensors
from polytask.data.images import with_folder
from polytask.data.preprocess import TablePreprocessor
from polytask.data.schema import TableSchema
from polytask.data.source import TensorSource
from polytask.data.target_forms import target_columns
from polytask.errors import DataError, unknown
from polytask.evaluation import CompositeIndex, Decision
from polytask.models import MultiTaskModel
from polytask.serving.bundle import read_model, read_spec
from polytask.training.runtime import Runtime

if TYPE_CHECKING:
    import polars as pl


class Predictor:
    """A trained model with everything between a person's table and a person's answer.

    Args:
        model: A trained model.
        preprocessor: Turns a table into inputs; None if inputs are tensors already.
        device: Where to compute.
        decision: Decides for every row, or None.
        index: One number over the tasks for scores, or None.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        preprocessor: TablePreprocessor | None = None,
        device: str | torch.device = "cpu",
        decision: Decision | None = None,
        index: CompositeIndex | None = None,
    ):
        self.model = model.to(device).eval()
        self.preprocessor = preprocessor
        self.device = torch.device(device)
        self.decision, self.index = decision, index

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.model.tasks)

    def inputs(self, data: Any) -> Any:
        """What the model takes, for a table, a path or tensors.

        Raises:
            DataError: if a column is missing or a value does not parse.
        """
        from polytask.data.table import as_frame, read_table

        if self.preprocessor is None:
            tensors = map_tensors(_tensors(data), lambda tensor: tensor)
            if first_tensor(tensors) is None:
                raise DataError(f"This model takes tensors or arrays, as in training; got {type(data).__name__}.")
            return tensors
        if isinstance(data, str | Path):
            data = self.located(read_table(data), Path(data).parent)
        elif isinstance(data, Mapping):
            import polars as pl

            data = pl.DataFrame(dict(data))
        return self.preprocessor.inputs(as_frame(data))

    def located(self, frame: pl.DataFrame, folder: Path) -> pl.DataFrame:
        """A table whose relative paths of images and sounds, inputs and masks, are taken from a folder."""
        schema = TableSchema() if self.preprocessor is None else self.preprocessor.schema
        masks = [name for t in self.model.tasks.values() if t.target.form == "mask" for name in target_columns(t)]
        return with_folder(frame, [*(c.name for c in schema.images), *(c.name for c in schema.sounds), *masks], folder)

    def raw(self, data: Any, tasks: Sequence[str] | None = None, batch_size: int = 8192) -> dict[str, Tensor]:
        """Raw outputs by task, ``[rows, ...]``, on the CPU."""
        return self._run(data, tasks, batch_size, keep=lambda task, raw: raw)

    @torch.inference_mode()
    def _run(
        self, data: Any, tasks: Sequence[str] | None, batch_size: int, keep: Callable[[str, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        for task in tasks or ():
            if task not in self.model.tasks:
                raise DataError(unknown("task", task, self.model.tasks))
        source = TensorSource(self.inputs(data), {})
        wanted = tuple(tasks or self.tasks)
        parts: dict[str, list[Tensor]] = {task: [] for task in wanted}
        order = list(source.readings(batch_size))
        for rows in order:
            piece = map_tensors(source.take(rows).inputs, lambda tensor: tensor.to(self.device))
            for task, output in self.model(piece, wanted).items():
                parts[task].append(keep(task, output).cpu())
        back = torch.cat(order).argsort()
        return {task: joined_rows(outputs)[back] for task, outputs in parts.items()}

    def predict(self, data: Any, tasks: Sequence[str] | None = None, batch_size: int = 8192) -> pl.DataFrame:
        """Decoded predictions.

        Args:
            data: A polars or pandas frame, a mapping of columns, a path; or tensors where training had tensors.
            tasks: Only these tasks.
            batch_size: Rows at a time.

        Returns:
            A polars frame with, for each task, its prediction and such columns as ``income_probability``; then
            the decision, if the model has a rule and all tasks that it reads are among these.

        Raises:
            DataError: if a column is missing (did you mean), or a value does not parse (record, column, value).
        """
        import polars as pl

        columns: dict[str, Any] = {}
        known = self.model.tasks
        kept = self._run(data, tasks, batch_size, keep=lambda task, raw: known[task].kept(raw))
        for task, output in kept.items():
            for suffix, values in known[task].decode(output).items():
                columns[f"{task}_{suffix}" if suffix else task] = values
        if self.decision is not None and set(self.decision.needs) <= set(kept):
            columns[self.decision.settings.column] = pl.Series(list(self.decision(kept)), dtype=pl.String)
        return pl.DataFrame(columns)


def _tensors(data: Any) -> Any:
    import numpy as np

    if isinstance(data, np.ndarray):
        tensor = torch.from_numpy(data)
        return tensor.float() if tensor.dtype == torch.float64 else tensor
    if isinstance(data, Mapping):
        return {key: _tensors(value) for key, value in data.items()}
    return data


def load(path: str | Path, *, encoder: nn.Module | None = None, device: str = "cpu") -> Predictor:
    """Turn a bundle back into a predictor.

    Args:
        path: A bundle's folder, such as ``RUN/bundle``.
        encoder: Your own encoder, where the bundle does not know how to build it.
        device: ``cpu``, ``cuda``, ... or ``auto``.

    Raises:
        RecipeError: if there is no bundle, or an encoder is needed.
    """
    folder = Path(path)
    spec = read_spec(folder)
    model = read_model(folder, spec, encoder)
    preprocessor = TablePreprocessor.from_schema(TableSchema.from_dict(spec["schema"])) if spec["schema"] else None
    decision = Decision(spec["decision"], model.tasks) if spec.get("decision") else None
    index = CompositeIndex(spec["index"], model.tasks) if spec.get("index") else None
    return Predictor(model, preprocessor, Runtime("auto").device if device == "auto" else device, decision, index)
