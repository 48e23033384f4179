"""The conflict monitor in the loop: when it looks, figures for history.csv, and sentences for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from polytask import registry
from polytask.balancing.base import Balancer
from polytask.balancing.monitor import Conflict, ConflictMonitor, conflict
from polytask.balancing.types import Engine, MicroBatch, StepReport

LOOK_EVERY = 10
"""Steps between looks at a Gramian that is there anyway: on the host by then, it costs microseconds."""
FIRST_PROBES = (1, 30)
"""A short run is probed as well. A probe costs about half a step (0.3 to 0.8 measured; 1.3 for 40 tasks on an MLP)."""
MOST_PAIRS = 15
"""With more pairs than this (six tasks), the history keeps the mean and the least cosine instead of each."""


class ConflictLog:
    """Looks at the step's own Gramian where the method forms one, else at a probe of the shared features.

    What is due in a step depends on its number alone, so that a resumed run looks at the same steps, and several
    processes probe together.

    Args:
        engine: Of the run.
        monitor_every: Steps between two probes; 0 never looks.
        log_every: Steps between rows of the history: a look waits for a step that has one.
        layers: Whether every probe looks at the shared layers as well.
    """

    def __init__(self, engine: Engine, monitor_every: int, log_every: int, layers: bool = False):
        self.layers = layers and len(engine.balancer.tasks) > 1
        self.engine, self.monitor_every, self.log_every = engine, monitor_every, log_every
        self._monitor = ConflictMonitor(method=name_of(engine.balancer))
        self._waiting = False
        self._fallbacks: dict[str, int] = {}

    def probe(self, step: int, micro: Sequence[MicroBatch]) -> dict[str, float]:
        """Columns for the row of this step (from 1), from a probe before its backward; none between two probes."""
        if not self.monitor_every or not self._due(step, self.monitor_every):
            return {}
        found = self.engine.probe(micro) if self.engine.figures == "features" else None
        row = {} if found is None else columns(self._monitor.add(found[1], found[0]))
        by_layer = self.engine.probe_layers(micro) if self.layers else None
        return row if by_layer is None else row | layer_columns(*by_layer)

    def look(self, step: int, report: StepReport) -> dict[str, float]:
        """Columns from the Gramian that the step itself formed; none between two looks."""
        if not self.monitor_every or self.engine.figures != "own":
            return {}
        self._waiting |= step % min(LOOK_EVERY, self.monitor_every) == 0
        if not self._waiting or report.gramian is None or step % self.log_every:
            return {}
        self._waiting = False
        return columns(self._monitor.add(report.gramian, tuple(report.losses)))

    def _due(self, step: int, every: int) -> bool:
        """Whether a probe was planned in this row of the history or since the last one."""
        before = step - self.log_every
        planned = step // every > before // every or any(before < first <= step for first in FIRST_PROBES)
        return step % self.log_every == 0 and planned

    def note_weights(self, weights: Mapping[str, float]) -> None:
        """Take in the weights of a step."""
        if not self.engine.balancer.fixed_weights:
            self._monitor.watch.note(weights)

    def describe(self) -> str:
        """Which figures the history will have, for the log."""
        by_layer = f" By shared layer: every {self.monitor_every} steps." if self.layers else ""
        return self._described() + by_layer

    def _described(self) -> str:
        figures = self.engine.figures
        if not self.monitor_every or figures == "none":
            why = "switched off" if not self.monitor_every else "there are no common features or no pair of tasks"
            return f"Conflict figures: none ({why})."
        if figures == "own":
            every = min(LOOK_EVERY, self.monitor_every)
            return f"Conflict figures: of the gradients that the method takes, every {every} steps."
        return f"Conflict figures: of the gradients at the shared features, every {self.monitor_every} steps."

    def sentences(self) -> list[str]:
        """What stands out, in words."""
        texts = self._monitor.warnings()
        for reason, count in self._counted_fallbacks().items():
            texts.append(f"'{self._monitor.method}' fell back in {count} step{'s' * (count > 1)}: {reason}.")
        return texts

    def _counted_fallbacks(self) -> dict[str, int]:
        """Fallbacks of the method and of methods inside of it, those before a resume included."""
        total = dict(self._fallbacks)
        for part in self.engine.balancer.modules():
            for reason, count in part.fallbacks.items() if isinstance(part, Balancer) else ():
                total[reason] = total.get(reason, 0) + count
        return total

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {
            "monitor": self._monitor.state_dict(),
            "waiting": self._waiting,
            "fallbacks": self._counted_fallbacks(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._monitor.load_state_dict(state["monitor"])
        self._waiting, self._fallbacks = state["waiting"], dict(state["fallbacks"])


def columns(found: Conflict) -> dict[str, float]:
    """Columns of the history; none where fewer than two gradients are not zero."""
    if found.rate is None:
        return {}
    cosines = list(found.cosines.values())
    row = {"conflict_rate": found.rate, "smallest_ratio": min(found.ratios.values())}
    if len(cosines) <= MOST_PAIRS:
        return row | {f"cosine.{one}.{other}": value for (one, other), value in found.cosines.items()}
    return row | {"mean_cosine": sum(cosines) / len(cosines), "least_cosine": min(cosines)}


def layer_columns(tasks: Sequence[str], products: Mapping[str, Tensor]) -> dict[str, float]:
    """Columns of the history: for each layer the mean cosine over the pairs of tasks that have gradients there."""
    row = {}
    for layer, gramian in products.items():
        cosines = conflict(gramian, tasks).cosines
        if cosines:
            row[f"layer_cosine.{layer}"] = sum(cosines.values()) / len(cosines)
    return row


def name_of(balancer: Balancer) -> str:
    """The method's name in recipes, or that of its class."""
    kind = type(balancer)
    path = f"{kind.__module__}:{kind.__qualname__}"
    return next((key for key, entry in registry.entries("balancers").items() if entry.path == path), kind.__qualname__)
