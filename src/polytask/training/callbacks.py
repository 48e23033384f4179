"""Hooks into the loop: a no-op base with the seven places where something can happen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polytask.evaluation import Scores

if TYPE_CHECKING:
    from polytask.training.loop import Loop


class Callback:
    """Override what you need; state that a resume needs goes through ``state_dict``.

    Example:
        >>> class Count(Callback):
        ...     steps = 0
        ...     def on_step_end(self, loop, rows):
        ...         self.steps += len(rows)
    """

    def on_start(self, loop: Loop) -> None:
        """Before the first step of this process, also after a resume."""

    def on_step_end(self, loop: Loop, rows: list[dict[str, Any]]) -> None:
        """After the logged rows of one or more steps were read from the device (every few steps)."""

    def on_validation_end(self, loop: Loop, scores: Scores) -> None:
        """After a validation; set ``loop.stop_reason`` to end the run."""

    def on_epoch_end(self, loop: Loop, row: dict[str, Any]) -> None:
        """After an epoch and its validation, before its checkpoint."""

    def on_checkpoint(self, loop: Loop) -> None:
        """Before a checkpoint is written: bring files up to date."""

    def on_interrupt(self, loop: Loop) -> None:
        """After Ctrl-C, when the checkpoint has been written."""

    def on_end(self, loop: Loop) -> None:
        """After the last step, when the chosen weights are in the model."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors that a resume needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
