"""Matching: which pieces in neighbouring tiles show the same object. Pure, and independent of the order of tiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from segserve.tiled.grid import Window
from segserve.tiled.tile_masks import Piece

Id: TypeAlias = tuple[int, int]
SAME: Final = 0.5


@dataclass(frozen=True, slots=True)
class Match:
    """Two pieces that show the same pixels; `strength` is 0 to 1."""

    strength: float
    first: Piece
    second: Piece

    @property
    def key(self) -> tuple[object, ...]:
        """The sort key: strongest first, independent of which piece was named first."""
        return -self.strength, *sorted((self.first.key, self.second.key))


def id_of(piece: Piece) -> Id:
    """Return the unique id of a piece."""
    return piece.tile, piece.number


def strength(first: Piece, second: Piece, band: Window) -> float:
    """Return how much two pieces of one class agree in the `band` that both tiles show, 0 to 1.

    This is the IoU of their parts in the band. A piece cut by its tile is a fragment; for fragments, the intersection
    over the smaller piece counts too, so a fragment inside an object belongs to that object.
    """
    shared = first.patch.window.intersection(second.patch.window)
    if first.class_id != second.class_id or shared.is_empty:
        return 0.0
    both = int(np.count_nonzero(first.patch.within(shared) & second.patch.within(shared)))
    if both == 0:
        return 0.0
    iou = both / (first.patch.area_within(band) + second.patch.area_within(band) - both)
    if first.is_whole and second.is_whole:
        return iou
    return max(iou, both / min(first.area, second.area))


def matches(first: Sequence[Piece], second: Sequence[Piece], band: Window, at_least: float = SAME) -> list[Match]:
    """Return the pairs of pieces of two tiles that agree by at least `at_least`."""
    if not first or not second:
        return []
    boxes, others = (np.array([_bounds(piece) for piece in pieces]) for pieces in (first, second))
    starts = np.maximum(boxes[:, None, :2], others[None, :, :2])
    ends = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    found = []
    for i, j in np.argwhere((starts < ends).all(axis=2)).tolist():
        value = strength(first[i], second[j], band)
        if value >= at_least:
            found.append(Match(value, first[i], second[j]))
    return found


def _bounds(piece: Piece) -> tuple[int, int, int, int]:
    window = piece.patch.window
    return window.top, window.left, window.bottom, window.right


@dataclass
class Groups:
    """Groups of pieces that are one object. Two whole pieces share a group only if they match each other.

    Otherwise a fragment that overlaps two touching objects would merge them, and one would be lost.
    """

    _members: dict[Id, list[Piece]] = field(default_factory=dict)
    _group_of: dict[Id, Id] = field(default_factory=dict)
    _matched: dict[Id, set[Id]] = field(default_factory=dict)

    def add(self, pieces: Iterable[Piece]) -> None:
        """Add each piece as a group of its own."""
        for piece in pieces:
            self._members[id_of(piece)] = [piece]
            self._group_of[id_of(piece)] = id_of(piece)

    def join(self, found: Iterable[Match]) -> None:
        """Join the groups of matching pieces, strongest match first."""
        ordered = sorted(found, key=lambda match: match.key)
        for match in ordered:
            self._matched.setdefault(id_of(match.first), set()).add(id_of(match.second))
            self._matched.setdefault(id_of(match.second), set()).add(id_of(match.first))
        # Only once all matches are known: whether two groups may join depends on weaker matches too.
        for match in ordered:
            one, other = (self._group_of[id_of(piece)] for piece in (match.first, match.second))
            if one != other and self._may_join(one, other):
                self._unite(min(one, other), max(one, other))

    def groups(self) -> list[list[Piece]]:
        """Return every group, with its pieces in the order of their keys."""
        return [sorted(pieces, key=lambda piece: piece.key) for _, pieces in sorted(self._members.items())]

    def take(self, group: Sequence[Piece]) -> None:
        """Remove a group that no further piece can join."""
        ids = {id_of(piece) for piece in group}
        del self._members[self._group_of[next(iter(ids))]]
        for known in ids:
            del self._group_of[known]
            for other in self._matched.pop(known, ()):
                self._matched.get(other, set()).discard(known)

    def _may_join(self, one: Id, other: Id) -> bool:
        wholes = [[id_of(piece) for piece in self._members[group] if piece.is_whole] for group in (one, other)]
        return all(b in self._matched.get(a, ()) for a in wholes[0] for b in wholes[1])

    def _unite(self, kept: Id, gone: Id) -> None:
        for piece in self._members[gone]:
            self._group_of[id_of(piece)] = kept
        self._members[kept] += self._members.pop(gone)
