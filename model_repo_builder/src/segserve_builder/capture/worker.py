"""The process that makes samples: `python3 -m segserve_builder.capture.worker`, exchanges at stdin, samples at stdout.

Images are bytes of callers, and answers are bytes of servers. This process has no credentials in its environment and
cannot read the service's; it could open files of Secrets, but never does. Memory is limited, and the capture service
ends a worker that takes too long.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from segserve_builder.capture.rule import CaptureRule
from segserve_builder.capture.samples import MALFORMED, Exchange, UnredactedError, make_sample
from segserve_builder.copies.bodies import WireBody, answer_arrays, read_answer
from segserve_builder.copies.copies import WorkerFrame, answer_frames
from segserve_builder.errors import BadImageError
from segserve_builder.scoring.agreement import Answer
from segserve_common.kserve import Tensor

MEMORY_BYTES: Final = 1024 * 2**20

_log = logging.getLogger(__name__)


def main() -> None:
    """Make samples until stdin ends."""
    answer_frames(_sampled, memory_bytes=MEMORY_BYTES)


def _sampled(frame: WorkerFrame) -> WorkerFrame:
    try:
        sample = make_sample(_exchange(frame), CaptureRule.model_validate(frame.header["rule"]))
    except UnredactedError:
        return WorkerFrame({"dropped": "redaction"}, [])
    except (BadImageError, *MALFORMED):
        return WorkerFrame({"dropped": "unreadable"}, [])
    except Exception as error:  # any error that the bytes cause in the readers, above all MemoryError
        _log.warning("a sample was not made: %s", type(error).__name__)
        return WorkerFrame({"dropped": "unreadable"}, [])
    if sample is None:
        return WorkerFrame({}, [])
    return WorkerFrame({"row": json.loads(sample.row.to_line())}, [sample.image, sample.annotations or b""])


def _exchange(frame: WorkerFrame) -> Exchange:
    header = frame.header
    name, datatype, shape = header["image"]
    image = Tensor(name, datatype, tuple(shape), frame.blobs[0])
    answers: list[Answer | None] = [
        None if length is None else answer_arrays(read_answer("http", WireBody(blob, length)))
        for blob, length in zip(frame.blobs[1:], header["lengths"], strict=True)
    ]
    answer, other, redactor = answers
    return Exchange(image=image, answer=answer, other=other, redactor=redactor, **header["about"])


if __name__ == "__main__":
    main()
