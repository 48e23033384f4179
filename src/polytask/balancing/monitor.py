"""How much the tasks' gradients conflict, from a Gramian that is there anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.types import StepReport
from polytask.balancing.weight_watch import WeightWatch
from polytask.errors import BalancerError

CONFLICTS = -0.05
"""A pair whose mean cosine is above this is not named: near zero the sign is chance."""


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
    """Collects conflict figures and says in words what stands out; keeps sums only.

    ``observe`` reads Gramians that the engine formed anyway. A loss weighting forms none: give ``add`` the products
    that an engine's ``probe`` returns.

    Args:
        every: ``observe`` looks at one step in so many.
        method: Name of the method, for the sentences.

    Attributes:
        looks: How many Gramians were looked at.
        watch: What the weights say; ``observe`` feeds it, or whoever has the weights of more steps.

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

    def __init__(self, every: int = 1, method: str = "the method"):
        if every < 1:
            raise BalancerError(f"every must be at least 1; got {every}.")
        self.every, self.method = every, method
        self.seen = 0
        self.looks = 0
        self.watch = WeightWatch()
        self._pairs: dict[tuple[str, str], _PairSums] = {}

    def observe(self, report: StepReport) -> Conflict | None:
        """Figures of this step; None between two looks, or where no Gramian was formed."""
        due = self.seen % self.every == 0
        self.seen += 1
        if not due:
            return None
        tasks = tuple(report.losses)
        weights = torch.stack([report.weights[task] for task in tasks]).detach().cpu() if report.weights else None
        if weights is not None:
            self.watch.note(dict(zip(tasks, weights.tolist(), strict=True)))
        return None if report.gramian is None else self.add(report.gramian, tasks, weights)

    def add(self, gramian: Tensor, tasks: Sequence[str], weights: Tensor | None = None) -> Conflict:
        """Figures of a Gramian, which count in the sentences.

        Args:
            gramian: Inner products of the tasks' gradients, ``[m, m]``.
            tasks: Their names.
            weights: Weights of the gradients ``[m]``, or None.
        """
        found = conflict(gramian, tasks, weights)
        self.looks += 1
        for pair, cosine in found.cosines.items():
            sums = self._pairs.setdefault(pair, _PairSums())
            sums.count += 1
            sums.negative += cosine < 0
            sums.cosine += cosine
            sums.ratio += found.ratios[pair]
        return found

    def warnings(self, conflicts: float = 0.5, ratio: float = 0.01, weight: float = 0.01) -> list[str]:
        """What stands out in the steps seen so far, in words.

        Args:
            conflicts: Name a pair whose gradients conflict in more than this share of the steps, if their mean
                cosine is below -0.05 as well.
            ratio: Name a pair whose magnitudes differ by more than this on average.
            weight: Name a task whose mean weight is below this share of the mean weight of all.
        """
        texts = []
        for (one, other), sums in self._pairs.items():
            rate, mean = sums.negative / sums.count, sums.cosine / sums.count
            if rate > conflicts and mean < CONFLICTS:
                texts.append(
                    f"'{one}' and '{other}' conflict in {100 * rate:.0f} % of the steps looked at (mean cosine "
                    f"{mean:.2f})."
                )
        for (one, other), sums in self._pairs.items():
            mean = sums.ratio / sums.count
            if mean < ratio:
                texts.append(
                    f"The gradients of '{one}' and '{other}' differ in size: the shorter is {mean:.2g} of the longer "
                    "on average, and hardly counts in a plain sum."
                )
        return texts + self.watch.sentences(self.method, weight)

    def state_dict(self) -> dict[str, Any]:
        """Everything that was seen, as plain data."""
        pairs = [[*pair, vars(sums)] for pair, sums in self._pairs.items()]
        return {"seen": self.seen, "looks": self.looks, "pairs": pairs, "watch": self.watch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.seen, self.looks = state["seen"], state["looks"]
        self._pairs = {(one, other): _PairSums(**sums) for one, other, sums in state["pairs"]}
        self.watch.load_state_dict(state["watch"])


@dataclass
class _PairSums:
    """Sums over the looks at one pair of tasks."""

    count: int = 0
    negative: int = 0
    cosine: float = 0.0
    ratio: float = 0.0
