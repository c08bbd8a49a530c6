"""Networks that are really worse than the example's: with other weights, or blind to one class."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

NEVER: float = -1e4
"""A logit that loses against any other."""


def with_other_weights(source: Path, target: Path, *, spread: float = 0.6, seed: int = 0) -> Path:
    """Write a network whose filters are off by so many of their standard deviations: it answers, and wrongly."""
    model, random = onnx.load(source), np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim == 4:
            moved = weights + spread * weights.std() * random.standard_normal(weights.shape)
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(weights.dtype), tensor.name))
    return _saved(model, target)


def without_class(source: Path, target: Path, index: int) -> Path:
    """Write a network that never sees one class; its output is logits of shape [N, classes, H, W]."""
    model = onnx.load(source)
    graph, name = model.graph, model.graph.output[0].name
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if not 0 <= index < classes:
        raise ValueError(f"index must be within 0..{classes - 1}, got {index}")
    for node in graph.node:
        node.output[:] = [f"{name}-whole" if output == name else output for output in node.output]
    mask = np.zeros((1, classes, 1, 1), np.float32)
    mask[0, index] = NEVER
    graph.initializer.append(numpy_helper.from_array(mask, f"{name}-mask"))
    graph.node.append(helper.make_node("Add", [f"{name}-whole", f"{name}-mask"], [name]))
    return _saved(model, target)


def artifact(path: Path) -> dict[str, str]:
    """Return a spec's words for a network's file."""
    return {"uri": path.resolve().as_uri(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _saved(model: onnx.ModelProto, target: Path) -> Path:
    onnx.checker.check_model(model)
    onnx.save(model, target)
    return target
