"""What a step on one task's gradient does to the losses of the others, looked at during training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.balancing.engines.heads import forward_for_each, plain_tap
from polytask.balancing.engines.replay import Replay
from polytask.balancing.types import Engine, MicroBatch
from polytask.data.mixing import Part
from polytask.errors import RecipeError
from polytask.models import MultiTaskModel
from polytask.training.callbacks import Callback

if TYPE_CHECKING:
    from polytask.training.loop import Loop

Matrix = NDArray[np.float64]


class Lookahead(Callback):
    r"""Measures task affinities at evenly spaced steps of a run.

    A look draws a batch of its own from every source. With the losses :math:`L` on it, the shared parameters
    :math:`\theta` and the gradients :math:`g_i = \nabla_\theta L_i`, it notes

    .. math:: Z_{ij} = 1 - L_j(\theta - \eta\, g_i) / L_j(\theta), \qquad
              C_{ij} = g_i^\top g_j / (\|g_i\| \|g_j\|).

    All forwards of a look have the same dropout masks. :math:`\eta` is the learning rate for SGD. Other optimizers
    move every number by about the learning rate, whatever the gradients' size: to first order such a step takes
    lr :math:`\|g\|_1` off the loss. There :math:`\eta` is lr times the mean of :math:`\|g_i\|_1` over the mean of
    :math:`\|g_i\|_2^2`, with which plain steps take off as much on average over the tasks.

    Args:
        looks: How many looks a run has.

    Attributes:
        affinities: ``[looks, m, m]``; row i is the task whose gradient is followed. NaN where a task had no label.
        cosines: ``[looks, m, m]``.

    Reference:
        Fifty et al., Efficiently identifying task groupings for multi-task learning (2021), section 3.
    """

    def __init__(self, looks: int):
        self.looks = looks
        self._due = False
        self._affinities: list[Matrix] = []
        self._cosines: list[Matrix] = []

    @property
    def affinities(self) -> Matrix:
        """What was noted so far."""
        return np.array(self._affinities)

    @property
    def cosines(self) -> Matrix:
        """What was noted so far."""
        return np.array(self._cosines)

    def on_start(self, loop: Loop) -> None:
        """From now on, look after some of the steps.

        Raises:
            RecipeError: if the tasks share no parameters.
        """
        require_shared(loop.model)
        loop.engine = _Watched(loop.engine, self, loop)  # it passes everything else on

    def after_step(self, loop: Loop) -> None:
        """Look, if a look is due in this step."""
        done = loop.step + 1
        self._due |= done * self.looks // loop.total_steps > loop.step * self.looks // loop.total_steps
        # Where a step trains the heads alone, the look waits for the next one that trains what is shared.
        if self._due and loop.model.shared_parameters():
            self._due = False
            self._look(loop, len(self._cosines))

    def _look(self, loop: Loop, number: int) -> None:
        micro = loop.builder.build(_drawn(loop, number))
        tasks = list(loop.model.tasks)
        shared = loop.model.shared_parameters()
        replay = Replay(loop.model, [p.device for p in shared])
        start = replay.state()
        with replay.peek(start):
            before, rows = _gradients(micro, tasks, shared)
        norms = torch.stack([row.norm() for row in rows]).double()
        stacked = torch.stack(rows).double()
        self._cosines.append(_cosines(stacked @ stacked.T, norms).cpu().numpy())
        present = norms > 0
        rate = _rate(loop, stacked)
        kept = [p.detach().clone() for p in shared]
        found = np.full((len(tasks), len(tasks)), np.nan)
        for i in range(len(tasks)):
            if present[i]:
                _move(shared, kept, rows[i], rate)
                with torch.no_grad(), replay.peek(start):
                    after = _losses(micro, tasks)
                found[i] = (1 - after / before).cpu().numpy()
        _move(shared, kept, rows[0], 0.0)
        found[~np.isfinite(found)] = np.nan
        self._affinities.append(found)


def require_shared(model: MultiTaskModel) -> None:
    """Check that tasks can do something for each other at all.

    Raises:
        RecipeError: if they share no parameters.
    """
    if not model.shared_parameters():
        raise RecipeError(
            f"The sharing '{type(model.sharing).__name__}' has no shared parameters, so no task's step can help "
            "another. Use one that shares, such as model.sharing: hard."
        )


class _Watched:
    """An engine that lets somebody look after every step."""

    def __init__(self, engine: Engine, watcher: Lookahead, loop: Loop):
        self._engine, self._watcher, self._loop = engine, watcher, loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def after_step(self, micro: Sequence[MicroBatch]) -> None:
        self._engine.after_step(micro)
        self._watcher.after_step(self._loop)


def _drawn(loop: Loop, number: int) -> list[Part]:
    """A batch of every source, drawn for this look alone: the order of the training's batches is untouched."""
    parts = []
    for at, (source, size) in enumerate(zip(loop.mixer.sources, loop.mixer.sizes, strict=True)):
        random = np.random.default_rng([loop.settings.seed, 7907, number, at])
        rows = random.choice(len(source), min(size, len(source)), replace=False, shuffle=False)
        parts.append(Part(at, source.take(torch.from_numpy(rows))))
    return parts


def _losses(micro: Sequence[MicroBatch], tasks: Sequence[str]) -> Tensor:
    """Losses ``[m]`` over all micro-batches, float64; NaN for a task without a label."""
    found: dict[str, Tensor] = {}
    for batch in micro:
        for task, loss in batch.forward(plain_tap).tasks.items():
            found[task] = found[task] + loss if task in found else loss
    nothing = torch.tensor(math.nan)
    return torch.stack([found.get(task, nothing).detach().double().cpu() for task in tasks])


def _gradients(
    micro: Sequence[MicroBatch], tasks: Sequence[str], shared: Sequence[torch.nn.Parameter]
) -> tuple[Tensor, list[Tensor]]:
    """Losses ``[m]``, NaN without a label, and the gradient of each in one vector over the shared parameters."""
    size = sum(p.numel() for p in shared)
    rows = [torch.zeros(size, device=shared[0].device) for _ in tasks]
    losses = torch.full((len(tasks),), math.nan, dtype=torch.float64)
    for batch in micro:
        found = forward_for_each(batch).tasks
        for at, task in enumerate(tasks):
            if task not in found:
                continue
            value = found[task].detach().double().cpu()
            losses[at] = value if losses[at].isnan() else losses[at] + value
            if found[task].requires_grad:
                parts = torch.autograd.grad(found[task], shared, retain_graph=True, allow_unused=True)
                flat = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, shared, strict=True)]
                rows[at] += torch.cat([part.flatten() for part in flat])
    return losses, rows


def _cosines(gramian: Tensor, norms: Tensor) -> Tensor:
    """Cosines ``[m, m]``; NaN for a task without a gradient."""
    lengths = torch.where(norms > 0, norms, torch.full_like(norms, math.nan))
    return gramian / lengths / lengths[:, None]


def _rate(loop: Loop, rows: Tensor) -> float:
    rate = loop.settings.lr
    if loop.settings.optimizer_settings.name == "sgd":
        return rate
    squares = rows.square().sum().item()
    return rate * rows.abs().sum().item() / squares if squares else 0.0


def _move(shared: Sequence[torch.nn.Parameter], kept: Sequence[Tensor], row: Tensor, rate: float) -> None:
    """Put the shared parameters a step away from what was kept."""
    with torch.no_grad():
        sizes = [p.numel() for p in shared]
        for parameter, start, part in zip(shared, kept, torch.split(row, sizes), strict=True):
            parameter.copy_(start - rate * part.view_as(start) if rate else start)
