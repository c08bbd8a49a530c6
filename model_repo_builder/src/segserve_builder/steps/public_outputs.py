"""The wire contract's table: the tensors that callers send, and the tensors of the answer by task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from segserve_builder.families.base import CHANNELS, TensorSpec
from segserve_builder.spec.model_spec import Input

if TYPE_CHECKING:
    from numpy.typing import NDArray

Task: TypeAlias = Literal["semantic", "instance", "panoptic", "detection", "keypoints"]

GEOMETRY: Final = TensorSpec("GEOMETRY", "INT32", (8,))
GUIDE: Final = TensorSpec("GUIDE", "UINT8", (None, None, 3))
"""The image at the network's resolution, for postprocess stages that need it."""
MEASURED_GEOMETRY: Final = TensorSpec(GEOMETRY.name, "INT32", (24,))
"""GEOMETRY and what the first step measured (`Measures`): each tensor more between two steps costs time."""
NETWORK_INPUT: Final = "NETWORK_INPUT"
REVISION: Final = "REVISION"

CONTINUED: Final = TensorSpec("CONTINUED", "INT32", (1,))
"""Output of models that keep streams: 1 if the server has kept earlier frames of the image's stream, else 0."""

OUT_OF_DISTRIBUTION: Final = TensorSpec("OUT_OF_DISTRIBUTION", "FP32", (None,))
"""Output of models that flag images: score and threshold; empty if there is no evidence for a score."""

OVERLAY: Final = TensorSpec("OVERLAY", "BYTES", (None,))
"""Output of every model: a file of the image with the answer drawn on it, in the format that `overlay` names."""

EMBEDDING: Final = TensorSpec("EMBEDDING", "BYTES", (1,))
"""Input of promptable models: the EMBEDDING_ID of an earlier answer, in place of the image."""
EMBEDDING_ID: Final = TensorSpec("EMBEDDING_ID", "BYTES", (1,))
"""Output of promptable models: the image's id for further requests, empty if its embedding could not be kept.

Inputs and outputs of an ensemble need different names.
"""

LOGITS: Final = TensorSpec("LOGITS", "FP32", (None, None, None))
"""Output of promptable models: each mask's logits over the network's input, of which MASK_INPUT refines one.

It is empty unless the parameter `outputs` names it.
"""

PROMPT_INPUTS: Final = (
    EMBEDDING,
    TensorSpec("POINTS", "FP32", (None, 2)),
    TensorSpec("POINT_LABELS", "INT32", (None,)),
    TensorSpec("PROMPT_BOXES", "FP32", (None, 4)),
    TensorSpec("MASK_INPUT", "FP32", (None, None)),
)

_REVISION: Final = TensorSpec(REVISION, "BYTES", (1,))
_SIZE: Final = TensorSpec("SIZE", "INT32", (2,))
_CLASSES: Final = TensorSpec("CLASSES", "INT32", (None,))
_MASKS: Final = TensorSpec("MASKS", "BYTES", (None,))
_LABELS: Final = TensorSpec("LABELS", "BYTES", (None,))
_BOXES: Final = TensorSpec("BOXES", "FP32", (None, 4))
_SCORES: Final = TensorSpec("SCORES", "FP32", (None,))

PUBLIC_OUTPUTS: Final[Mapping[Task, tuple[TensorSpec, ...]]] = {
    "semantic": (
        _REVISION,
        _SIZE,
        _LABELS,
        _MASKS,
        _CLASSES,
        TensorSpec("AREAS", "INT64", (None,)),
        TensorSpec("CONFIDENCE", "FP32", (None,)),
    ),
    "instance": (
        _REVISION,
        _SIZE,
        _BOXES,
        _SCORES,
        _CLASSES,
        _MASKS,
    ),
    "panoptic": (_REVISION, _SIZE, _LABELS, TensorSpec("SEGMENTS", "BYTES", (1,)), _MASKS),
    "detection": (_REVISION, _SIZE, _BOXES, _SCORES, _CLASSES),
    "keypoints": (_REVISION, _SIZE, _BOXES, _SCORES, _CLASSES, TensorSpec("KEYPOINTS", "FP32", (None, None, 3))),
}
SCORED: Final = frozenset(task for task, outputs in PUBLIC_OUTPUTS.items() if _SCORES in outputs)
"""Tasks whose answers have a score for each object, of which requests may set the least and the largest number."""


def public_outputs(task: Task, *, streams: bool, flags: bool, prompts: bool) -> tuple[TensorSpec, ...]:
    """Return the outputs of a model.

    It may keep `streams`, flag images that are out of distribution, and take `prompts`.
    """
    more = (OVERLAY, *((CONTINUED,) if streams else ()), *((OUT_OF_DISTRIBUTION,) if flags else ()))
    return (*PUBLIC_OUTPUTS[task], *more, *((EMBEDDING_ID, LOGITS) if prompts else ()))


def has_masks(task: Task) -> bool:
    """Return whether a task's answers have masks, whose encoding requests may set."""
    return any(tensor.name == "MASKS" for tensor in PUBLIC_OUTPUTS[task])


def empty(tensor: TensorSpec) -> NDArray[Any]:
    """Return the array of an output that holds nothing: zeros or empty bytes.

    Its dtype is the tensor's, its free dimensions are 0.
    """
    import numpy as np

    dtypes = {"BYTES": np.object_, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}
    nothing = b"" if tensor.dtype == "BYTES" else 0
    return np.full([size or 0 for size in tensor.shape], nothing, dtypes[tensor.dtype])


def public_inputs(image: Input, *, prompts: bool = False) -> tuple[TensorSpec, ...]:
    """Return the inputs of a model.

    A caller sends one of the first two: an encoded image, or its pixels shaped (H, W, C). A model that takes `prompts`
    has their inputs, and takes the id of an image in place of it.
    """
    pixels = TensorSpec("PIXELS", image.dtype, (None, None, CHANNELS[image.colour]))
    return TensorSpec("IMAGE", "BYTES", (1,)), pixels, *(PROMPT_INPUTS if prompts else ())


def extra_input(place: int) -> str:
    """Name an input beside the image between the steps, by its place among those of all of a model's networks."""
    return f"{NETWORK_INPUT}_{place}"


def network_output(name: str) -> str:
    """Name a network's output `name` between the steps, where it must differ from every public tensor."""
    return f"NETWORK_OUTPUT_{name}"


def second_output(name: str) -> str:
    """Name an output of a model's second network between the steps; the first one may have an equal name."""
    return f"SECOND_OUTPUT_{name}"
