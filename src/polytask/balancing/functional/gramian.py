"""Conditioning of Gramians, and what a solver hands back.

Every solver here works on cosines: dividing row and column i by the norm of gradient i is exact for the
problems below once norms are put back in the right place, and it makes them independent of scale.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Status: TypeAlias = Literal["solved", "inexact", "stationary", "zero_row", "infeasible", "cancelled"]

EPS = float(np.finfo(np.float64).eps)
TINY = 1e-120
"""A squared norm this small beside the largest one is a zero row: only underflow leaves such a value."""


class Solved(NamedTuple):
    """Weights and how the solver ended.

    Attributes:
        weights: Weight of each gradient, shape ``[m]``.
        status: ``"solved"``; ``"inexact"`` if optimality could not be verified to 1e-9;
            ``"stationary"``, ``"zero_row"``, ``"infeasible"`` or ``"cancelled"`` if the method has no
            solution there and its stated fallback was taken.
        residual: How far the optimality conditions are from holding, relative to the solver's own
            scaling. Zero where the weights need no solver.
    """

    weights: Array
    status: Status = "solved"
    residual: float = 0.0


def all_finite(values: Array) -> bool:
    """Whether no entry is NaN or infinite: one call where the squares do not overflow.

    Example:
        >>> all_finite(np.array([1.0, 2.0])), all_finite(np.array([1.0, np.nan]))
        (True, False)
    """
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def ended(residual: float) -> Status:
    """``"solved"`` for a residual of at most 1e-9, else ``"inexact"``."""
    return "solved" if residual <= 1e-9 else "inexact"


class Conditioned(NamedTuple):
    """A Gramian split into cosines and norms, without its zero rows.

    Attributes:
        cosines: ``[k, k]``, with a diagonal of exactly one.
        norms: Norms of the kept rows divided by ``scale``, shape ``[k]``; at most one.
        scale: The largest norm; zero if every row is zero.
        kept: Positions of the rows that are not zero, shape ``[k]``.
        total: m, zero rows included.
    """

    cosines: Array
    norms: Array
    scale: float
    kept: NDArray[np.intp]
    total: int

    def gramian(self) -> Array:
        """The Gramian ``[m, m]`` again, in units of ``scale`` squared; rows that were left out are zero."""
        kept: Array = self.cosines * self.norms * self.norms[:, None]
        if len(self.kept) == self.total:
            return kept
        full = np.zeros((self.total, self.total))
        full[self.kept[:, None], self.kept] = kept
        return full

    def spread(self, values: Array, fill: float = 0.0) -> Array:
        """Put values of the kept rows ``[k]`` back in their places ``[m]``."""
        if len(self.kept) == self.total:
            return values
        full = np.full(self.total, fill)
        full[self.kept] = values
        return full


def condition(gramian: Any) -> Conditioned:
    """Split a Gramian into cosines and norms.

    Args:
        gramian: Inner products ``[m, m]``; anything that NumPy can read.

    Returns:
        Cosines and relative norms of the rows that are not zero.

    Example:
        >>> parts = condition([[4.0, -2.0, 0.0], [-2.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
        >>> parts.cosines.tolist(), parts.scale, parts.kept.tolist()
        ([[1.0, -0.5], [-0.5, 1.0]], 2.0, [0, 1])
    """
    raw = np.asarray(gramian, dtype=np.float64)
    count = len(raw)
    squares = raw.diagonal()
    largest = float(squares.max())
    if not largest > 0.0:
        return Conditioned(np.zeros((0, 0)), np.zeros(0), 0.0, np.zeros(0, dtype=np.intp), count)
    kept = np.flatnonzero(squares > TINY * largest)
    if len(kept) < count:
        raw = raw[kept[:, None], kept]
    norms = np.sqrt(raw.diagonal() / largest)
    cosines = (raw / largest) / norms / norms[:, None]
    cosines = 0.5 * (cosines + cosines.T)
    np.clip(cosines, -1.0, 1.0, out=cosines)
    np.fill_diagonal(cosines, 1.0)
    return Conditioned(cosines, norms, float(np.sqrt(largest)), kept, count)


def mean_products(parts: Conditioned) -> tuple[Array, float]:
    """Products of the unit rows with the mean row, and the mean row's norm, in units of ``parts.scale``.

    What is below the round-off of the sums is set to zero: rows that cancel leave a mean of zero, not noise.

    Args:
        parts: A conditioned Gramian with k rows that are not zero.

    Returns:
        Products ``[k]`` and the norm.

    Example:
        >>> products, norm = mean_products(condition([[1.0, -0.5], [-0.5, 1.0]]))
        >>> products.tolist(), norm
        ([0.25, 0.25], 0.5)
    """
    shares = parts.norms / parts.total
    products = parts.cosines @ shares
    terms = np.abs(parts.cosines) @ shares
    products = np.where(np.abs(products) > 16 * EPS * terms, products, 0.0)
    square = float(shares @ products)
    return products, math.sqrt(square) if square > 64 * EPS * float(shares @ terms) else 0.0


def shifted(gramian: Array, amount: float) -> Array:
    """Gramian of the rows ``g_i + amount * g_0``, where ``g_0`` is the mean of the rows.

    Args:
        gramian: ``[m, m]``.
        amount: How much of the mean row to add.

    Returns:
        Gramian ``[m, m]``.

    Example:
        >>> shifted(np.array([[1.0, 0.0], [0.0, 1.0]]), 1.0).tolist()
        [[2.5, 1.5], [1.5, 2.5]]
    """
    onto_mean = gramian.mean(axis=1)
    cross = amount * onto_mean
    moved: Array = gramian + cross + cross[:, None] + amount * amount * float(onto_mean.mean())
    return moved
