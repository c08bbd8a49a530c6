"""The trained weights, read back out of the ONNX files that are served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import torch
from onnx import numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def load(network: nn.Module, artifact: Path) -> nn.Module:
    """Give `network` the weights of the file that it was exported to, and return it, ready to infer.

    Raises `KeyError` where the file lacks one.
    """
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(artifact).graph.initializer}
    state = {
        name: torch.from_numpy(stored[name].copy())
        for name in network.state_dict()
        if not name.endswith("num_batches_tracked")  # counted while training alone
    }
    network.load_state_dict(state, strict=False)
    return network.eval()
