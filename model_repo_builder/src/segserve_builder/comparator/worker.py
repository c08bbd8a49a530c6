"""The process that compares answers: `python3 -m segserve_builder.comparator.worker`, pairs at stdin, values at stdout.

Answers are bytes of servers, which run whatever their users gave them. Here they can harm no count: memory is limited,
and the comparator ends a worker that takes too long.
"""

from __future__ import annotations

import logging
from typing import Final

from segserve_builder.comparator.answers import ComparedAnswers, ExchangedPair, compare_answers
from segserve_builder.copies.bodies import WireBody
from segserve_builder.copies.frames import WorkerFrame, answer_frames

MEMORY_BYTES: Final = 768 * 2**20
"""Of data, as RLIMIT_DATA counts it; a comparison that needs more is none."""

_log = logging.getLogger(__name__)


def main() -> None:
    """Compare pairs until stdin ends."""
    answer_frames(_compared, memory_bytes=MEMORY_BYTES)


def _compared(frame: WorkerFrame) -> WorkerFrame:
    lengths = frame.header["header_lengths"]
    bodies = (WireBody(blob, length) for blob, length in zip(frame.blobs, lengths, strict=True))
    pair = ExchangedPair(frame.header["protocol"], frame.header["asked_at_s"], *bodies)
    try:
        found = compare_answers(pair, keep_below=frame.header["keep_below"])
    except Exception as error:  # of whatever the bytes make of the readers; MemoryError above all
        _log.warning("a pair was not compared: %s", type(error).__name__)
        found = ComparedAnswers(None)
    return WorkerFrame({"agreement": found.agreement, "shift": found.shift}, [found.sheet_pair])


if __name__ == "__main__":
    main()
