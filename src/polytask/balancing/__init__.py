"""Balancing: how the tasks' losses or gradients become one update.

``build`` makes a method, ``engine`` runs it in a training loop, ``backward`` and ``Node`` in one's own.
Names are imported when they are first used, so that ``from polytask import balancing`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polytask.balancing.base import Balancer, GramianWeighting, JacobianAggregator, LossWeighting, Trial
    from polytask.balancing.doors import aggregate, weights
    from polytask.balancing.engines.choose import engine
    from polytask.balancing.making import build, split
    from polytask.balancing.monitor import Conflict, ConflictMonitor, conflict
    from polytask.balancing.own_loop import Node, backward, balance
    from polytask.balancing.types import Engine, Losses, MicroBatch, StepReport

_WHERE = {
    "Balancer": "base",
    "GramianWeighting": "base",
    "JacobianAggregator": "base",
    "LossWeighting": "base",
    "Node": "own_loop",
    "Trial": "base",
    "aggregate": "doors",
    "backward": "own_loop",
    "balance": "own_loop",
    "build": "making",
    "conflict": "monitor",
    "engine": "engines.choose",
    "split": "making",
    "weights": "doors",
    "Conflict": "monitor",
    "ConflictMonitor": "monitor",
    "Engine": "types",
    "Losses": "types",
    "MicroBatch": "types",
    "StepReport": "types",
}

__all__ = [
    "Balancer",
    "Conflict",
    "ConflictMonitor",
    "Engine",
    "GramianWeighting",
    "JacobianAggregator",
    "LossWeighting",
    "Losses",
    "MicroBatch",
    "Node",
    "StepReport",
    "Trial",
    "aggregate",
    "backward",
    "balance",
    "build",
    "conflict",
    "engine",
    "split",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'polytask.balancing' has no attribute '{name}'")
    found = getattr(importlib.import_module(f"polytask.balancing.{_WHERE[name]}"), name)
    globals()[name] = found
    return found
