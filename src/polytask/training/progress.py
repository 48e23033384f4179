"""Tells the display what the loop does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polytask.evaluation import Scores
from polytask.training.callbacks import Callback
from polytask.training.display import Display

if TYPE_CHECKING:
    from polytask.training.loop import Loop


class Progress(Callback):
    """Shows a run on the main process as it goes.

    Args:
        display: Where to show it; None makes one for standard output.
    """

    def __init__(self, display: Display | None = None):
        self._display = display if display is not None else Display()
        self._seen = 0

    def message(self, text: str) -> None:
        """Print a line that stays."""
        self._display.message(text)

    def close(self) -> None:
        """End the display, also after an error."""
        self._display.stop()

    def on_start(self, loop: Loop) -> None:
        """Start the display where the run stands."""
        if not loop.runtime.is_main:
            return
        tasks = loop.model.tasks
        metrics = {name: (task.primary, task.metrics[task.primary].higher_is_better) for name, task in tasks.items()}
        self._seen = loop.step
        about = " ".join(filter(None, (loop.engine.describe(), loop.partial.strategy.describe())))
        self._display.start(loop.total_steps, list(tasks), about, metrics=metrics, done=loop.step)

    def on_step_end(self, loop: Loop, rows: list[dict[str, Any]]) -> None:
        """Show the steps since the last call."""
        if not loop.runtime.is_main:
            return
        per_step = sum(map(len, loop.mixer.sources)) / loop.steps_per_epoch
        trained = round((loop.step - self._seen) * per_step)
        self._seen = loop.step
        self._display.step(loop.step, lambda: _last_losses(rows), rows=trained)

    def on_validation_end(self, loop: Loop, scores: Scores) -> None:
        """Show the scores."""
        if loop.runtime.is_main:
            self._display.validation(-(-loop.step // loop.steps_per_epoch), scores)


def _last_losses(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Each task's loss in the last row that has it."""
    prefix = "loss."
    return {name.removeprefix(prefix): row[name] for row in rows for name in row if name.startswith(prefix)}
