"""COCO's run-length encoding of masks, from strangers."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from segserve_common.errors import ProtocolError

_FIRST: Final = ord("0")
_LAST: Final = ord("o")


def run_lengths(counts: bytes, height: int, width: int) -> NDArray[np.int64]:
    """Return the runs of COCO RLE counts, int64, in column order, alternating between outside and inside.

    Raises `ProtocolError` if they do not describe a `height` x `width` mask. pycocotools does not check: it reads and
    writes beyond its memory for counts that end within a number, and returns uninitialised memory for too few pixels.
    """
    symbols = np.frombuffer(counts, np.uint8).astype(np.int64)
    if symbols.size == 0 or symbols.min() < _FIRST or symbols.max() > _LAST:
        raise ProtocolError(f"not COCO RLE counts: {counts[:40]!r}")
    symbols -= _FIRST
    is_last = (symbols & 0x20) == 0
    ends = np.flatnonzero(is_last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if not is_last[-1] or (ends - starts).max() > 6:
        raise ProtocolError(f"COCO RLE counts end within a number: {counts[-40:]!r}")
    run = np.repeat(np.arange(ends.size), ends - starts + 1)
    place = np.arange(symbols.size) - starts[run]
    lengths = np.add.reduceat((symbols & 0x1F) << (5 * place), starts)
    negative = (symbols[ends] & 0x10) != 0
    lengths[negative] -= np.int64(1) << (5 * (place[ends[negative]] + 1))
    # From the fourth on, each number is the difference from the previous run of the same value.
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    if lengths.min() < 0 or lengths.max() > height * width or int(lengths.sum()) != height * width:
        raise ProtocolError(f"COCO RLE runs cover {int(lengths.sum())} pixels, but the image is {height} x {width}")
    return lengths
