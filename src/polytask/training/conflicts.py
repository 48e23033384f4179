"""The conflict monitor in the loop: figures for history.csv, and sentences for the report."""

from __future__ import annotations

from polytask.balancing.monitor import ConflictMonitor
from polytask.balancing.types import StepReport

LOOK_EVERY = 10
"""Steps between looks. The Gramian is on the host by then, so a look costs microseconds."""
MOST_PAIRS = 15
"""With more pairs than this (six tasks), the history keeps the mean and the least cosine instead of each."""


class ConflictLog:
    """Looks at every tenth step of a method that forms a Gramian; a loss weighting shows its weights alone."""

    def __init__(self) -> None:
        self._monitor = ConflictMonitor()

    def look(self, step: int, report: StepReport) -> dict[str, float]:
        """Columns for the row of this step (from 1); none between two looks, or without a Gramian."""
        if step % LOOK_EVERY or report.gramian is None:
            return {}
        found = self._monitor.observe(report)
        if found is None or found.rate is None:
            return {}
        cosines = list(found.cosines.values())
        columns = {"conflict_rate": found.rate, "smallest_ratio": min(found.ratios.values())}
        if len(cosines) <= MOST_PAIRS:
            columns |= {f"cosine.{one}.{other}": value for (one, other), value in found.cosines.items()}
        else:
            columns |= {"mean_cosine": sum(cosines) / len(cosines), "least_cosine": min(cosines)}
        return columns

    def sentences(self) -> list[str]:
        """What stands out, in words."""
        return self._monitor.warnings()
