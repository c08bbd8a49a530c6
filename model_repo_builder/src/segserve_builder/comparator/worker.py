"""The process that compares answers: `python3 -m segserve_builder.comparator.worker`, pairs at stdin, values at stdout.

Answers are bytes of servers, which run whatever their users gave them. Here they can harm no count: memory is limited,
and the comparator ends a worker that takes too long.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from typing import Final

from segserve_builder.comparator.answers import ComparedAnswers, ExchangedPair, WireBody, compare_answers
from segserve_builder.comparator.frames import READY, WorkerFrame, read_frame
from segserve_common.logs import LogSettings, start_logging

MEMORY_BYTES: Final = 768 * 2**20
"""Of data, as RLIMIT_DATA counts it; a comparison that needs more is none."""
NICENESS: Final = 10

_log = logging.getLogger(__name__)


def main() -> None:
    """Compare pairs until stdin ends."""
    # Whatever prints must not write between the frames.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    start_logging(LogSettings.of(os.environ))
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    answers.write(READY)
    answers.flush()
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        answers.writelines(_compared(frame).pack())
        answers.flush()


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
