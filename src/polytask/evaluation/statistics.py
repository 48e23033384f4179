"""What a few numbers say: intervals of means, paired tests, corrections for several tests."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from polytask.errors import DataError

Numbers = Sequence[float | None]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that covers the true mean with the stated probability.

    Args:
        mean: Mean of the defined values; NaN if there is none.
        low: Lower end; NaN if no interval can be given.
        high: Upper end.
        count: How many values were defined.
        level: The probability.
    """

    mean: float
    low: float
    high: float
    count: int
    level: float = 0.95

    @property
    def half(self) -> float:
        """Half the length of the interval; NaN if there is none."""
        return (self.high - self.low) / 2

    @property
    def known(self) -> bool:
        """Whether there is an interval: at least two values."""
        return not math.isnan(self.low)

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})" if self.known else f"{self.mean:.4g}"


def _defined(values: Numbers) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return array[~np.isnan(array)]


def mean_interval(values: Numbers, level: float = 0.95) -> Interval:
    r"""The mean with its confidence interval from Student's t distribution.

    :math:`\bar x \pm t_{n-1,\,(1+level)/2}\; s / \sqrt n` with the sample's deviation s. It has its stated coverage
    where the values are independent draws from a normal distribution.

    Args:
        values: Numbers; None and NaN are left out.
        level: Probability that the interval covers the mean.

    Returns:
        The interval; its ends are NaN with fewer than two values.

    Raises:
        DataError: if the level is not between 0 and 1.

    Example:
        >>> print(mean_interval([0.90, 0.92, 0.94]))
        0.92 (0.8703 to 0.9697)
        >>> print(mean_interval([0.90]))
        0.9
    """
    if not 0 < level < 1:
        raise DataError(f"level is {level}; it is a probability between 0 and 1, such as 0.95.")
    known = _defined(values)
    count = len(known)
    mean = float(known.mean()) if count else math.nan
    if count < 2:
        return Interval(mean, math.nan, math.nan, count, level)
    # Of scipy.special, since scipy.stats takes half a second to import.
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, (1 + level) / 2) * known.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count, level)


@dataclass(frozen=True)
class Difference:
    """A mean difference of pairs, and the paired t test of whether it is zero.

    Args:
        interval: Of the mean difference.
        p: Two-sided probability of a difference at least as large if there is none; NaN with fewer than two
            pairs, or without any spread.
        adjusted: ``p`` corrected for the other tests of its family; equal to ``p`` until ``corrected`` ran.
    """

    interval: Interval
    p: float
    adjusted: float

    def beyond_noise(self, alpha: float = 0.05) -> bool:
        """Whether the corrected test rejects that there is no difference."""
        return self.adjusted < alpha


def paired_difference(values: Numbers, baseline: Numbers, level: float = 0.95) -> Difference:
    """Differences of pairs such as the same seed under two methods.

    Where all pairs differ by the same amount, as few seeds of a coarse metric may, there is no spread to measure it
    by: ``p`` is 1 for a difference of zero and NaN for any other.

    Args:
        values: One number a pair; None and NaN leave the pair out.
        baseline: The other number of each pair.
        level: Of the interval.

    Returns:
        The mean of ``values - baseline``, its interval and the paired t test.

    Raises:
        DataError: if the two have different lengths.

    Example:
        >>> difference = paired_difference([0.91, 0.93, 0.92], [0.90, 0.91, 0.90])
        >>> print(difference.interval, round(difference.p, 4))
        0.01667 (0.002324 to 0.03101) 0.0377
    """
    if len(values) != len(baseline):
        raise DataError(f"Pairs need equally many numbers on both sides; found {len(values)} and {len(baseline)}.")
    gaps = [math.nan if a is None or b is None else float(a) - float(b) for a, b in zip(values, baseline, strict=True)]
    interval = mean_interval(gaps, level)
    p = _p_value(_defined(gaps))
    return Difference(interval, p, p)


def _p_value(gaps: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    count = len(gaps)
    if count < 2:
        return math.nan
    spread, mean = gaps.std(ddof=1), gaps.mean()
    # Equal differences have a deviation of rounding noise, which is no noise of seeds.
    if spread <= 1e-12 * np.abs(gaps).max():
        return 1.0 if mean == 0 else math.nan
    from scipy.special import stdtr

    return float(2 * stdtr(count - 1, -abs(mean) / (spread / math.sqrt(count))))


def holm(p_values: Numbers) -> list[float]:
    r"""Probabilities corrected for the number of tests by Holm's step-down method.

    With the p-values in ascending order, :math:`\tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1)\, p_{(j)})`. The
    chance of any false rejection at level alpha is at most alpha, whatever the tests' dependence.

    Args:
        p_values: One a test; None and NaN are no tests, so they do not count and stay NaN.

    Returns:
        Corrected values in the given order.

    Raises:
        DataError: if a value is not between 0 and 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Reference:
        Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    found = [math.nan if p is None else float(p) for p in p_values]
    for p in found:
        if not math.isnan(p) and not 0 <= p <= 1:
            raise DataError(f"A p-value is a probability from 0 to 1; found {p}.")
    order = sorted((i for i, p in enumerate(found) if not math.isnan(p)), key=found.__getitem__)
    adjusted, highest = list(found), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * found[index]))
        adjusted[index] = highest
    return adjusted


def corrected(differences: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """The same differences with ``adjusted`` set by Holm's method over all of them.

    Example:
        >>> family = {"a": paired_difference([2, 3, 4], [1, 2.2, 2.9]), "b": paired_difference([1, 2, 3], [2, 1, 3])}
        >>> corrected(family)["b"].adjusted == family["b"].p
        True
    """
    adjusted = holm([difference.p for difference in differences.values()])
    return {
        name: Difference(difference.interval, difference.p, p)
        for (name, difference), p in zip(differences.items(), adjusted, strict=True)
    }
