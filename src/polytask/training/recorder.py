"""What the steps reported, read from the device in one transfer every so often."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from polytask.balancing.types import StepReport
from polytask.errors import TrainingError

FLUSH_STEPS = 50
FLUSH_SECONDS = 0.5


class Recorder:
    """Buffers step reports; ``flush`` turns them into rows of plain numbers and checks that they are finite.

    Args:
        log_every: Steps between rows; every step counts in the epoch's means all the same.
        on_weights: Told the weights of every step that had some, when they are read.
    """

    def __init__(self, log_every: int = 1, on_weights: Callable[[Mapping[str, float]], None] | None = None):
        self.log_every, self._on_weights = log_every, on_weights
        self._waiting: list[tuple[dict[str, Any], StepReport]] = []
        self._flushed = time.monotonic()
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, report: StepReport, **facts: Any) -> None:
        """Keep one step's report with the ``facts`` (step, epoch, learning rate) of its row."""
        self._waiting.append((facts, report))

    @property
    def is_due(self) -> bool:
        """Whether enough steps or seconds have gone by."""
        return len(self._waiting) >= FLUSH_STEPS or time.monotonic() - self._flushed > FLUSH_SECONDS

    def flush(self) -> list[dict[str, Any]]:
        """The rows since the last flush.

        Raises:
            TrainingError: if a task's loss was not finite; the message names the task and the step.
        """
        rows = []
        for (facts, report), values in zip(self._waiting, self._numbers(), strict=True):
            for task in report.losses:
                self._count(task, values[f"loss.{task}"], facts)
            if self._on_weights is not None and report.weights:
                self._on_weights({task: values[f"weight.{task}"] for task in report.weights})
            if facts["step"] % self.log_every == 0:
                rows.append({"scope": "step", **facts, **values})
        self._waiting.clear()
        self._flushed = time.monotonic()
        return rows

    def _numbers(self) -> list[dict[str, float]]:
        named = [_named(report) for _, report in self._waiting]
        flat = [tensor if tensor.dim() == 0 else tensor.reshape(()) for of in named for tensor in of.values()]
        # Stacked first: one conversion in place of one for every number.
        numbers = iter(torch.stack(_same_device(flat)).tolist() if flat else [])
        return [{name: next(numbers) for name in values} for values in named]

    def _count(self, task: str, loss: float, facts: Mapping[str, Any]) -> None:
        if not abs(loss) < float("inf"):
            raise TrainingError(
                f"The loss of '{task}' became {loss} in step {facts['step']} (epoch {facts['epoch']}). Try a lower "
                "learning rate, clipping (training.clip: 1.0), a warm-up, or look for extreme targets and inputs. "
                "The last good checkpoint is untouched."
            )
        self.sums[task] = self.sums.get(task, 0.0) + loss
        self.counts[task] = self.counts.get(task, 0) + 1

    def epoch_means(self) -> dict[str, float]:
        """Each task's loss, averaged over the epoch's steps that had it."""
        return {task: total / self.counts[task] for task, total in self.sums.items()}

    def start_epoch(self) -> None:
        """Forget the sums."""
        self.sums, self.counts = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The epoch's sums so far."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


def _named(report: StepReport) -> dict[str, torch.Tensor]:
    values = {f"loss.{task}": loss for task, loss in report.losses.items()}
    values |= {f"weight.{task}": weight for task, weight in report.weights.items()}
    return values | dict(report.extras)


def _same_device(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Losses lie on the device, solved weights on the CPU: stack needs one place."""
    target = next((t.device for t in tensors if not t.is_cpu), tensors[0].device)
    return [t if t.device == target else t.to(target, non_blocking=True) for t in tensors]
