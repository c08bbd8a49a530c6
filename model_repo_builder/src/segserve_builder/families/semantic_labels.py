"""The family of networks that give every pixel the number of its class, with the argmax in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import (
    Family,
    ModelContext,
    NetworkIO,
    NetworkSignature,
    StageNote,
    TensorSpec,
    check_batch,
    check_grid,
    described_all,
    thing_ids,
)
from segserve_builder.families.network_inputs import image_input
from segserve_builder.families.semantic_logits import SEMANTIC_LOGITS
from segserve_builder.sampling import axes
from segserve_builder.values import LabelMap, Logits, ResizeTransform, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES: Final = ("UINT8", "INT32", "INT64")
SHAPES: Final = "[batch, height, width], [batch, 1, height, width] or [batch, height, width, 1]"


@dataclass(frozen=True, kw_only=True)
class SemanticLabels(Family):
    """One output of integers, with the number of a class for each cell of a grid over the network's whole input.

    A pixel of the image gets the label of the cell that it lies in. There are no scores: confidence is 1.
    """

    reads_maps: bool = True

    def tensors(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the image input and the labels; raises `SignatureError` if the network has others, or several."""
        image, layout = image_input(signature, model)
        fitting = [tensor for tensor in signature.outputs if tensor.dtype in DTYPES and _is_map(tensor)]
        if len(fitting) != 1:
            raise SignatureError(
                f"{self.name} has one output, {' or '.join(DTYPES)} {SHAPES}; the network has "
                f"{described_all(signature.outputs)}"
            )
        check_batch("output", fitting[0])
        return NetworkIO(image, layout, tuple(fitting))

    def read(self, outputs: Mapping[str, NDArray[Any]], transform: ResizeTransform, model: ModelContext) -> LabelMap:
        """Return one image's labels; raises `SignatureError` for another shape, and for a number that is not a class.

        `outputs` is one array of integers, shaped as in `tensors`.
        """
        import numpy as np

        ((name, values),) = outputs.items()
        grid = values[0].reshape([side for side in values.shape[1:] if side > 1 or values.ndim == 3])
        if len(values) != 1 or grid.ndim != 2:
            raise SignatureError(f"the labels {name!r} have shape {list(values.shape)}; they are {SHAPES}")
        check_grid("the labels", grid.shape, transform)
        number = len(model.classes)
        strange = grid[(grid < 0) | (grid >= number)]
        if strange.size:
            raise SignatureError(
                f"the network's label {strange[0]} is not a class of the model; its classes are 0 to {number - 1}"
            )
        rows, columns = axes(transform, *grid.shape)
        cells = grid[np.ix_(rows.first + rows.nearest(), columns.first + columns.nearest())]
        scores = Logits(np.empty((number, 0, 0), np.float32), transform, things=thing_ids(model))
        return LabelMap(cells.astype(np.uint8 if number <= 256 else np.uint16), scores)


def _is_map(tensor: TensorSpec) -> bool:
    return len(tensor.shape) == 3 or (len(tensor.shape) == 4 and 1 in (tensor.shape[1], tensor.shape[3]))


SEMANTIC_LABELS: Final = SemanticLabels(
    name="semantic-labels",
    gives=ValueType.LABELS,
    default_postprocess=(),
    output_names=("labels",),
    image_sized_outputs=("labels",),
    architectures=SEMANTIC_LOGITS.architectures,
    tasks=SEMANTIC_LOGITS.tasks,
    fixed_size_resize="stretch",
    stage_notes=(
        StageNote("the network gives labels without scores: CONFIDENCE is 1, and no stage can take another threshold"),
    ),
)
