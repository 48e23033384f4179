"""Samplers: which of several data sets a step draws from.

A sampler is a value: ``probabilities(rows, progress, losses)`` gives the chance of every source in the
next step. ``together`` and ``round_robin`` leave nothing to chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polytask.errors import RecipeError

Chances = Callable[[NDArray[np.float64], float, NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Sampler:
    """How sources take turns.

    Args:
        chances: ``(rows [s], progress in 0..1, losses [s]) -> probabilities [s]``, or None where no draw
            is needed. ``losses`` are each source's latest mean loss over its first (NaN before it is known).
        every: Whether every step takes a batch of every source.
        in_turn: Whether the sources come one after another.
    """

    chances: Chances | None = None
    every: bool = False
    in_turn: bool = False

    def probabilities(
        self, rows: Sequence[int], progress: float = 0.0, losses: Sequence[float] | None = None
    ) -> NDArray[np.float64]:
        """The chance of every source in the next step; they add up to 1.

        Example:
            >>> proportional().probabilities([100, 300]).tolist()
            [0.25, 0.75]
        """
        known = np.full(len(rows), np.nan) if losses is None else np.asarray(losses, dtype=float)
        if self.chances is None:
            return np.full(len(rows), 1.0 / len(rows))
        weight = self.chances(np.asarray(rows, dtype=float), progress, known)
        shares: NDArray[np.float64] = weight / weight.sum()
        return shares


def _power(exponent: float) -> Chances:
    return lambda rows, progress, losses: (rows / rows.max()) ** exponent


def proportional() -> Sampler:
    """Each task as often as it has rows.

    Example:
        >>> proportional().probabilities([1, 3]).tolist()
        [0.25, 0.75]
    """
    return Sampler(_power(1.0))


def uniform() -> Sampler:
    """Every task equally often.

    Example:
        >>> uniform().probabilities([1, 3]).tolist()
        [0.5, 0.5]
    """
    return Sampler(_power(0.0))


def sqrt() -> Sampler:
    """In proportion to the square root of the rows.

    Example:
        >>> sqrt().probabilities([1, 9]).tolist()
        [0.25, 0.75]
    """
    return Sampler(_power(0.5))


def temperature(T: float = 5.0) -> Sampler:
    """In proportion to rows ** (1 / T).

    Args:
        T: 1 is proportional, infinity is uniform.

    Raises:
        RecipeError: if T is not at least 1.

    Example:
        >>> temperature(T=2).probabilities([1, 9]).tolist()
        [0.25, 0.75]

    Reference:
        Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the Wild", section 3.2.
    """
    if not T >= 1:
        raise RecipeError(f"Sampler 'temperature': T is {T}; it has to be at least 1 (1 is proportional).")
    return Sampler(_power(1.0 / T))


def annealed(start: float = 1.0, end: float = 0.2) -> Sampler:
    """From proportional to uniform over the run.

    The exponent of the rows goes linearly from ``start`` to ``end`` while the run goes from 0 to 1.

    Example:
        >>> annealed().probabilities([1, 3], progress=0.0).tolist()
        [0.25, 0.75]

    Reference:
        Stickland and Murray 2019, "BERT and PALs", section 4.1: exponent 1 - 0.8 (e - 1) / (E - 1).
    """
    return Sampler(lambda rows, progress, losses: (rows / rows.max()) ** (start + (end - start) * progress))


def loss_driven(strength: float = 1.0, floor: float = 0.1) -> Sampler:
    """More often where the loss has fallen least.

    The chance goes with (latest loss / first loss) ** strength, mixed with ``floor`` of uniform so that no
    task starves. A source without a known loss counts as one that has not fallen.

    Example:
        >>> loss_driven(floor=0.0).probabilities([5, 5], losses=[0.5, 1.5]).tolist()
        [0.25, 0.75]
    """
    if not 0 <= floor <= 1:
        raise RecipeError(f"Sampler 'loss_driven': floor is {floor}; it has to lie between 0 and 1.")

    def chances(rows: NDArray[np.float64], progress: float, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        ratio = np.nan_to_num(losses, nan=1.0, posinf=1.0).clip(min=1e-12) ** strength
        mixed: NDArray[np.float64] = (1 - floor) * ratio / ratio.sum() + floor / len(rows)
        return mixed

    return Sampler(chances)


def round_robin() -> Sampler:
    """The tasks in turn, one a step.

    Example:
        >>> round_robin().in_turn
        True
    """
    return Sampler(in_turn=True)


def together() -> Sampler:
    """A batch of every task in every step.

    Example:
        >>> together().every
        True
    """
    return Sampler(every=True)
