"""The arithmetic of number columns: faults, scaling and bin edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.data.schema import NumberColumn
from polytask.errors import RowError

Floats = NDArray[np.float64]

QUANTILES = 257
"""How many training quantiles a quantile scaling keeps."""

_SMALLEST = 1e-7
"""Ranks are kept this far from 0 and 1, so that the ends of the distribution stay finite (at 5.2)."""


def find_faults(name: str, numbers: pl.Series, impute_infinite: bool, forbid_missing: bool) -> tuple[Floats, Any]:
    """The values of a parsed column, and which of them are missing (bool).

    Raises:
        RowError: for infinite values unless they are imputed, and for missing ones if those are forbidden.
    """
    values = np.array(numbers.to_numpy(), dtype=np.float64)
    infinite = np.isinf(values)
    if infinite.any() and not impute_infinite:
        raise RowError(
            f"Column '{name}' has {int(infinite.sum()):,} infinite values, the first in record "
            f"{int(infinite.argmax()) + 1}. Correct them, or set impute_infinite: true to treat them as missing.",
            dict.fromkeys(np.nonzero(infinite)[0].tolist(), f"column '{name}': the value is infinite"),
        )
    gone = np.isnan(values) | infinite
    if forbid_missing and gone.any():
        raise RowError(
            f"Column '{name}' has {int(gone.sum()):,} missing values, the first in record {int(gone.argmax()) + 1}. "
            "Fill them, or set missing: indicate (or mean) for it.",
            dict.fromkeys(np.nonzero(gone)[0].tolist(), f"column '{name}': there is no value"),
        )
    return values, gone


def fill(values: Floats, gone: Any, mean: float) -> Floats:
    """The values with the missing ones replaced by the training mean."""
    values[gone] = mean
    return values


def fit_number(name: str, known: Floats, *, bins: int, scale: str, **facts: Any) -> NumberColumn:
    """What training rows fix about a number column.

    Args:
        name: The column's name.
        known: Its training values without missing ones, ``[rows]``.
        bins: Quantile bins; columns with few distinct values get fewer.
        scale: ``"standard"``, ``"quantile"`` or ``"none"``.
        **facts: Further fields of NumberColumn.

    Example:
        >>> fit_number("x", np.array([1.0, 3.0]), bins=2, scale="standard", has_missing=False).edges
        (-1.0, 0.0, 1.0)
    """
    # Half the largest magnitude first: the square of a value near 1e300 is infinite.
    size = float(np.abs(known).max()) or 1.0
    mean = float((known / size).mean()) * size
    std = float((known / size).std()) * size
    # A deviation that is only rounding noise would blow that noise up to the size of a signal.
    constant = known.min() == known.max() or std <= np.finfo(np.float64).eps * size
    quantiles = tuple(np.quantile(known, np.linspace(0, 1, QUANTILES)).tolist()) if scale == "quantile" else ()
    bare = NumberColumn(name, mean, 1.0 if constant else std, (), scale=scale, quantiles=quantiles, **facts)
    cuts = np.quantile(scale_number(bare, known).astype(np.float64), np.linspace(0, 1, bins + 1))
    edges = np.unique(cuts)
    if len(edges) == 1:
        # A bin needs two ends even where all values are the same.
        edges = edges[0] + np.array([-0.5, 0.5])
    return NumberColumn(name, bare.mean, bare.std, tuple(edges.tolist()), scale=scale, quantiles=quantiles, **facts)


def scale_number(column: NumberColumn, values: Floats) -> NDArray[np.float32]:
    r"""Values on the scale that the model sees.

    ``standard`` gives :math:`(x - \mu) / \sigma`, ``quantile`` gives :math:`\Phi^{-1}(F(x))` with the
    training distribution :math:`F`, ``none`` the value itself.

    Example:
        >>> scale_number(NumberColumn("x", 2.0, 4.0, (), False), np.array([2.0, 6.0]))
        array([0., 1.], dtype=float32)
    """
    if column.scale == "standard":
        values = (values - column.mean) / column.std
    elif column.scale == "quantile":
        from scipy.special import ndtri

        knots = np.array(column.quantiles)
        ranks = np.linspace(0, 1, len(knots))
        # A value that repeats spans several knots. From below it gets the last of their ranks, from above the
        # first; their mean is the middle of its span.
        rank = 0.5 * (np.interp(values, knots, ranks) + 1 - np.interp(-values, -knots[::-1], ranks))
        values = ndtri(np.clip(rank, _SMALLEST, 1 - _SMALLEST))
    return values.astype(np.float32)
