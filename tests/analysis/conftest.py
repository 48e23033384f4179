"""A pool that works in this process: worker processes take seconds to start, and have tests of their own."""

import json

import pytest

from polytask import registry
from polytask.analysis import workshop
from polytask.analysis.pool import Outcome


class HerePool:
    """Does a job when it is waited for; arguments and results go through JSON, as they do between processes."""

    def __init__(self, workers, *, context, context_arguments, on_event=None):
        self._make, self._jobs, self._context = (context, context_arguments), [], None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    @property
    def unfinished(self):
        return len(self._jobs)

    def submit(self, job):
        self._jobs.append(job)

    def wait(self):
        job = self._jobs.pop(0)
        if self._context is None:
            self._context = registry.resolve(self._make[0])(**self._make[1])
        try:
            value = registry.resolve(job.function)(self._context, **json.loads(json.dumps(dict(job.arguments))))
        except Exception as error:
            return Outcome(job, error=str(error), kind=type(error).__name__)
        return Outcome(job, json.loads(json.dumps(value, allow_nan=False)))


@pytest.fixture
def here(monkeypatch):
    """Jobs of a workshop are done in this process."""
    monkeypatch.setattr(workshop, "Pool", HerePool)
