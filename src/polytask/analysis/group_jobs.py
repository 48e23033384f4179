"""How long a step takes for how many tasks: what a time budget of a grouping is reckoned from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polytask.analysis.affinity_jobs import subset_rows
from polytask.analysis.jobs import Result, write_json
from polytask.analysis.rows import Rows
from polytask.analysis.subsets import subset_recipe
from polytask.recipes.build import make_model
from polytask.recipes.load import load_recipe
from polytask.training.fit import build_mixer, build_strategy, seeded, train
from polytask.training.loop import total_steps
from polytask.training.runtime import Runtime

WARM_UP, TIMED = 5, 30
"""Steps before the clock starts, and on the clock."""


def pace(rows: Rows, *, recipe: Mapping[str, Any], sizes: Sequence[int], result: str) -> Result:
    """Seconds that a whole training of the first so many tasks takes, from a few of its steps.

    Returns:
        ``seconds``, one for each of ``sizes``.
    """
    found = []
    for size in sizes:
        tasks = list(recipe["tasks"])[:size]
        own, loaded = subset_rows(rows, tasks), load_recipe(subset_recipe(recipe, tasks))
        settings = loaded.training
        mixer = build_mixer(own.sources["train"], settings, Runtime("cpu"))
        whole = total_steps(settings, mixer.steps_per_epoch * build_strategy(settings, tasks).steps_per_batch)
        times = []
        for steps in (WARM_UP, WARM_UP + TIMED):
            with seeded(settings.seed):
                model = make_model(loaded, rows.schema, own.tasks)
            began = time.perf_counter()
            short = replace(settings, steps=steps, select="last", patience=None)
            train(model, own.sources["train"], balancer=loaded.balancer, settings=short)
            times.append(time.perf_counter() - began)
        found.append(max(times[1] - times[0], 0.0) / TIMED * whole)
    write_json(Path(result), {"seconds": found})
    return {"seconds": found}
