"""The process of the trial runs, one pipeline on images of rising size: `-m segserve_platform.cli.init.trial_process`.

It reads an order from standard input and writes a JSON object per line: a run's `pixels`, bytes `allocated` and
`seconds`, at last an `error` or `done`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

RUN_S: Final = 5.0
"""Expected seconds of a run above which it is not started."""

LOADING_BYTES: Final = 2**30
LOADING_COPIES: Final = 4
"""Copies of the weights that there may be while a network is optimised."""


def messages(order: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Carry out an order: `pipeline`, `artifact`, and paths of `images` by their number of pixels, smallest first.

    `warm_up` is the path of a smaller image. With `is_resized` all are the same to the network, which is run once.
    """
    from segserve_builder.memory import is_out_of_memory

    try:
        yield from _runs(order)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        text = " ".join(str(error).split())[:300]
        yield {"error": text or type(error).__name__, "out_of_memory": is_out_of_memory(error)}
    else:
        yield {"done": True}


def _runs(order: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    from segserve_builder.memory import allow_allocations, process_bytes, step_limit_bytes
    from segserve_builder.stages.base import RequestOptions
    from segserve_builder.steps.in_process import InProcessModel
    from segserve_builder.steps.pipeline import Pipeline

    artifact = Path(order["artifact"])
    allow_allocations(step_limit_bytes() + LOADING_BYTES + LOADING_COPIES * artifact.stat().st_size)
    model = InProcessModel(Pipeline.model_validate(order["pipeline"]), artifact)
    loaded, request, raw, network_s = process_bytes("VmRSS"), RequestOptions(), None, (0.0, 0.0)
    # The first request also loads kernels, which must not fail for lack of memory. A network may refuse so small a one.
    with contextlib.suppress(Exception):
        image = Path(order["warm_up"]).read_bytes()
        given, started, cpu_started = model.network_input(image), time.perf_counter(), time.process_time()
        outputs = model.raw(given)
        if order["is_resized"]:
            raw, network_s = outputs, (time.perf_counter() - started, time.process_time() - cpu_started)
        model.answer(image, request, outputs)
    allow_allocations(step_limit_bytes())  # as in a step: what was loaded does not count
    _forget_peak()
    waited: list[tuple[int, float]] = []
    for text, path in order["images"].items():
        pixels, image = int(text), Path(path).read_bytes()
        if len(waited) > 1 and _expected_s(waited, pixels) > RUN_S:
            return
        started, cpu_started = time.perf_counter(), time.process_time()
        model.answer(image, request, raw)
        wall_s, cpu_s = time.perf_counter() - started + network_s[0], time.process_time() - cpu_started + network_s[1]
        waited.append((pixels, wall_s))
        allocated = max(process_bytes("VmHWM") - loaded, 0)
        # On a machine that is busy with other things, the time on the processors is nearer to what a request takes.
        yield {"pixels": pixels, "allocated": allocated, "seconds": min(wall_s, cpu_s)}


def _expected_s(waited: list[tuple[int, float]], pixels: int) -> float:
    """Return the seconds that an image is expected to take, by the two before it."""
    (small, small_s), (large, large_s) = waited[-2:]
    return large_s + max(large_s - small_s, 0.0) / (large - small) * (pixels - large)


def _forget_peak() -> None:
    """Set the highest resident memory to the present one; where that is not allowed, loading counts as well."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Read the order and write the messages."""
    with contextlib.suppress(OSError):
        # If memory runs out all the same, the kernel ends this process and no other.
        Path("/proc/self/oom_score_adj").write_text("1000")
    order = json.load(sys.stdin)
    for message in messages(order):
        print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
