"""A small table, a recipe over it, and a comparison of it."""

import json

import numpy as np
import polars as pl
import pytest

from polytask import registry
from polytask.analysis import workshop
from polytask.analysis.compare import compare
from polytask.analysis.pool import Outcome

TASKS = {"up": {"type": "binary"}, "size": {"type": "regression"}, "kind": {"type": "multiclass"}}


def make_table(rows=240, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 4))
    kind = np.where(x[:, 0] > 0.5, "a", np.where(x[:, 1] > 0, "b", "c"))
    size = 3 * x[:, 2] + x[:, 0] + random.normal(size=rows) + 10
    frame = pl.DataFrame({f"x{i}": x[:, i] for i in range(4)} | {"kind": kind, "size": size})
    up = (x[:, 0] + x[:, 3] + 0.3 * random.normal(size=rows) > 0).astype(int)
    hidden = pl.Series(random.random(rows) < 0.2)
    return frame.with_columns(pl.when(hidden).then(None).otherwise(pl.Series(up)).alias("up"))


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    make_table().write_csv(path)
    return path


@pytest.fixture(scope="session")
def recipe(table):
    return {
        "data": {"table": str(table)},
        "tasks": TASKS,
        "model": {"encoder": {"name": "tabular", "hidden": [8]}},
        "training": {"epochs": 2, "batch_size": 32, "lr": 0.01, "seed": 3},
    }


@pytest.fixture(scope="session")
def finished(recipe, tmp_path_factory):
    """A comparison that came to its end; tests read it and copy its folder."""
    out = tmp_path_factory.mktemp("compare") / "first"
    return compare(recipe, balancers="equal,pcgrad", baselines="trees", seeds=2, jobs=1, out=out)


class HerePool:
    """Works in this process, since processes take seconds to start, and does a job when it is waited for.

    Arguments and results go through JSON, as they do between processes.
    """

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


@pytest.fixture(scope="module")
def here():
    """Jobs of a workshop are done in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workshop, "Pool", HerePool)
        yield
