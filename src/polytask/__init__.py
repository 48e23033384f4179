"""Train one model on many tasks, and know whether it was worth it.

Example:
    >>> import polytask as pt
    >>> pt.tasks.binary("income").kind
    'binary'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and where they live. They are imported when first used: `polytask --help` needs none of them.
_PLACES = {
    "Batch": "polytask.data.batch:Batch",
    "Callback": "polytask.training.callbacks:Callback",
    "Comparison": "polytask.analysis.comparison:Comparison",
    "MultiTaskModel": "polytask.models:MultiTaskModel",
    "Recipe": "polytask.recipes.schema:Recipe",
    "Run": "polytask.training.fit:Run",
    "Scores": "polytask.evaluation:Scores",
    "Task": "polytask.tasks.task:Task",
    "affinity": "polytask.analysis.affinity:affinity",
    "compare": "polytask.analysis.compare:compare",
    "delta_m": "polytask.evaluation:delta_m",
    "evaluate": "polytask.api:evaluate",
    "fit": "polytask.api:fit",
    "group": "polytask.analysis.group:group",
    "load": "polytask.serving:load",
    "load_recipe": "polytask.recipes.load:load_recipe",
    "mean_rank": "polytask.evaluation:mean_rank",
    "ref": "polytask.serving:ref",
    "run": "polytask.api:run",
    "tune": "polytask.analysis.tune:tune",
}
_PACKAGES = (
    "analysis",
    "balancing",
    "data",
    "evaluation",
    "models",
    "recipes",
    "reporting",
    "serving",
    "sharing",
    "tasks",
    "training",
)

# Spelled out, because tools that check types do not run code; a test compares it with the two above.
__all__ = [
    "Batch",
    "Callback",
    "Comparison",
    "MultiTaskModel",
    "Recipe",
    "Run",
    "Scores",
    "Task",
    "__version__",
    "affinity",
    "analysis",
    "balancing",
    "compare",
    "data",
    "delta_m",
    "evaluate",
    "evaluation",
    "fit",
    "group",
    "load",
    "load_recipe",
    "mean_rank",
    "models",
    "recipes",
    "ref",
    "reporting",
    "run",
    "serving",
    "sharing",
    "tasks",
    "training",
    "tune",
]

if TYPE_CHECKING:
    from polytask import (
        analysis,
        balancing,
        data,
        evaluation,
        models,
        recipes,
        reporting,
        serving,
        sharing,
        tasks,
        training,
    )
    from polytask.analysis.affinity import affinity
    from polytask.analysis.compare import compare
    from polytask.analysis.comparison import Comparison
    from polytask.analysis.group import group
    from polytask.analysis.tune import tune
    from polytask.api import evaluate, fit, run
    from polytask.data.batch import Batch
    from polytask.evaluation import Scores, delta_m, mean_rank
    from polytask.models import MultiTaskModel
    from polytask.recipes.load import load_recipe
    from polytask.recipes.schema import Recipe
    from polytask.serving import load, ref
    from polytask.tasks.task import Task
    from polytask.training.callbacks import Callback
    from polytask.training.fit import Run


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, _, attribute = _PLACES[name].partition(":")
        value = getattr(importlib.import_module(module), attribute)
    elif name in _PACKAGES:
        value = importlib.import_module(f"polytask.{name}")
    else:
        from polytask.errors import suggestion

        raise AttributeError(f"polytask has no '{name}'.{suggestion(name, __all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
