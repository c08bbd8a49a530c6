"""COCO's run-length encoding of masks, from strangers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segserve_common.errors import ProtocolError

_ZERO: Final = np.uint8(ord("0"))
_SYMBOLS: Final = 64
_CONTINUED: Final = 32
_MAX_DIGITS: Final = 7


@dataclass(frozen=True, slots=True, eq=False)
class RunLengths:
    """The runs of masks of one size, int64, in column order, mask after mask.

    Each run outside of a mask is followed by a run inside, the last one of which may be 0. The runs of mask i begin
    at `starts[i]`.
    """

    outside: NDArray[np.int64]
    inside: NDArray[np.int64]
    starts: NDArray[np.int64]
    height: int
    width: int

    @classmethod
    def read(cls, counts: Sequence[bytes], height: int, width: int) -> RunLengths:
        """Read the COCO RLE counts of each mask.

        Raises `ProtocolError` if they do not describe `height` x `width` masks. pycocotools does not check: it reads
        and writes beyond its memory for counts that end within a number, and returns uninitialised memory for too few
        pixels.
        """
        if not counts:
            nothing = np.zeros(0, np.int64)
            return cls(nothing, nothing, nothing, height, width)
        symbols = np.frombuffer(b"".join(counts), np.uint8) - _ZERO
        sizes = np.array([len(each) for each in counts])
        stops = np.cumsum(sizes)
        if sizes.min() == 0 or symbols.max() >= _SYMBOLS:
            wrong = next(each for each in counts if not each or min(each) < 48 or max(each) > 111)
            raise ProtocolError(f"not COCO RLE counts: {wrong[:40]!r}")
        # The last of a number's digits of 5 bits is its highest, and has the sign.
        numbers = ((symbols[symbols < _CONTINUED] ^ 16).view(np.int8) - np.int8(16)).astype(np.int64)
        # Most numbers have no other digit, so that looking only at the rest takes little time.
        lower = np.flatnonzero(symbols >= _CONTINUED)
        order = np.arange(lower.size)
        owners = lower - order
        places = order - np.searchsorted(owners, owners)
        most = int(places.max(initial=-1)) + 1
        is_cut = symbols[stops - 1] >= _CONTINUED
        if is_cut.any() or most >= _MAX_DIGITS:
            byte = stops[is_cut.argmax()] - 1 if is_cut.any() else lower[places.argmax()]
            wrong = counts[int(np.searchsorted(stops, byte, "right"))]
            raise ProtocolError(f"COCO RLE counts end within a number: {wrong[-40:]!r}")
        for place in reversed(range(most)):
            at = places == place
            numbers[owners[at]] = numbers[owners[at]] << 5 | symbols[lower[at]] & 31
        number_stops = stops - np.searchsorted(lower, stops)
        has_odd = np.diff(number_stops, prepend=0) % 2 == 1
        if has_odd.any():
            numbers = np.insert(numbers, number_stops[has_odd], 0)
        pair_stops = (number_stops + np.cumsum(has_odd)) // 2
        starts = np.concatenate(([0], pair_stops[:-1]))
        outside, inside = numbers[0::2].copy(), numbers[1::2].copy()
        # From the fourth on, each number is the difference from the previous run of the same value.
        first = outside[starts]
        outside[starts] = 0
        outside, inside = _sums_within(outside, starts), _sums_within(inside, starts)
        outside[starts] = first
        inside[pair_stops[has_odd] - 1] = 0
        runs = cls(outside, inside, starts, height, width)
        runs._check()
        return runs

    def areas(self) -> NDArray[np.int64]:
        """Return the area of each mask in pixels, int64 (N,)."""
        return np.add.reduceat(self.inside, self.starts) if self.starts.size else self.starts

    def boxes(self) -> NDArray[np.int64]:
        """Return the bounding box of each mask as x1, y1, x2, y2, int64 (N, 4).

        x2 and y2 are exclusive; the box of an empty mask is 0, 0, 0, 0.
        """
        boxes = np.zeros((self.starts.size, 4), np.int64)
        filled = np.flatnonzero(self.inside)
        if not filled.size:
            return boxes
        # As if the masks stood side by side in one image.
        stops = np.cumsum(self.outside + self.inside)[filled]
        begins, ends = stops - self.inside[filled], stops - 1
        left, right = begins // self.height, ends // self.height
        is_in_one = left == right
        top = np.where(is_in_one, begins - left * self.height, 0)
        bottom = np.where(is_in_one, ends - right * self.height, self.height - 1)
        edges = np.searchsorted(filled, np.append(self.starts, self.inside.size))
        found = np.flatnonzero(np.diff(edges))
        firsts, lasts = edges[found], edges[found + 1] - 1
        boxes[found, 0] = left[firsts] - found * self.width
        boxes[found, 1] = np.minimum.reduceat(top, firsts)
        boxes[found, 2] = right[lasts] - found * self.width + 1
        boxes[found, 3] = np.maximum.reduceat(bottom, firsts) + 1
        return boxes

    def _check(self) -> None:
        pixels = self.height * self.width
        runs = self.outside + self.inside
        covered = np.add.reduceat(runs, self.starts)
        shortest = min(self.outside.min(), self.inside.min())
        longest = max(self.outside.max(), self.inside.max())
        if shortest >= 0 and longest <= pixels and (covered == pixels).all():
            return
        is_wrong = (np.minimum(self.outside, self.inside) < 0) | (np.maximum(self.outside, self.inside) > pixels)
        wrong = np.logical_or.reduceat(is_wrong, self.starts) | (covered != pixels)
        raise ProtocolError(
            f"COCO RLE runs cover {int(covered[wrong.argmax()])} pixels, but the image is {self.height} x {self.width}"
        )


def run_lengths(counts: bytes, height: int, width: int) -> NDArray[np.int64]:
    """Return the runs of one mask's COCO RLE counts, int64, in column order, alternating between outside and inside.

    An empty run at the end is left out. Raises `ProtocolError` as `RunLengths.read` does.
    """
    both = RunLengths.read([counts], height, width)
    runs = np.stack([both.outside, both.inside], 1).ravel()
    return runs if runs[-1] else runs[:-1]


def _sums_within(numbers: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the running sums of each mask's numbers, whose first ones are overwritten."""
    # Each mask begins with what takes the running sum of all back to its own.
    numbers[starts[1:]] -= np.add.reduceat(numbers, starts)[:-1]
    return np.cumsum(numbers)
