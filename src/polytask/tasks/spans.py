"""Entities in rows of tags: where they start and end, which tags may follow one another, repairing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

SCHEMES = ("bio", "bioes", "none")
OUTSIDE = "O"


@dataclass(frozen=True)
class Spans:
    """Entities: row, first place, place behind the last one, and number of their type, each ``[entities]``."""

    row: Numbers
    start: Numbers
    stop: Numbers
    kind: Numbers

    def keys(self) -> NDArray[np.void]:
        """One comparable value an entity: two are equal if row, bounds and type are."""
        table = np.ascontiguousarray(np.stack([self.row, self.start, self.stop, self.kind], 1))
        whole: NDArray[np.void] = table.view([(name, table.dtype) for name in ("row", "start", "stop", "kind")])[:, 0]
        return whole


@dataclass(frozen=True)
class TagSet:
    """Names of tags, taken apart.

    A tag is ``O`` or ``PREFIX-TYPE``. In ``bio`` B begins an entity and I goes on with it; ``bioes`` also has E
    for the last word of an entity and S for one of a single word.

    Args:
        names: Of the tags, in order.
        scheme: ``"bio"``, ``"bioes"`` or ``"none"`` (tags such as parts of speech, which form no entities).

    Example:
        >>> tags = TagSet(("B-LOC", "I-LOC", "O"), "bio")
        >>> tags.types
        ('LOC',)
        >>> tags.spans(np.array([[0, 1, 2, 1]])).start.tolist(), tags.spans(np.array([[0, 1, 2, 1]])).stop.tolist()
        ([0, 3], [2, 4])
    """

    names: tuple[str, ...]
    scheme: str

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Types of entities, sorted."""
        return tuple(sorted({_type(name) for name in self.names if _prefix(name) != OUTSIDE}))

    @cached_property
    def _prefixes(self) -> NDArray[np.str_]:
        # The last one stands for padding, which is outside of all entities.
        return np.array([*(_prefix(name) for name in self.names), OUTSIDE])

    @cached_property
    def _kinds(self) -> Numbers:
        at = {name: number for number, name in enumerate(self.types)}
        kinds = [at[_type(name)] if _prefix(name) != OUTSIDE else -1 for name in self.names]
        return np.array([*kinds, -1], dtype=np.int64)

    def bad_names(self) -> list[str]:
        """Tags that the scheme does not have."""
        allowed = {"bio": "BI", "bioes": "BIES"}.get(self.scheme)
        if allowed is None:
            return []
        return [name for name in self.names if name != OUTSIDE and not (name[1:2] == "-" and name[0] in allowed)]

    @cached_property
    def follows(self) -> Flags:
        """Whether tag j may follow tag i, ``[k + 1, k + 1]``; the last row and column stand for the row's ends."""
        first, second = self._prefixes[:, None], self._prefixes[None, :]
        same = self._kinds[:, None] == self._kinds[None, :]
        going_on = np.isin(second, ["I", "E"])
        if self.scheme == "bio":
            allowed: Flags = ~going_on | (np.isin(first, ["B", "I"]) & same)
        elif self.scheme == "bioes":
            open_ = np.isin(first, ["B", "I"])
            allowed = np.where(open_, going_on & same, ~going_on)
        else:
            allowed = np.ones((len(first), len(first)), dtype=bool)
        return allowed

    def breaks(self, tags: Numbers) -> Flags:
        """Whether a place breaks the scheme together with what stands before it, ``[rows, width + 1]``.

        Args:
            tags: Numbers of tags ``[rows, width]``, -1 where there is none.
        """
        padded = _framed(tags)
        found: Flags = ~self.follows[padded[:, :-1], padded[:, 1:]]
        # A place without a tag says nothing about its neighbours, unless the row ends there.
        gap = np.cumsum((padded >= 0)[:, ::-1], 1)[:, ::-1] > 0
        unknown = (padded < 0) & gap
        unknown[:, 0] = False
        return found & ~(unknown[:, :-1] | unknown[:, 1:])

    def spans(self, tags: Numbers, strict: bool = False) -> Spans:
        """The entities of rows of tags.

        The default way is that of the CoNLL evaluation script: an entity also starts at an I or E that follows no
        entity of its type. The strict way counts what the scheme allows alone.

        Args:
            tags: Numbers of tags ``[rows, width]``, -1 where there is none.
            strict: Which way.

        Reference:
            Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 shared task (2003), section 2.3.
        """
        padded = _framed(tags)
        prefix, kind = self._prefixes[padded], self._kinds[padded]
        before, now = prefix[:, :-1], prefix[:, 1:]
        same = kind[:, :-1] == kind[:, 1:]
        # Whether a place goes on with the entity of the place before it.
        on = np.isin(now, ["I", "E"]) & np.isin(before, ["B", "I"]) & same
        row, start = np.nonzero(~on[:, :-1] & (now[:, :-1] != OUTSIDE))
        ends = ~on[:, 1:] & (now[:, :-1] != OUTSIDE)
        _, last = np.nonzero(ends)
        kinds = kind[row, start + 1]
        found = Spans(row, start, last + 1, kinds)
        return self._whole(found, prefix) if strict else found

    def _whole(self, found: Spans, prefix: NDArray[np.str_]) -> Spans:
        """Those that begin and end as the scheme wants it."""
        first, last = prefix[found.row, found.start + 1], prefix[found.row, found.stop]
        if self.scheme == "bioes":
            kept = np.where(found.stop - found.start == 1, first == "S", (first == "B") & (last == "E"))
        else:
            kept = first == "B"
        return Spans(found.row[kept], found.start[kept], found.stop[kept], found.kind[kept])


def repaired(tags: Sequence[str | None], scheme: str) -> list[str | None]:
    """A row's tags written as the scheme wants them, with the entities that the default way of counting finds.

    Example:
        >>> repaired(["O", "I-LOC", "I-LOC", "I-PER"], "bio")
        ['O', 'B-LOC', 'I-LOC', 'B-PER']
        >>> repaired(["I-LOC", "I-LOC", "B-PER"], "bioes")
        ['B-LOC', 'E-LOC', 'S-PER']
    """
    names = tuple(sorted({tag for tag in tags if tag is not None}))
    at = {name: number for number, name in enumerate(names)}
    numbers = np.array([[-1 if tag is None else at[tag] for tag in tags]], dtype=np.int64)
    known = TagSet(names, scheme)
    found = known.spans(numbers)
    written: list[str | None] = [None if tag is None else OUTSIDE for tag in tags]
    for start, stop, kind in zip(found.start, found.stop, found.kind, strict=True):
        prefixes = ["B", *["I"] * (stop - start - 1)]
        if scheme == "bioes":
            prefixes = ["S"] if stop - start == 1 else [*prefixes[:-1], "E"]
        written[start:stop] = [f"{prefix}-{known.types[kind]}" for prefix in prefixes]
    return written


def _framed(tags: Numbers) -> Numbers:
    """A place without a tag before and behind every row."""
    return np.pad(tags, ((0, 0), (1, 1)), constant_values=-1)


def _prefix(name: str) -> str:
    return name[:1]


def _type(name: str) -> str:
    # A bare prefix is an entity without a type, which the usual evaluation writes as "_".
    return name[1:].split("-", maxsplit=1)[-1] or "_"
