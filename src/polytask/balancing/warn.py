"""The warning that says a balancer took a documented fallback."""

from __future__ import annotations


class BalancerWarning(UserWarning):
    """A balancing method had no solution as defined, and took the fallback that its docstring states."""
