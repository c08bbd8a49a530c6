"""A network in ONNX Runtime, as the programs beside segserve run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

Network = Callable[[NDArray[Any]], list[NDArray[Any]]]
"""Returns a network's outputs for a tensor (B, 3, H, W)."""


def session(path: Path, threads: int) -> Network:
    """Return the network in this process; 0 threads are all. Those that wait do not spin: others need the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = opened.get_inputs()
    return lambda tensor: opened.run(None, {given.name: tensor})
