"""history.csv and timings.csv."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.files import replacing
from polytask.training.callbacks import Callback

if TYPE_CHECKING:
    from polytask.training.loop import Loop


def _text(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


class CsvFile:
    """A CSV file that is appended to; a column that appears later is added to the whole file.

    Args:
        path: Where it lies.
    """

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []
        self.rows = 0

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows at the end."""
        new = [name for row in rows for name in row if name not in self.columns]
        if new:
            self._rewrite([*self.columns, *dict.fromkeys(new)], self.rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_text(row.get(name)) for name in self.columns] for row in rows)
        self.rows += len(rows)

    def cut(self, columns: Sequence[str], rows: int) -> None:
        """Keep the first ``rows`` rows, under ``columns``."""
        self._rewrite(list(columns), rows)

    def _rewrite(self, columns: list[str], rows: int) -> None:
        kept: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                kept = [row for _, row in zip(range(rows), csv.DictReader(file), strict=False)]
        with replacing(self.path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([row.get(name) or "" for name in columns] for row in kept)
        self.columns, self.rows = columns, len(kept)


class HistoryFile(Callback):
    """Writes ``history.csv``: rows of scope ``step`` and ``epoch``; no clock times, so that a resume repeats it."""

    def __init__(self, folder: Path, is_main: bool = True):
        self._file = CsvFile(folder / "history.csv")
        self._is_main = is_main

    def on_step_end(self, loop: Loop, rows: list[dict[str, Any]]) -> None:
        """Append the steps' rows."""
        if self._is_main:
            self._file.append(rows)

    def on_epoch_end(self, loop: Loop, row: dict[str, Any]) -> None:
        """Append the epoch's row."""
        if self._is_main:
            self._file.append([row])

    def state_dict(self) -> dict[str, Any]:
        """Columns and number of rows."""
        return {"columns": list(self._file.columns), "rows": self._file.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the file back to the checkpoint."""
        if self._is_main:
            self._file.cut(state["columns"], state["rows"])


class TimingsFile(Callback):
    """Writes ``timings.csv``: seconds, rows a second and peak memory of every epoch."""

    def __init__(self, folder: Path | None):
        self._file = CsvFile(folder / "timings.csv") if folder else None
        self.rows: list[dict[str, Any]] = []
        self._started = self._step = 0.0

    def on_start(self, loop: Loop) -> None:
        """Start the clock."""
        self._started, self._step = time.perf_counter(), loop.step

    def on_epoch_end(self, loop: Loop, row: dict[str, Any]) -> None:
        """Append the epoch's times."""
        now = time.perf_counter()
        seconds, steps = now - self._started, loop.step - self._step
        rows = steps * sum(map(len, loop.mixer.sources)) / loop.steps_per_epoch
        self._started, self._step = now, loop.step
        timing = {
            "epoch": row["epoch"],
            "step": loop.step,
            "seconds": round(seconds, 4),
            "rows_per_second": round(rows / seconds, 1),
            "peak_memory_bytes": peak_memory(loop.runtime.device.type),
        }
        self.rows.append(timing)
        if self._file:
            self._file.append([timing])

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the checkpoint's rows."""
        self.rows = list(state["rows"])
        if self._file and self.rows:
            self._file.cut(list(self.rows[0]), len(self.rows))


def peak_memory(device: str) -> int:
    """Most memory used so far in bytes: of the device for CUDA, else resident memory of the process."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
