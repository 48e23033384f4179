"""How much better a metric has become, whatever its unit and direction."""

from __future__ import annotations

import math

FLOOR = 0.05
"""Least denominator of a metric of which more is better: such metrics are at most 1 and may start near 0."""


def relative_improvement(first: float, now: float, higher_is_better: bool) -> float:
    r"""How much better a metric is than at first, as a share of its first value; positive is better.

    :math:`s\,(now - first) / d` with :math:`s = \pm 1` for the direction. The denominator d is
    :math:`|first|`. Where higher is better it is at least 0.05, so that a metric that starts near zero, such
    as :math:`R^2`, does not outweigh all other tasks. Where lower is better and the first value is 0, the
    metric cannot improve: the result is 0 if it still is 0, 1 if it fell below and -1 if it rose.

    Args:
        first: Its value at the first validation.
        now: Its value now.
        higher_is_better: Its direction.

    Returns:
        The improvement; NaN if either value is.

    Example:
        >>> relative_improvement(2.0, 1.0, higher_is_better=False)
        0.5
        >>> round(relative_improvement(0.8, 0.9, higher_is_better=True), 4)
        0.125
    """
    gain = now - first if higher_is_better else first - now
    if not higher_is_better and first == 0:
        return gain if gain == 0 or math.isnan(gain) else math.copysign(1.0, gain)
    return gain / max(abs(first), FLOOR if higher_is_better else 0.0)
