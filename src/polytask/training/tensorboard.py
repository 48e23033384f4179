"""TensorBoard event files beside history.csv."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.errors import MissingExtraError
from polytask.training.callbacks import Callback

if TYPE_CHECKING:
    from polytask.training.loop import Loop


class TensorBoard(Callback):
    """Writes every number of history.csv as a scalar under ``RUN/tensorboard``.

    Args:
        folder: Folder of the run.

    Raises:
        MissingExtraError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "training.loggers: [tensorboard] needs the package tensorboard. "
                "Install it with: pip install 'polytask[tensorboard]'"
            ) from error
        self._make = SummaryWriter
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def on_start(self, loop: Loop) -> None:
        """Open the event file; events after a checkpoint's step are dropped by TensorBoard."""
        if loop.runtime.is_main:
            self._writer = self._make(self._folder, purge_step=loop.step + 1 if loop.step else None)

    def _write(self, rows: list[dict[str, Any]], prefix: str) -> None:
        if self._writer is None:
            return
        for row in rows:
            for name, value in row.items():
                if isinstance(value, float) and value == value:
                    self._writer.add_scalar(f"{prefix}/{name}", value, row["step"])

    def on_step_end(self, loop: Loop, rows: list[dict[str, Any]]) -> None:
        """Write the steps' numbers."""
        self._write(rows, "step")

    def on_epoch_end(self, loop: Loop, row: dict[str, Any]) -> None:
        """Write the epoch's numbers."""
        self._write([row], "epoch")

    def on_checkpoint(self, loop: Loop) -> None:
        """Bring the file up to date."""
        if self._writer is not None:
            self._writer.flush()

    def on_end(self, loop: Loop) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
