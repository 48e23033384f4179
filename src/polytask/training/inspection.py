"""What a sharing shows of itself while it trains: gates, stitches, relations, trees and attention, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polytask.evaluation import Scores
from polytask.sharing.base import Sharing
from polytask.training.callbacks import Callback

if TYPE_CHECKING:
    from polytask.training.loop import Loop

MOST_EPOCHS = 60
"""Epochs that are kept, evenly spread; the newest is always among them."""
MOST_NUMBERS = 4096
"""Numbers of an entry that are kept: of a larger one every so many-th column."""
MOST_TOGETHER = 8192
"""Numbers of all entries of an epoch that are kept; entries share them equally."""

AXES = {
    "gates": ("task", "expert"),
    "stitch": ("task", "task"),
    "relation": ("task", "task"),
    "alpha": ("subspace", "subspace"),
    "beta": ("task", "layer"),
    "attention": ("task", "token"),
    "mask": ("task", "channel"),
    "transfer": ("task", "from"),
    "scales": ("task", "channel"),
    "routes": ("task", "channel"),
    "stage": ("node", "node"),
    "tasks": ("task", "node"),
}
"""What rows and columns stand for, by the first word of a name that ``Sharing.inspect`` gives."""


@dataclass(frozen=True)
class _Look:
    """One look at the sharing: matrices by name, with their sizes before columns were left out."""

    index: int
    epoch: int
    found: Mapping[str, Tensor]
    sizes: Mapping[str, tuple[int, int]]


class SharingLog(Callback):
    """Keeps what ``Sharing.inspect`` gives after every validation, or after every epoch of a run without any.

    Where that is nothing, nothing is kept. At most 60 epochs are kept, and at most 4096 numbers of an entry and 8192
    of all entries of an epoch; of larger matrices columns are left out evenly.

    Args:
        tasks: Names of the tasks.

    Example:
        >>> from polytask.sharing import CrossStitch
        >>> sharing = CrossStitch(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), per_channel=False)
        >>> _ = sharing.setup(["a", "b"], torch.zeros(2, 3))
        >>> log = SharingLog(["a", "b"])
        >>> log.look(sharing, epoch=1)
        >>> entry = log.entries()[0]
        >>> entry["name"], entry["rows"], entry["epochs"], entry["values"][0]
        ('stitch 1', ('a', 'b'), (1,), ((0.9, 0.1), (0.1, 0.9)))
    """

    def __init__(self, tasks: Sequence[str]):
        self._tasks = tuple(tasks)
        self._looks: list[_Look] = []
        self._stride, self._count = 1, 0

    def on_validation_end(self, loop: Loop, scores: Scores) -> None:
        """Look; what averages over a batch has just seen validation rows."""
        self._look_at(loop)

    def on_epoch_end(self, loop: Loop, row: dict[str, Any]) -> None:
        """Look, if the run has no validation."""
        if not loop.validation:
            self._look_at(loop)

    def _look_at(self, loop: Loop) -> None:
        if loop.runtime.is_main:
            self.look(loop.model.sharing, -(-loop.step // loop.steps_per_epoch))

    def look(self, sharing: Sharing, epoch: int) -> None:
        """Keep what the sharing shows now as that of an epoch."""
        found = self._found(sharing, epoch)
        if found is None:
            return
        self._count += 1
        # The newest was kept only because it was the newest.
        self._looks = [*(look for look in self._looks if look.index % self._stride == 0), found]
        if len(self._looks) > MOST_EPOCHS:
            self._stride *= 2
            self._looks = [look for look in self._looks if look.index % self._stride == 0 or look is found]

    def settle(self, sharing: Sharing, epoch: int) -> None:
        """Keep what the sharing shows with the weights of ``epoch`` in it, which were chosen in the end."""
        found = self._found(sharing, epoch)
        if found is not None:
            others = [look for look in self._looks if look.epoch != epoch]
            self._looks = sorted([*others, found], key=lambda look: look.epoch)

    def _found(self, sharing: Sharing, epoch: int) -> _Look | None:
        found = matrices(sharing.inspect(), self._tasks)
        if not found:
            return None
        limit = max(1, min(MOST_NUMBERS, MOST_TOGETHER // len(found)))
        kept = {name: _thinned(values, limit) for name, values in found.items()}
        sizes = {name: (values.shape[0], values.shape[1]) for name, values in found.items()}
        return _Look(self._count, epoch, kept, sizes)

    def entries(self) -> list[dict[str, Any]]:
        """One mapping for every entry of the newest look, with the keys of ``polytask.reporting.SharingRecord``.

        An epoch in which the entry had another size is left out: attention has as many tokens as the batch.
        """
        return [self._entry(name) for name in self._looks[-1].found] if self._looks else []

    def _entry(self, name: str) -> dict[str, Any]:
        newest = self._looks[-1]
        size, shape = newest.sizes[name], newest.found[name].shape
        alike = [look for look in self._looks if look.sizes.get(name) == size and look.found[name].shape == shape]
        axes = AXES.get(name.partition(" ")[0], ("row", "column"))
        labels = [_labels(axis, count, self._tasks) for axis, count in zip(axes, size, strict=True)]
        rows, columns = ([of[i] for i in _spread(len(of), kept)] for of, kept in zip(labels, shape, strict=True))
        return {
            "name": name,
            "axes": axes,
            "rows": tuple(rows),
            "columns": tuple(columns),
            "size": size,
            "epochs": tuple(look.epoch for look in alike),
            "values": tuple(_plain(look.found[name]) for look in alike),
        }

    def state_dict(self) -> dict[str, Any]:
        """What was kept so far."""
        looks = [[look.index, look.epoch, dict(look.found), dict(look.sizes)] for look in self._looks]
        return {"stride": self._stride, "count": self._count, "looks": looks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._stride, self._count = state["stride"], state["count"]
        self._looks = [_Look(*look) for look in state["looks"]]


def matrices(found: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """What a sharing shows, as matrices ``[rows, columns]`` on the CPU.

    Vectors named ``... of TASK`` become rows of one matrix, with NaN where a task has no number. Other vectors
    become a row, and further dimensions are laid flat behind the first.

    Args:
        found: What ``Sharing.inspect`` gave.
        tasks: Names of the tasks, in order.

    Example:
        >>> found = {"attention of a": torch.tensor([0.5, 0.5]), "attention of b": torch.tensor([0.0, 1.0])}
        >>> matrices(found, ["a", "b"])
        {'attention': tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])}
    """
    made: dict[str, Tensor] = {}
    vectors: dict[str, dict[str, Tensor]] = {}
    for name, seen in found.items():
        values = seen.detach().to("cpu", torch.float32)
        task, rest = _owner(name, tasks) if values.dim() == 1 else ("", name)
        if task:
            vectors.setdefault(rest, {})[task] = values
        elif values.numel():
            made[name] = values.reshape(values.shape[0] if values.dim() > 1 else 1, -1)
    for rest, group in vectors.items():
        joint = torch.full((len(tasks), max(map(len, group.values()))), float("nan"))
        for task, values in group.items():
            joint[tasks.index(task), : len(values)] = values
        made[rest if rest not in made else f"{rest} of each task"] = joint
    return made


def _owner(name: str, tasks: Sequence[str]) -> tuple[str, str]:
    """The task that an entry is of, and the entry's name without it; no task if it names none."""
    for task in sorted(tasks, key=len, reverse=True):
        before, of, after = name.partition(f" of {task}")
        if of and (not after or after[0] == " "):
            return task, before + after
    return "", name


def _thinned(values: Tensor, limit: int) -> Tensor:
    """At most ``limit`` numbers: columns are left out evenly, and rows if one column is already too long."""
    rows = min(len(values), limit)
    columns = min(values.shape[1], max(1, limit // rows))
    return values[_spread(len(values), rows)][:, _spread(values.shape[1], columns)].clone()


def _spread(size: int, kept: int) -> list[int]:
    """``kept`` evenly spread numbers below ``size``."""
    return [number * size // kept for number in range(kept)]


def _labels(axis: str, count: int, tasks: Sequence[str]) -> list[str]:
    """Names of rows or columns: tasks where these are tasks, else numbers from 1."""
    if axis == "task" and count == len(tasks):
        return list(tasks)
    if axis == "subspace" and tasks and count % len(tasks) == 0:
        return [f"{task} · {number + 1}" for task in tasks for number in range(count // len(tasks))]
    if axis == "from" and count == 2:
        return ["the step before", "its own tower"]
    return [str(number + 1) for number in range(count)]


def _plain(values: Tensor) -> tuple[tuple[float | None, ...], ...]:
    """Six digits of every number; None for NaN."""
    return tuple(tuple(None if value != value else float(f"{value:.6g}") for value in row) for row in values.tolist())
