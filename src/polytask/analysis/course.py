"""Where a method of a comparison stands."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from polytask.analysis.jobs import Result
from polytask.analysis.methods import Method
from polytask.analysis.plan import Work
from polytask.analysis.search import Trial


@dataclass(frozen=True)
class Trained:
    """What became of a method before the test rows were opened.

    Args:
        method: The method.
        trials: What its search tried; empty without a search.
        work: Its final trainings, one a seed.
        results: Their results.
    """

    method: Method
    trials: list[Trial]
    work: list[Work]
    results: list[Result]


Steps = Generator[list[Work], list[Result], Trained]


class Course:
    """Where a method stands: the trainings that it asks for, and those that it has.

    Args:
        steps: Yields trainings, is sent their results, and ends with what became of the method.
    """

    def __init__(self, steps: Steps):
        self._steps = steps
        self._asked, self._found = next(steps), dict[str, Result]()
        self.end: Trained | None = None

    @property
    def missing(self) -> list[Work]:
        """What has no result yet."""
        return [work for work in self._asked if work.key not in self._found]

    def give(self, work: Work, result: Result) -> None:
        """Take the result of a training; the last one that is missing leads to the next trainings or to the end."""
        self._found[work.key] = result
        if not self.missing:
            try:
                self._asked, self._found = self._steps.send([self._found[of.key] for of in self._asked]), {}
            except StopIteration as stop:
                self._asked, self.end = [], stop.value
