"""What the commands evaluate and predict do."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polytask.api.rundir import METRICS, RunDirectory
from polytask.data.arrays import as_source
from polytask.data.table import NA, column_of, read_table
from polytask.errors import DataError, RecipeError
from polytask.evaluation import Scores
from polytask.evaluation import evaluate as evaluate_sources
from polytask.files import replacing
from polytask.recipes.frames import dataset_facts, read_file
from polytask.serving import load

if TYPE_CHECKING:
    import polars as pl

    from polytask.recipes.schema import DataSettings

WRITERS = {".csv": "write_csv", ".parquet": "write_parquet", ".arrow": "write_ipc", ".feather": "write_ipc"}


def bundle_of(run: Path) -> Path:
    """The bundle of a run, or the folder itself if it is a bundle."""
    return run / "bundle" if (run / "bundle").is_dir() else run


def _read(run: Path, table: Path) -> pl.DataFrame:
    """Read a table as the run's recipe says that its tables are written."""
    data: DataSettings | None = None
    if (run / "recipe.yaml").exists():
        data = RunDirectory.open(run).recipe().data
    if data is None:
        return read_table(table)
    if data.dataset is not None:
        # What counts as missing in the data set does so in a table like it as well.
        own: tuple[str, ...] = dataset_facts(data.dataset).get("data", {}).get("na", NA)
        return read_table(table, na=own)
    return read_file(data, table)


def evaluate_run(run: Path, table: Path | None = None) -> Scores:
    """Scores of a run's model on its test rows, or on the labelled rows of a table.

    Raises:
        RecipeError: if there is no run, or it has no scores yet.
        DataError: if the table does not fit the model.
    """
    directory = RunDirectory.open(run)
    if table is None:
        path = directory.path / METRICS
        if not path.exists():
            raise RecipeError(f"'{run}' has no {METRICS} yet. Finish it with: polytask fit --resume {run}")
        parts = json.loads(path.read_text(encoding="utf-8"))
        part = next((part for part in ("test", "validation") if parts.get(part)), "")
        scores = Scores.from_dict(parts.get(part, {}))
        scores.index = parts.get("index", {}).get(part)
        return scores
    predictor = load(bundle_of(run))
    frame = predictor.located(_read(run, table), table.parent)
    source = as_source(frame, list(predictor.model.tasks.values()), preprocessor=predictor.preprocessor)
    scores = evaluate_sources(predictor.model, source if isinstance(source, list) else [source])
    if predictor.index is not None:
        scores.index = predictor.index(scores)
    return scores


def predict_file(
    run: Path, table: Path, out: Path, *, tasks: Sequence[str] | None = None, keep: Sequence[str] = ()
) -> int:
    """Write the predictions for a table; the number of rows.

    Raises:
        RecipeError: for an ``out`` of another format than CSV, Parquet or Arrow, or a CSV that would hold arrays.
        DataError: if the table does not fit the model, or a column to keep is missing.
    """
    import polars as pl

    if out.suffix.lower() not in WRITERS:
        raise RecipeError(f"--out {out}: unknown format '{out.suffix}'. Use {', '.join(WRITERS)}.")
    predictor = load(bundle_of(run))
    frame = predictor.located(_read(run, table), table.parent)
    kept = [column_of(frame, name, "column to keep") for name in keep]
    predictions = predictor.predict(frame, tasks)
    clash = [series.name for series in kept if series.name in predictions.columns]
    if clash:
        raise DataError(f"--keep {clash[0]}: a prediction has the same name. Rename the column of the table.")
    whole = pl.DataFrame(kept).hstack(predictions.get_columns()) if kept else predictions
    nested = [series.name for series in whole.get_columns() if series.dtype.is_nested()]
    if nested and out.suffix.lower() == ".csv":
        raise RecipeError(f"--out {out}: column '{nested[0]}' holds arrays, which CSV cannot. Use .parquet or .arrow.")
    with replacing(out) as unfinished:
        getattr(whole, WRITERS[out.suffix.lower()])(unfinished)
    return len(whole)


def summary(run: Path) -> str:
    """The scores of a finished run beside its references, and where its report lies: what ``fit`` prints last."""
    from polytask.reporting import RunRecord

    record = RunRecord.load(run / "report.json")
    part = "test" if any("test" in task.scores for task in record.tasks) else "validation"
    lines = [f"Scores on the {part} rows"]
    for task in record.tasks:
        own = task.scores.get(part, {})
        chosen = [task.primary, *[name for name in own if name != task.primary]][:4]
        lines.append(f"  {task.name}: " + ", ".join(f"{name} {_number(own.get(name))}" for name in chosen))
        for label, values in task.reference.items():
            known = ", ".join(f"{name} {_number(value)}" for name, value in values.items())
            lines.append(f"      {label}: {known}")
    if record.index is not None and record.index.values:
        lines.append(f"  index: {_number(record.index.values.get(part))} ({record.index.description})")
    return "\n".join([*lines, "", f"Report: {run / 'report.html'}"])


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
