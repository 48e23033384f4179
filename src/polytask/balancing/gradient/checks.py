"""Checks of options that several methods share."""

from __future__ import annotations

from polytask.balancing.gramian.solver import check_number
from polytask.errors import BalancerError


def check_share(method: str, option: str, value: float) -> float:
    """The value as a float; a BalancerError unless it lies in [0, 1]."""
    share = check_number(method, option, value, 0.0)
    if share > 1.0:
        raise BalancerError(f"{method}: {option} must be a number between 0 and 1; got {value!r}.")
    return share


def check_count(method: str, option: str, value: int, low: int) -> int:
    """The value; a BalancerError unless it is a whole number of at least ``low``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise BalancerError(f"{method}: {option} must be a whole number of at least {low}; got {value!r}.")
    return value
