"""How much the tasks' gradients conflict, from a Gramian that is there anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from polytask.balancing.types import StepReport
from polytask.errors import BalancerError

Key = TypeVar("Key")


@dataclass(frozen=True)
class Conflict:
    """Conflict figures of one step, as plain numbers.

    Args:
        cosines: Cosine of every pair of tasks whose gradients are not zero.
        ratios: Norm of the shorter gradient over the longer one, for the same pairs.
        rate: Share of these pairs with a negative cosine; None without a pair.
        norms: Norm of every task's gradient.
        update_norm: Norm of the weighted sum of the gradients; None if the method has no weights.
        weights: Weight of every task, where the method has weights.
    """

    cosines: dict[tuple[str, str], float]
    ratios: dict[tuple[str, str], float]
    rate: float | None
    norms: dict[str, float]
    update_norm: float | None
    weights: dict[str, float]


def conflict(gramian: Tensor, tasks: Sequence[str], weights: Tensor | None = None) -> Conflict:
    """Conflict figures of a Gramian.

    Args:
        gramian: Inner products of the tasks' gradients, ``[m, m]``.
        tasks: Their names.
        weights: Weights of the gradients ``[m]``, or None.

    Returns:
        Cosines, magnitude ratios, conflict rate and norms.

    Raises:
        BalancerError: if the shapes do not fit.

    Example:
        >>> found = conflict(torch.tensor([[4.0, -1.0], [-1.0, 1.0]]), ["a", "b"])
        >>> found.cosines, found.ratios, found.rate
        ({('a', 'b'): -0.5}, {('a', 'b'): 0.5}, 1.0)
    """
    if gramian.shape != (len(tasks), len(tasks)):
        raise BalancerError(f"The Gramian has shape {list(gramian.shape)} but there are {len(tasks)} tasks.")
    matrix = gramian.detach().to("cpu", torch.float64)
    norms = matrix.diagonal().clamp_min(0).sqrt()
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks)) if norms[i] > 0 and norms[j] > 0]
    cosines = {(tasks[i], tasks[j]): float(matrix[i, j] / norms[i] / norms[j]) for i, j in pairs}
    lengths = norms.tolist()
    ratios = {(tasks[i], tasks[j]): min(lengths[i], lengths[j]) / max(lengths[i], lengths[j]) for i, j in pairs}
    rate = sum(cosine < 0 for cosine in cosines.values()) / len(pairs) if pairs else None
    update, named = None, {}
    if weights is not None:
        chosen = weights.detach().to("cpu", torch.float64)
        update = float((chosen @ matrix @ chosen).clamp_min(0).sqrt())
        named = dict(zip(tasks, chosen.tolist(), strict=True))
    return Conflict(cosines, ratios, rate, dict(zip(tasks, lengths, strict=True)), update, named)


class ConflictMonitor:
    """Collects conflict figures from step reports and says in words what stands out.

    It only reads Gramians that the engine formed anyway: a loss weighting forms none, so it sees nothing there.

    Args:
        every: Look at one step in so many.

    Raises:
        BalancerError: if ``every`` is below one.

    Example:
        >>> monitor = ConflictMonitor()
        >>> one = torch.tensor(1.0)
        >>> report = StepReport({"a": one, "b": one}, gramian=torch.tensor([[1.0, -0.9], [-0.9, 1.0]]))
        >>> monitor.observe(report).rate
        1.0
        >>> monitor.warnings()
        ["'a' and 'b' conflict in 100 % of the steps looked at (mean cosine -0.90)."]
    """

    def __init__(self, every: int = 1):
        if every < 1:
            raise BalancerError(f"every must be at least 1; got {every}.")
        self.every = every
        self.seen = 0
        self.steps: list[Conflict] = []

    def observe(self, report: StepReport) -> Conflict | None:
        """Figures of this step; None between two looks, or where no Gramian was formed."""
        due = self.seen % self.every == 0
        self.seen += 1
        if not due or report.gramian is None:
            return None
        tasks = tuple(report.losses)
        weights = torch.stack([report.weights[task] for task in tasks]) if report.weights else None
        found = conflict(report.gramian, tasks, weights)
        self.steps.append(found)
        return found

    def warnings(self, conflicts: float = 0.5, ratio: float = 0.01, weight: float = 0.01) -> list[str]:
        """What stands out in the steps seen so far, in words.

        Args:
            conflicts: Name a pair whose gradients conflict in more than this share of the steps.
            ratio: Name a pair whose magnitudes differ by more than this on average.
            weight: Name a task whose mean weight is below this share of the mean weight of all.
        """
        texts = []
        for (one, other), values in _gathered([step.cosines for step in self.steps]).items():
            rate, mean = sum(value < 0 for value in values) / len(values), sum(values) / len(values)
            if rate > conflicts:
                texts.append(
                    f"'{one}' and '{other}' conflict in {100 * rate:.0f} % of the steps looked at (mean cosine "
                    f"{mean:.2f})."
                )
        for (one, other), values in _gathered([step.ratios for step in self.steps]).items():
            mean = sum(values) / len(values)
            if mean < ratio:
                texts.append(
                    f"The gradients of '{one}' and '{other}' differ in size: the shorter is {mean:.2g} of the longer "
                    "on average, and hardly counts in a plain sum."
                )
        return texts + self._light_tasks(weight)

    def _light_tasks(self, share: float) -> list[str]:
        means = {task: sum(v) / len(v) for task, v in _gathered([step.weights for step in self.steps]).items()}
        typical = sum(abs(value) for value in means.values()) / max(1, len(means))
        return [
            f"'{task}' has a mean weight of {value:.3g}, while {typical:.3g} is typical: it is hardly trained."
            for task, value in means.items()
            if abs(value) < share * typical
        ]


def _gathered(steps: Sequence[Mapping[Key, float]]) -> dict[Key, list[float]]:
    found: dict[Key, list[float]] = {}
    for step in steps:
        for key, value in step.items():
            found.setdefault(key, []).append(value)
    return found
