"""Errors that say what is wrong, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class PolytaskError(Exception):
    """Base of every error that polytask raises on purpose."""


class RecipeError(PolytaskError, ValueError):
    """A recipe, or an option of a named thing, that cannot be used as written."""


class DataError(PolytaskError, ValueError):
    """Data that cannot be used: a missing column, a value that does not parse, a label out of range."""


class RowError(DataError):
    """Single rows that cannot be used, while all others can.

    Args:
        message: About the first of them.
        rows: For each of them, counted from 0, what is wrong with it.
    """

    def __init__(self, message: str, rows: Mapping[int, str]):
        super().__init__(message)
        self.rows = dict(rows)


class ShapeError(PolytaskError, ValueError):
    """Tensors, features or heads whose shapes do not fit together."""


class BalancerError(PolytaskError, ValueError):
    """A balancing method asked for something it cannot do, or given input it cannot use."""


class TrainingError(PolytaskError, RuntimeError):
    """A training run that cannot go on, such as one whose loss is no longer finite."""


class MissingExtraError(PolytaskError, ImportError):
    """An optional dependency is needed; the message names the extra that brings it."""


def suggestion(name: str, choices: Iterable[str]) -> str:
    """The sentence that points at the nearest known name, or an empty string.

    Example:
        >>> suggestion("segm", ["depth", "seg"])
        " Did you mean 'seg'?"
        >>> suggestion("zzz", ["depth", "seg"])
        ''
    """
    near = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Names as a person lists them, cut after ``limit``.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b, c'
        >>> listed("abcd", limit=2)
        'a, b, ... (4 in all)'
    """
    known = [str(name) for name in names]
    if len(known) <= limit:
        return ", ".join(known)
    return ", ".join(known[:limit]) + f", ... ({len(known)} in all)"


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """The text for a name that is not among the known ones.

    Example:
        >>> unknown("encoder", "mpl", ["mlp", "tabular"])
        "Unknown encoder 'mpl'. Known: mlp, tabular. Did you mean 'mlp'?"
    """
    known = [str(choice) for choice in choices]
    return f"Unknown {what} '{name}'. Known: {listed(known)}.{suggestion(name, known)}"
