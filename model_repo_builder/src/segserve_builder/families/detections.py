"""What the families of detectors share that answer with boxes already chosen: Faster, Mask, Cascade, Keypoint R-CNN."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import NetworkIO
from segserve_builder.families.signature import check_batch, described, described_all, image_input
from segserve_builder.imaging.boxes import to_image_coordinates
from segserve_builder.values import Candidates, NoHeads, ResizeTransform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkSignature, TensorSpec
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_builder.values import Float32, Int32


@dataclass(frozen=True, slots=True)
class Role:
    """An output: the names that exporters give it, and for one image its dtypes and its shape, said and in numbers.

    `last` are the sizes that its last dimension may have, where that tells it apart.
    """

    name: str
    names: frozenset[str]
    dtypes: tuple[str, ...]
    shape: str
    ranks: tuple[int, ...]
    last: tuple[int, ...] = ()

    @property
    def described(self) -> str:
        """Say what it must be."""
        return f"{self.name} {' or '.join(self.dtypes)} {self.shape}"


BOXES: Final = Role(
    "boxes",
    frozenset({"boxes", "dets", "bboxes", "pred_boxes"}),
    ("FP32",),
    "[N, 4], or [N, 5] with the score",
    (2,),
    (4, 5),
)
LABELS: Final = Role("labels", frozenset({"labels", "classes", "pred_classes"}), ("INT64", "INT32"), "[N]", (1,))
SCORES: Final = Role("scores", frozenset({"scores"}), ("FP32",), "[N]", (1,))


def detection_io(family: str, signature: NetworkSignature, pipeline: Pipeline, heads: Role | None = None) -> NetworkIO:
    """Return the tensors of a detector: boxes, labels, `heads` where the family has any, and scores if they are apart.

    Outputs are told apart by their names, or else by dtype and shape; others may be there and are left alone. All have
    a batch before the shape that `Role` says, or none has.
    """
    image, layout = image_input(signature, pipeline, may_be_single=True)
    roles = (BOXES, LABELS) if heads is None else (BOXES, LABELS, heads)
    search = _Search(family, roles, signature.outputs)
    boxes = search.find(BOXES, None)
    batched = len(boxes.shape) == 3
    found = [boxes, *(search.find(role, batched) for role in roles[1:])]
    if boxes.shape[-1] != 5:
        found.append(search.find(SCORES, batched))
    if batched:
        for tensor in found:
            check_batch("output", tensor, pipeline)
    elif pipeline.runtime.max_batch_size != 1:
        raise SignatureError(
            f"output {described(boxes)} has no batch: such a network runs one image at a time, so runtime.maxBatchSize "
            f"must be 1; here it is {pipeline.runtime.max_batch_size}"
        )
    shown = found if batched else [replace(tensor, shape=(1, *tensor.shape)) for tensor in found]
    return NetworkIO(image, layout, tuple(shown), batched)


class _Search:
    """Finds outputs by their names first, then by their form among those that no name has claimed."""

    def __init__(self, family: str, roles: tuple[Role, ...], outputs: Sequence[TensorSpec]) -> None:
        self._family, self._roles, self._outputs = family, roles, outputs
        self._named = {role: [t for t in outputs if t.name.lower() in role.names] for role in (*roles, SCORES)}
        self._taken = [tensor for tensors in self._named.values() for tensor in tensors]

    def find(self, role: Role, batched: bool | None) -> TensorSpec:
        """Return the one output of a role; where `batched` is None it may have a batch or not."""
        more = (0, 1) if batched is None else (int(batched),)
        ranks = [rank + extra for rank in role.ranks for extra in more]
        candidates = self._named[role] or [t for t in self._outputs if t not in self._taken]
        fitting = [t for t in candidates if t.dtype in role.dtypes and len(t.shape) in ranks and _ends(t, role)]
        if len(fitting) > 1:  # detectron2 adds the image's size, INT64 [2]; the number of detections is free
            fitting = [t for t in fitting if t.shape[-1] is None or role.last] or fitting
        if len(fitting) == 1:
            self._taken.append(fitting[0])
            return fitting[0]
        batch = {None: "with or without a batch in front", True: "with a batch in front", False: "without a batch"}
        wanted = "; ".join(one.described for one in (*self._roles, SCORES))
        raise SignatureError(
            f"{self._family} needs the output {role.described}, {batch[batched]}; {len(fitting) or 'none'} of the "
            f"network's outputs may be it: {described_all(self._outputs)}. It has {wanted} (unless the boxes have "
            f"them); outputs named {', '.join(one.name for one in (*self._roles, SCORES))} need no guess"
        )


def _ends(tensor: TensorSpec, role: Role) -> bool:
    return not role.last or tensor.shape[-1] is None or tensor.shape[-1] in role.last


def read_detections(
    family: str, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline
) -> Candidates:
    """Read the boxes, labels and scores of one image, in the order of `detection_io`.

    Boxes become those of the original image. Detections of the background, or of nothing (a label of 0 or less that is
    no class), are left out. Raises `SignatureError` for shapes that do not fit together, and for other labels that are
    no class.
    """
    boxes, labels, *scores = outputs.values()
    return _read(family, outputs, (boxes, labels, scores), placement, pipeline)[0]


def read_with_heads(
    family: str, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline
) -> tuple[Candidates, NDArray[Any]]:
    """Read what `read_detections` does of a family that has heads, and return them beside it, a row a detection."""
    boxes, labels, heads, *scores = outputs.values()
    candidates, rows = _read(family, outputs, (boxes, labels, scores), placement, pipeline)
    return candidates, heads[0, rows]


def _read(
    family: str,
    outputs: Mapping[str, NDArray[Any]],
    parts: tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]]],
    placement: ResizeTransform,
    pipeline: Pipeline,
) -> tuple[Candidates, NDArray[Any]]:
    boxes, labels, apart = parts
    first = (1, *boxes.shape[1:2])
    if boxes.ndim != 3 or boxes.shape[2] != (4 if apart else 5) or any(a.shape[:2] != first for a in outputs.values()):
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in outputs.items())
        raise SignatureError(f"{family}'s outputs have the shapes {shapes}; for one image each begins with [1, N]")
    scores: Float32 = apart[0][0] if apart else boxes[0, :, 4]
    rows, classes = _known(labels[0], pipeline)
    where = to_image_coordinates(boxes[0, rows, :4], placement)
    return Candidates(where, scores[rows], classes, NoHeads(), placement), rows


def _known(labels: NDArray[Any], pipeline: Pipeline) -> tuple[NDArray[Any], Int32]:
    """Return the rows whose label is a class, and their labels."""
    import numpy as np

    ids = np.array([item.id for item in pipeline.classes])
    known = np.isin(labels, ids)
    strange = labels[~known & (labels > 0)]
    if strange.size:
        allowed = ", ".join(str(number) for number in ids)
        raise SignatureError(f"the network's label {strange[0]} is no class of the model; its classes are {allowed}")
    rows = np.flatnonzero(known)
    return rows, labels[rows].astype(np.int32)
