"""What the workers of a comparison do: try out a method, train a network, and score one on the test rows.

The last two leave their result as a JSON file before they answer, so that a comparison that is killed finds it again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from polytask.analysis.rows import Rows, read_part
from polytask.errors import PolytaskError
from polytask.evaluation import evaluate
from polytask.files import replacing
from polytask.models import MultiTaskModel
from polytask.recipes.build import make_index, make_model
from polytask.recipes.load import load_recipe
from polytask.recipes.schema import Recipe
from polytask.training.fit import build_engine, prepare_model, seeded, train
from polytask.training.runtime import Runtime
from polytask.training.state import load_state, save_state

Result = dict[str, Any]


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def try_network(rows: Rows, *, recipe: Mapping[str, Any]) -> str | None:
    """Build what a training needs; why that cannot be, or None."""
    try:
        loaded = load_recipe(recipe)
        build_engine(_prepared(rows, loaded), loaded.balancer, loaded.training.seed, Runtime("cpu"))
    except PolytaskError as error:
        return str(error)
    return None


def train_network(rows: Rows, *, recipe: Mapping[str, Any], result: str, weights: str) -> Result:
    """Train what a recipe describes on rows that are there already, as ``polytask fit`` trains it.

    Args:
        rows: The worker's rows; there are no test rows among them.
        recipe: The plain recipe; its data are not read.
        result: File of the result.
        weights: File of the weights that were chosen on the validation rows.
    """
    loaded = load_recipe(recipe)
    settings = loaded.training
    with seeded(settings.seed):
        model = make_model(loaded, rows.schema, rows.tasks)
    peak = watch_memory(settings.device)
    began = time.perf_counter()
    run = train(
        model,
        rows.sources["train"],
        rows.sources["validation"],
        balancer=loaded.balancer,
        settings=settings,
        index=make_index(loaded, rows.tasks),
    )
    seconds = time.perf_counter() - began
    assert run.scores is not None
    save_state({"model": model.state_dict()}, Path(weights))
    found = {
        "validation": run.scores.to_dict(),
        "seconds": seconds,
        "peak_memory_bytes": peak(),
        "parameters": sum(part.parameters for part in model.summary()),
        "shared_parameters": sum(part.parameters for part in model.summary() if part.owner == "shared"),
        "epochs": len(run.history),
        "best_epoch": run.best_epoch,
        "stop_reason": run.stop_reason,
        "notes": run.notes,
    }
    write_json(Path(result), found)
    return found


def score_network(rows: Rows, *, recipe: Mapping[str, Any], weights: str, result: str) -> Result:
    """Score a trained network on the test rows, which are on disk only when everything has been chosen."""
    loaded = load_recipe(recipe)
    model = restored(rows, loaded, Path(weights))
    runtime = Runtime(loaded.training.device, str(loaded.training.precision))
    model.to(runtime.device)
    scores = evaluate(
        model,
        read_part(rows.folder, "test"),
        batch_size=loaded.training.evaluation_batch_size,
        device=runtime.device,
        autocast=runtime.autocast,
    )
    found = {"test": scores.to_dict(), "counts": scores.counts}
    write_json(Path(result), found)
    return found


def restored(rows: Rows, recipe: Recipe, weights: Path) -> MultiTaskModel:
    """The model of a recipe with trained weights."""
    model = _prepared(rows, recipe)
    model.load_state_dict(load_state(weights)["model"])
    return model


def _prepared(rows: Rows, recipe: Recipe) -> MultiTaskModel:
    with seeded(recipe.training.seed):
        model = make_model(recipe, rows.schema, rows.tasks)
        prepare_model(model, rows.sources["train"])
    return model


def watch_memory(device: str) -> Callable[[], int | None]:
    """Start to watch the memory of this process; the result gives the most it had since, in bytes.

    On CUDA that is the device's memory. Elsewhere it is the resident memory, rows that are mapped included, which
    only Linux counts from a given moment: the result gives None on other systems.
    """
    if device.startswith(("cuda", "auto")) and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return lambda: int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return lambda: None

    def peak() -> int | None:
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(lines[0].split()[1]) if lines else None

    return peak
