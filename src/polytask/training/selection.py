"""Which epoch's weights are kept, and when a run stops early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from polytask.evaluation import Criterion, Scores
from polytask.training.callbacks import Callback
from polytask.training.state import load_state, save_state

if TYPE_CHECKING:
    from polytask.training.loop import Loop

BEST = "checkpoints/best.safetensors"


class BestModel(Callback):
    """Keeps the weights of the best validation, and stops when it lies ``patience`` validations back.

    Args:
        criterion: Gives one number for the scores of all tasks; higher is better.
        patience: Validations without an improvement until the run stops; None never stops it.
        folder: Folder of the run; None keeps the weights in memory.
    """

    def __init__(self, criterion: Criterion, patience: int | None = None, folder: Path | None = None):
        self.criterion, self.patience, self.folder = criterion, patience, folder
        self.first: dict[str, dict[str, float | None]] | None = None
        self.best = -math.inf
        self.best_epoch = 0
        self.waited = 0
        self._weights: dict[str, Tensor] | None = None

    def on_validation_end(self, loop: Loop, scores: Scores) -> None:
        """Compare, and keep or wait."""
        if self.first is None:
            self.first = scores.to_dict()
        value = self.criterion(scores, Scores.from_dict(self.first))
        # An undefined criterion is no improvement, but the first validation is always kept.
        if value > self.best or self.best_epoch == 0:
            self.best = value if not math.isnan(value) else -math.inf
            self.best_epoch, self.waited = -(-loop.step // loop.steps_per_epoch), 0
            self._keep(loop)
        else:
            self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            loop.stop_reason = (
                f"no improvement of {self.criterion.spec} in {self.waited} validations; best epoch {self.best_epoch}"
            )

    def _keep(self, loop: Loop) -> None:
        if self.folder is None:
            self._weights = {name: tensor.detach().clone() for name, tensor in loop.model.state_dict().items()}
        elif loop.runtime.is_main:
            save_state({"model": loop.model.state_dict(), "epoch": self.best_epoch}, self.folder / BEST)

    def on_end(self, loop: Loop) -> None:
        """Put the best weights into the model."""
        if self.best_epoch == 0:
            return
        loop.runtime.barrier()
        if self.folder is not None:
            kept = load_state(self.folder / BEST)
            loop.model.load_state_dict(kept["model"])
        elif self._weights is not None:
            loop.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """First scores, best value and epoch, validations waited, and the weights if only memory has them."""
        state: dict[str, Any] = {
            "first": self.first,
            "best": None if math.isinf(self.best) else self.best,
            "best_epoch": self.best_epoch,
            "waited": self.waited,
        }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; drop a best epoch that lies after the checkpoint."""
        self.first, self.waited = state["first"], state["waited"]
        self.best = -math.inf if state["best"] is None else state["best"]
        self.best_epoch = state["best_epoch"]
