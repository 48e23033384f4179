"""A recipe and its rows for some of the tasks: the others' labels are gone, and never become inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from polytask.data.source import TensorSource
from polytask.data.targets import drop_unlabelled
from polytask.errors import RecipeError
from polytask.evaluation.criterion import MEAN_IMPROVEMENT


def subset_recipe(plain: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """The plain recipe of some of its tasks.

    Options that name tasks are cut to those that are left. A single task is trained with
    equal weights, jointly. An index or
    decision over all tasks is left out, and so is a criterion that reads a task which is gone.

    Args:
        plain: A resolved recipe as plain data: its inputs are listed.
        tasks: The tasks that stay.

    Raises:
        RecipeError: if the inputs are not listed: the columns of the other tasks could become inputs.

    Example:
        >>> plain = {"data": {"table": "a.csv"}, "inputs": {"age": "number"}, "training": {"select": "b.auroc"},
        ...     "tasks": {"a": {"type": "binary"}, "b": {"type": "binary"}, "c": {"type": "binary"}},
        ...     "balancer": {"name": "static", "weights": {"a": 1, "b": 2, "c": 3}}}
        >>> cut = subset_recipe(plain, ["a", "c"])
        >>> cut["balancer"]["weights"], cut["training"]["select"], list(cut["tasks"])
        ({'a': 1, 'c': 3}, 'mean_improvement', ['a', 'c'])
    """
    if plain.get("inputs") is None:
        raise RecipeError("The recipe of some tasks needs the input columns by name. Resolve it first (recipes.build).")
    everything = list(plain["tasks"])
    kept = [name for name in everything if name in tasks]
    if kept == everything:
        return dict(plain)
    found: dict[str, Any] = {**plain, "tasks": {name: plain["tasks"][name] for name in kept}}
    found["data"] = {key: _cut(value, everything, kept) for key, value in plain["data"].items()}
    if plain["data"].get("tables"):
        found["data"]["tables"] = _cut_tables(plain["data"]["tables"], kept)
    if "model" in plain:
        found["model"] = {key: _cut(value, everything, kept) for key, value in plain["model"].items()}
    found["balancer"] = _cut(plain.get("balancer", "equal"), everything, kept) if len(kept) > 1 else "equal"
    training = dict(plain.get("training") or {})
    if not _reads_only(training.get("select", MEAN_IMPROVEMENT), everything, kept):
        training["select"] = MEAN_IMPROVEMENT
    training["batch_sizes"] = _cut(training.get("batch_sizes", {}), everything, kept)
    if len(kept) == 1:
        training.pop("strategy", None)
    elif "strategy" in training:
        training["strategy"] = _cut(training["strategy"], everything, kept)
    found["training"] = training
    if "report" in plain:
        found["report"] = {key: _cut(value, everything, kept) for key, value in plain["report"].items()}
    return {key: value for key, value in found.items() if key not in ("index", "decision")}


def _cut_tables(tables: Mapping[str, Any], kept: Sequence[str]) -> dict[str, Any]:
    """The tables of tasks that are left, each named after its task or naming those of its tasks that are left."""
    cut = {}
    for name, entry in tables.items():
        left = [task for task in entry.get("tasks") or (name,) if task in kept]
        if left:
            cut[name] = {**entry, "tasks": left} if entry.get("tasks") else entry
    return cut


def _cut(value: Any, everything: Sequence[str], kept: Sequence[str]) -> Any:
    """A value without the tasks that are gone, where it is by task: as keys, as names or one number each."""
    if isinstance(value, Mapping):
        if value and set(value) <= set(everything):
            return {key: _cut(value[key], everything, kept) for key in value if key in kept}
        return {
            key: [item for name, item in zip(everything, of, strict=True) if name in kept]
            if key == "weights" and isinstance(of, list | tuple) and len(of) == len(everything)
            else _cut(of, everything, kept)
            for key, of in value.items()
        }
    if isinstance(value, list | tuple) and value and _about_tasks(value, everything):
        cut = [_cut(item, everything, kept) for item in value if not isinstance(item, str) or item in kept]
        return [item for item in cut if item != [] and not (isinstance(item, Mapping) and item.get("tasks") == [])]
    return value


def _about_tasks(values: Sequence[Any], everything: Sequence[str]) -> bool:
    """Whether a list holds names of tasks, lists of them, or mappings that name tasks."""
    return all(
        (isinstance(item, str) and item in everything)
        or (isinstance(item, list | tuple) and _about_tasks(item, everything))
        or (isinstance(item, Mapping) and "tasks" in item)
        for item in values
    )


def _reads_only(select: str, everything: Sequence[str], kept: Sequence[str]) -> bool:
    if select in (MEAN_IMPROVEMENT, "last"):
        return True
    # A task's name may hold dots itself, so the longest name that fits is the one.
    named = sorted((name for name in everything if select == name or select.startswith(f"{name}.")), key=len)
    return bool(named) and named[-1] in kept


def subset_sources(sources: Sequence[TensorSource], tasks: Sequence[str]) -> tuple[TensorSource, ...]:
    """Sources with the labels of some tasks, without rows and sources that have none of them."""
    found = []
    for source in sources:
        rows = source.rows
        targets = {name: values for name, values in rows.targets.items() if name in tasks}
        if not targets:
            continue
        weights = {name: values for name, values in rows.weights.items() if name in tasks}
        known, _ = drop_unlabelled(targets)
        if len(known) == len(source):
            found.append(TensorSource(rows.inputs, targets, weights))
        else:
            chosen = TensorSource(rows.inputs, targets, weights).take(torch.as_tensor(known))
            found.append(TensorSource(chosen.inputs, chosen.targets, chosen.weights))
    return tuple(found)
