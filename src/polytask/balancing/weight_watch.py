"""What the weights of a run say: who holds them, who hardly counts, and whether they ever leave equal weighting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

HOLDS = 0.9
"""Share of the weight from which a task holds it."""
LONG = 200
"""Steps after which holding the weight is worth a sentence."""
ENOUGH = 20
"""Steps before anything is said about the run as a whole."""
SAME = 0.01
"""Weights that differ by at most this share count as equal."""
LIGHT = 0.01
"""A task below this share of the typical weight is hardly trained."""


class WeightWatch:
    """Follows the weights step by step; keeps sums only.

    Example:
        >>> watch = WeightWatch()
        >>> for _ in range(200):
        ...     watch.note({"depth": 0.97, "normals": 0.03})
        >>> watch.sentences("famo")
        ["'depth' has held 97 % of the weight for 200 steps."]
    """

    def __init__(self) -> None:
        self.steps = 0
        self.equal = True
        self.holder: str | None = None
        self.held_steps = 0
        self.held_share = 0.0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def note(self, weights: Mapping[str, float]) -> None:
        """Take in the weights of one step; a step with one task, or without finite weights, says nothing."""
        total = sum(abs(weight) for weight in weights.values())
        if len(weights) < 2 or not 0 < total < math.inf:
            return
        self.steps += 1
        for task, weight in weights.items():
            self.sums[task] = self.sums.get(task, 0.0) + abs(weight)
            self.counts[task] = self.counts.get(task, 0) + 1
        least, most = min(weights.values()), max(weights.values())
        self.equal = self.equal and least > 0 and most - least <= SAME * most
        heaviest = max(weights, key=lambda task: abs(weights[task]))
        share = abs(weights[heaviest]) / total
        if share < HOLDS:
            self.holder, self.held_steps, self.held_share = None, 0, 0.0
            return
        if heaviest != self.holder:
            self.holder, self.held_steps, self.held_share = heaviest, 0, 0.0
        self.held_steps += 1
        self.held_share += share

    def sentences(self, method: str, light: float = LIGHT) -> list[str]:
        """What stands out so far, in words.

        Args:
            method: Name of the method, for the text.
            light: Name a task whose mean weight is below this share of the mean weight of all.
        """
        texts = []
        if self.equal and self.steps >= ENOUGH:
            texts.append(
                f"'{method}' equals equal weighting so far: in {self.steps} steps its weights differed by at most "
                f"{100 * SAME:.0f} %."
            )
        if self.holder is not None and self.held_steps >= LONG:
            share = 100 * self.held_share / self.held_steps
            texts.append(f"'{self.holder}' has held {share:.0f} % of the weight for {self.held_steps} steps.")
        means = {task: total / self.counts[task] for task, total in self.sums.items()}
        typical = sum(means.values()) / max(1, len(means))
        texts += [
            f"'{task}' has a mean weight of {mean:.3g}, while {typical:.3g} is typical: it is hardly trained."
            for task, mean in means.items()
            if mean < light * typical
        ]
        return texts

    def state_dict(self) -> dict[str, Any]:
        """Everything that was taken in, as plain data."""
        return {key: dict(value) if isinstance(value, dict) else value for key, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for key in vars(self):
            value = state[key]
            setattr(self, key, dict(value) if isinstance(value, Mapping) else value)
