"""What a person sees while a run trains: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from polytask.errors import TrainingError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

Losses = Mapping[str, float]
REFRESH_SECONDS = 0.25
LINE_SECONDS = 10.0
SHOWN_EPOCHS = 10


class Display:
    """Progress, time left, speed, losses, and validation scores by epoch with the best of each task marked.

    On a terminal the view is drawn anew at most four times a second. Elsewhere, such as in a file or a
    notebook, a line is printed after ten seconds and after each validation. Between two looks ``step`` costs
    a comparison of times; it takes the losses as a function, so that nothing is read from the device then.

    Args:
        console: Where to print; None for standard output.
        live: Whether to draw the live view; None does so on a terminal.
        clock: Gives the time in seconds.

    Example:
        >>> from rich.console import Console
        >>> shown = Display(Console(width=80), live=False)
        >>> shown.start(200, ["income"], "hard sharing, plain sum", metrics={"income": ("auroc", True)})
        hard sharing, plain sum
        >>> shown.validation(1, {"income": {"auroc": 0.91}})
        epoch 1: income auroc 0.9100 *
        >>> shown.stop()
    """

    def __init__(
        self, console: Console | None = None, *, live: bool | None = None, clock: Callable[[], float] = time.monotonic
    ):
        from rich.console import Console

        self._console = console if console is not None else Console()
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal and not self._console.is_jupyter
        self._is_live = terminal if live is None else live
        self._clock = clock
        self._every = REFRESH_SECONDS if self._is_live else LINE_SECONDS
        self._live: Live | None = None
        self._total: int | None = None

    def start(
        self,
        total_steps: int,
        tasks: Sequence[str],
        describe: str = "",
        *,
        metrics: Mapping[str, tuple[str, bool]] | None = None,
        done: int = 0,
    ) -> None:
        """Begin.

        Args:
            total_steps: Steps of the whole run.
            tasks: Names of the tasks, in the order in which they are shown.
            describe: A line about the run, printed first.
            metrics: For each task the metric that is shown after a validation, and whether higher is better. For
                a task that is not named, its first metric is shown and no best is marked.
            done: Steps that an earlier process did, after a resume.

        Raises:
            TrainingError: if it was started before and not stopped.
        """
        if self._total is not None:
            raise TrainingError("The display runs already. Call stop() before start().")
        self._total, self._tasks, self._metrics = total_steps, tuple(tasks), dict(metrics or {})
        self._first = self._step = done
        self._rows = 0
        self._losses: dict[str, float] = {}
        self._scores: dict[int, dict[str, tuple[str, float]]] = {}
        self._best: dict[str, tuple[int, float]] = {}
        self._began = self._looked = self._clock()
        if describe:
            self.message(describe)
        if self._is_live:
            from rich.live import Live

            self._live = Live(self._view(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)

    def step(self, step: int, losses: Callable[[], Losses] | Losses, rows: int = 0) -> None:
        """Say that a step is done; shown at the next look.

        Args:
            step: Steps done in the whole run.
            losses: Each task's loss, or a function that reads them; it is called only when they are shown.
            rows: Rows that the steps since the last call trained on.
        """
        total = self._running()
        self._step = step
        self._rows += rows
        now = self._clock()
        if now - self._looked < self._every and step < total:
            return
        self._losses |= losses() if callable(losses) else losses
        self._look(now, self._progress_line)

    def validation(self, epoch: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Show the scores of a validation.

        Args:
            epoch: Epochs done.
            scores: Metrics by task. An undefined one is shown as a dash and is never the best.
        """
        self._running()
        shown: dict[str, tuple[str, float]] = {}
        for task in self._tasks:
            of = scores.get(task)
            if not of:
                continue
            name = self._metrics[task][0] if task in self._metrics else next(iter(of))
            value = float(of.get(name, math.nan))
            shown[task] = name, value
            if task in self._metrics and self._is_best(task, value):
                self._best[task] = epoch, value
        self._scores[epoch] = shown
        self._look(self._clock(), lambda: self._scores_line(epoch))

    def message(self, text: str) -> None:
        """Print a line that stays, above the live view."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """End; the last view stays on the screen. Harmless when nothing runs."""
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
            self._live.stop()
        self._live = None
        self._total = None

    def _running(self) -> int:
        if self._total is None:
            raise TrainingError("The display does not run. Call start() first.")
        return self._total

    def _is_best(self, task: str, value: float) -> bool:
        if math.isnan(value):
            return False
        if task not in self._best:
            return True
        before = self._best[task][1]
        return value > before if self._metrics[task][1] else value < before

    def _look(self, now: float, line: Callable[[], str]) -> None:
        self._looked = now
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
        else:
            self.message(line())

    def _facts(self) -> list[str]:
        """Steps done, speed and time left, as far as they are known."""
        total, seconds = self._running(), self._clock() - self._began
        done = self._step - self._first
        facts = [f"step {self._step:,}/{total:,}"]
        if done > 0 and seconds > 0:
            if self._rows:
                facts.append(f"{self._rows / seconds:,.0f} rows/s")
            left = seconds / done * (total - self._step)
            facts.append(f"{_clock_time(left)} left" if left > 0 else f"took {_clock_time(seconds)}")
        return facts

    def _loss_texts(self) -> list[str]:
        return [f"{task} {_number(self._losses[task])}" for task in self._tasks if task in self._losses]

    def _progress_line(self) -> str:
        losses = self._loss_texts()
        return ", ".join(self._facts() + ([f"loss: {', '.join(losses)}"] if losses else []))

    def _scores_line(self, epoch: int) -> str:
        shown = [
            f"{task} {name} {_number(value)}{self._mark(epoch, task)}"
            for task, (name, value) in self._scores[epoch].items()
        ]
        return f"epoch {epoch}: {', '.join(shown) if shown else 'no score'}"

    def _mark(self, epoch: int, task: str) -> str:
        return " *" if self._best.get(task, (None,))[0] == epoch else ""

    def _view(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(padding=(0, 1), expand=False)
        bar.add_row(ProgressBar(total=self._running(), completed=self._step, width=30), Text(", ".join(self._facts())))
        parts: list[RenderableType] = [self._score_table()] if self._scores else []
        parts.append(bar)
        if losses := self._loss_texts():
            parts.append(Text("loss  " + "   ".join(losses), style="dim"))
        return Group(*parts)

    def _score_table(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        scored, left_out = self._columns()
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=left_out or None, caption_justify="left")
        table.add_column("epoch", justify="right")
        for task, metric in scored.items():
            table.add_column(Text(f"{task}\n{metric}"), justify="right")
        last = sorted(self._scores)[-SHOWN_EPOCHS:]
        kept = {epoch for epoch, _ in self._best.values()}
        for epoch in sorted(kept | set(last)):
            cells = []
            for task in scored:
                value = self._scores[epoch].get(task, ("", math.nan))[1]
                mark = "* " if self._mark(epoch, task) else ""
                cells.append(Text(f"{mark}{_number(value)}", style="bold green" if mark else ""))
            table.add_row(str(epoch), *cells)
        return table

    def _columns(self) -> tuple[dict[str, str], str]:
        """The tasks that have scores, as many as fit beside each other, with their metrics; then what did not fit."""
        metrics = {task: of[task][0] for of in self._scores.values() for task in self._tasks if task in of}
        free = self._console.width - len("epoch")
        fitting: dict[str, str] = {}
        for task in (task for task in self._tasks if task in metrics):
            free -= max(len(task), len(metrics[task]), len("* 0.1234")) + 3
            if free < 0 and fitting:
                break
            fitting[task] = metrics[task]
        more = len(metrics) - len(fitting)
        return fitting, f"and {more} more tasks: widen the terminal" if more else ""


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"


def _clock_time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
