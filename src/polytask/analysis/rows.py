"""A recipe's rows, encoded once and mapped into the memory of every worker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask import registry
from polytask.data.batch import map_tensors
from polytask.data.schema import TableSchema
from polytask.data.source import TensorSource
from polytask.files import replacing
from polytask.recipes.build import Built
from polytask.tasks.task import Task
from polytask.training.state import load_state, save_state

FACTS = "facts.json"


@dataclass(frozen=True)
class Rows:
    """What a worker has: rows, tasks, and how columns became inputs. Pages that workers read are shared.

    Args:
        folder: Where the files lie.
        sources: Sources of the parts that were given to it: ``train`` and ``validation``.
        tasks: The tasks, fitted to the training rows.
        schema: How a table's columns become inputs.
    """

    folder: Path
    sources: Mapping[str, tuple[TensorSource, ...]]
    tasks: tuple[Task, ...]
    schema: TableSchema


def write_rows(built: Built, folder: Path, parts: Sequence[str]) -> None:
    """Write parts of a built recipe for workers to map.

    Args:
        built: What the recipe stands for.
        folder: Where the files go.
        parts: Names of the parts; what is not written cannot be read by a worker.
    """
    for part in parts:
        plain = [
            {"inputs": s.rows.inputs, "targets": dict(s.rows.targets), "weights": dict(s.rows.weights)}
            for s in built.sources[part]
        ]
        # Whoever goes on after a power cut writes them anew.
        save_state({"sources": plain}, folder / f"{part}.safetensors", lasting=False)
    facts = {
        "tasks": [{"name": t.name, "kind": t.kind, "options": dict(t.options)} for t in built.model.tasks.values()],
        "schema": built.schema.to_dict(),
    }
    with replacing(folder / FACTS, lasting=False) as unfinished:
        unfinished.write_text(json.dumps(facts), encoding="utf-8")


def read_part(folder: Path, part: str) -> tuple[TensorSource, ...]:
    """The sources of one part, mapped into memory.

    Raises:
        TrainingError: if the part was not written.
    """
    state = load_state(folder / f"{part}.safetensors")
    return tuple(TensorSource(s["inputs"], s["targets"], s["weights"]) for s in state["sources"])


def remove_part(folder: Path, part: str) -> None:
    """Remove a part again, if it was written; what is mapped already can still be read."""
    (folder / f"{part}.safetensors").unlink(missing_ok=True)


def open_rows(folder: str) -> Rows:
    """A worker's context: training and validation rows, tasks and schema of a folder."""
    path = Path(folder)
    facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
    tasks = tuple(registry.build("tasks", t["kind"], t["options"], name=t["name"]) for t in facts["tasks"])
    sources = {part: read_part(path, part) for part in ("train", "validation")}
    return Rows(path, sources, tasks, TableSchema.from_dict(facts["schema"]))


def digest(built: Built) -> str:
    """A fingerprint of all encoded rows: equal if and only if the data are."""
    found = hashlib.blake2b(digest_size=16)

    def add(tensor: Tensor) -> Tensor:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
        return tensor

    for part, sources in sorted(built.sources.items()):
        found.update(part.encode())
        for source in sources:
            map_tensors([source.rows.inputs, *_sorted(source.rows.targets), *_sorted(source.rows.weights)], add)
    return found.hexdigest()


def _sorted(tensors: Mapping[str, Tensor]) -> list[Any]:
    return [tensors[name] for name in sorted(tensors)]
