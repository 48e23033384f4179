"""The mixer: which batches a step is made of, as a function of (seed, step) and its small state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytask.data.batch import Batch
from polytask.data.sampling import Sampler
from polytask.data.source import Source


@dataclass(frozen=True)
class Part:
    """One batch of a step: the number of its source, and this process's rows."""

    source: int
    batch: Batch


class Mixer:
    """Draws the batches of every step from one or more sources.

    One source: every step is its next batch, and an epoch is one pass over its rows. Several sources: the
    sampler chooses. An epoch then has as many steps as one pass over ALL sources needs (with ``together``:
    as many as the longest source needs). A source whose rows run out is shuffled again and goes on.

    Args:
        sources: Where rows come from.
        sizes: Most rows of a batch of each source, over all processes.
        sampler: How the sources take turns; unused with one source.
        seed: Of the order of the rows and of the draws.
        rank: This process.
        world: Number of processes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        sizes: Sequence[int],
        sampler: Sampler,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.sources, self.sizes, self.sampler = tuple(sources), tuple(sizes), sampler
        self.seed, self.rank, self.world = seed, rank, world
        self.total_steps = 1
        self._taken = [0] * len(self.sources)
        self._first: list[float] = [float("nan")] * len(self.sources)
        self._latest: list[float] = [float("nan")] * len(self.sources)

    @property
    def steps_per_epoch(self) -> int:
        """How many steps an epoch has."""
        counts = [source.batches(size) for source, size in zip(self.sources, self.sizes, strict=True)]
        return max(counts) if self.sampler.every or len(counts) == 1 else sum(counts)

    def choose(self, step: int) -> list[int]:
        """The numbers of the sources that step ``step`` (from 0) draws from."""
        count = len(self.sources)
        if count == 1 or self.sampler.every:
            return list(range(count))
        if self.sampler.in_turn:
            return [step % count]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.asarray(self._latest) / np.asarray(self._first)
        rows = [len(source) for source in self.sources]
        chances = self.sampler.probabilities(rows, min(1.0, step / self.total_steps), ratios.tolist())
        return [int(np.random.default_rng([self.seed, 7919, step]).choice(count, p=chances))]

    def draw(self, step: int) -> list[Part]:
        """The batches of step ``step``; call it once for every step, in order."""
        parts = []
        for number in self.choose(step):
            batch = self.sources[number].batch(
                self._taken[number], self.sizes[number], (self.seed, number), self.rank, self.world
            )
            self._taken[number] += 1
            parts.append(Part(number, batch))
        return parts

    def observe(self, losses: Mapping[str, float]) -> None:
        """Tell the mixer the latest mean loss of every task, for samplers that are driven by losses."""
        for number, source in enumerate(self.sources):
            known = [losses[task] for task in source.tasks if task in losses and np.isfinite(losses[task])]
            if known:
                self._latest[number] = float(np.mean(known))
                if np.isnan(self._first[number]):
                    self._first[number] = self._latest[number]

    def state_dict(self) -> dict[str, Any]:
        """How far every source has been read, and the losses seen."""
        return {"taken": list(self._taken), "first": list(self._first), "latest": list(self._latest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self._taken = [int(count) for count in state["taken"]]
        self._first = [float(value) for value in state["first"]]
        self._latest = [float(value) for value in state["latest"]]
