"""Prompts of a request, the decoder that answers them, and the embeddings of images that clicks come back to."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from segserve_builder.errors import BadImageError
from segserve_builder.families.base import TensorSpec
from segserve_builder.families.promptable import MAX_BOXES, MULTIMASK, DecoderIO
from segserve_builder.values import Float32, Int32, ResizeTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray

MULTIMASK_PARAMETER: Final = "multimask"
MAX_POINTS: Final = 256
MAX_MASK_SIDE: Final = 1024
MAX_LOGIT: Final = 1e4
"""Beyond all logits of networks, and far from what overflows in one."""
PROMPT_PARAMETERS: Final = {
    "points": ("POINTS", 2, MAX_POINTS),
    "point_labels": ("POINT_LABELS", 1, MAX_POINTS),
    "prompt_boxes": ("PROMPT_BOXES", 4, MAX_BOXES),
}
"""Parameters that stand for a tensor: its name, its columns and most rows, as `120,80;200,90`."""
LOST: Final = "send the image again"
"""Words of the error for an id whose embedding the server does not hold, by which clients find it."""
_NO_POINT, _TOP_LEFT, _BOTTOM_RIGHT = -1, 2, 3
_ID: Final = re.compile(r"(?P<revision>[a-z0-9.-]{1,300})\.(?P<digest>[0-9a-f]{32})")
_FEW_POINTS: Final = 2


class LostEmbeddingError(BadImageError):
    """The server does not hold an image's embedding; its caller has to send the image once more."""


@dataclass(frozen=True, slots=True)
class PromptInputs:
    """Points, boxes and a mask that select objects, in pixels of the image.

    `points` are float32 (N, 2) as x y with `labels` int32 (N,): 1 of the object, 0 not of it. Each of `boxes` float32
    (M, 4) as x1 y1 x2 y2 is an object; with points there is at most one. `mask` are float32 logits (h, w) of an earlier
    answer. With `multimask` an answer has several masks of each object.
    """

    points: Float32
    labels: Int32
    boxes: Float32
    mask: Float32 | None = None
    multimask: bool = False

    @classmethod
    def of_request(cls, tensors: Mapping[str, NDArray[Any]], parameters: dict[str, Any]) -> Self:
        """Return the prompt of a request, by tensors or by parameters, which are taken out of `parameters`.

        Raises `BadImageError` as `of`, and for a parameter that is not allowed.
        """
        multimask = _flag(MULTIMASK_PARAMETER, parameters.pop(MULTIMASK_PARAMETER, False))
        given = dict(tensors)
        for name, (tensor, columns, most) in PROMPT_PARAMETERS.items():
            if name not in parameters:
                continue
            if tensor in tensors:
                raise BadImageError(f"a request has either {tensor} or the parameter {name!r}; this one has both")
            given[tensor] = _numbers(name, str(parameters.pop(name)), columns, most)
        return cls.of(given, multimask=multimask)

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]], *, multimask: bool = False) -> Self:
        """Return the prompt of a request's tensors, by the names of the wire contract.

        Raises `BadImageError` for shapes, numbers or labels that are not allowed.
        """
        points = _floats(tensors, "POINTS", (None, 2), MAX_POINTS)
        labels = tensors.get("POINT_LABELS")
        if labels is None:
            labels = np.ones(len(points), np.int32)
        if labels.shape != points.shape[:1]:
            raise BadImageError(
                f"POINT_LABELS has shape {list(labels.shape)}; allowed is one label for each of {len(points)} POINTS"
            )
        if strange := sorted({*labels.tolist()} - {0, 1}):
            raise BadImageError(f"POINT_LABELS has {strange[0]}; allowed are 1, of the object, and 0, not of it")
        boxes = _floats(tensors, "PROMPT_BOXES", (None, 4), MAX_BOXES)
        flat = np.flatnonzero(~(boxes[:, :2] < boxes[:, 2:]).all(axis=1))
        if flat.size:
            raise BadImageError(
                f"PROMPT_BOXES[{flat[0]}] is {boxes[flat[0]].tolist()}; allowed are x1 y1 x2 y2, x1 < x2 and y1 < y2"
            )
        if len(boxes) > 1 and (len(points) or "MASK_INPUT" in tensors):
            raise BadImageError(f"PROMPT_BOXES has {len(boxes)} objects; beside POINTS or MASK_INPUT allowed is one")
        mask = _floats(tensors, "MASK_INPUT", (None, None), MAX_MASK_SIDE) if "MASK_INPUT" in tensors else None
        if mask is not None and (mask.shape[1] > MAX_MASK_SIDE or not mask.size or np.abs(mask).max() > MAX_LOGIT):
            raise BadImageError(
                f"MASK_INPUT has shape {list(mask.shape)}; allowed are 1 to {MAX_MASK_SIDE} rows and columns of logits "
                f"from {-MAX_LOGIT:g} to {MAX_LOGIT:g}"
            )
        return cls(points, labels.astype(np.int32), boxes, mask, multimask)

    def check_inside(self, height: int, width: int) -> None:
        """Raise `BadImageError` for a point outside an image, and a box that has no pixel of it."""
        for index, (x, y) in enumerate(self.points.tolist()):
            if not (0 <= x <= width and 0 <= y <= height):
                raise BadImageError(
                    f"POINTS[{index}] is x {x:g}, y {y:g}; the image has {width} x {height} pixels (width x height)"
                )
        for index, (left, top, right, bottom) in enumerate(self.boxes.tolist()):
            if not (left < width and top < height and right > 0 and bottom > 0):
                raise BadImageError(
                    f"PROMPT_BOXES[{index}] is outside of the image of {width} x {height} pixels (width x height)"
                )

    def __bool__(self) -> bool:
        return bool(len(self.points) or len(self.boxes) or self.mask is not None)


def _flag(name: str, value: Any) -> bool:
    if value in (True, "true", "True", "1"):
        return True
    if value in (False, "false", "False", "0"):
        return False
    raise BadImageError(f"parameter {name!r} is {value!r}; allowed: true, false")


def _numbers(name: str, text: str, columns: int, most: int) -> NDArray[Any]:
    """Return the rows of a parameter, int32 (N,) of one column, else float32 (N, columns)."""
    form = "0 or 1" if columns == 1 else ",".join(["NUMBER"] * columns)
    if text.count(",") >= most * columns:
        raise BadImageError(f"parameter {name!r} has too many numbers; allowed are at most {most} entries")
    if text.count(";") >= most:
        raise BadImageError(f"parameter {name!r} has {text.count(';') + 1} entries; allowed are at most {most}")
    try:
        rows = [[float(number) for number in row.split(",")] for row in text.split(";")]
        array = np.array(rows, np.float32)
    except ValueError:
        array = np.empty(0, np.float32)
    labels = columns == 1 and array.ndim == 2 and np.isin(array, (0, 1)).all()
    if array.ndim != 2 or array.shape[1] != columns or (columns == 1 and not labels):
        raise BadImageError(f"parameter {name!r} is {text[:80]!r}; allowed: {form};{form} and so on")
    return array[:, 0].astype(np.int32) if columns == 1 else array


def _floats(
    tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int | None, int | None], most: int | None
) -> Float32:
    array = tensors.get(name)
    if array is None:
        return np.zeros([size or 0 for size in shape], np.float32)
    if array.dtype != np.float32 or array.ndim != 2 or shape[1] not in (None, array.shape[1]):
        allowed = ", ".join("N" if size is None else str(size) for size in shape)
        raise BadImageError(f"{name} is {array.dtype} of shape {list(array.shape)}; allowed is FP32 [{allowed}]")
    if most is not None and len(array) > most:
        raise BadImageError(f"{name} has {len(array)} rows; allowed are at most {most}")
    if not np.isfinite(array).all():
        raise BadImageError(f"{name} has values that are NaN or infinite")
    return np.ascontiguousarray(array)


NO_PROMPT: Final = PromptInputs.of({})


class PromptDecoder:
    """Answers prompts from an image's embedding. It may be called from several threads."""

    def __init__(self, path: Path, io: DecoderIO, threads: int = 0) -> None:
        """Load the file, with so many threads; 0 means the container's limit."""
        self._path, self._io, self._threads = path, io, threads
        self._session: Any = None
        self._opening = Lock()
        self._opened()

    def close(self) -> None:
        """Give all memory back until the next prompt."""
        self._session = None

    def __call__(
        self, embedding: Mapping[str, NDArray[Any]], prompt: PromptInputs, transform: ResizeTransform
    ) -> dict[str, NDArray[Any]]:
        """Return logits float32 [1, K, h, w] and scores [1, K] by the names of the decoder's outputs.

        `embedding` has the encoder's outputs by their names. K is the number of objects, or of all masks of each with
        `multimask`; an image without a prompt has none. Raises `BadImageError` if the file does not take such prompts.
        """
        prompt.check_inside(transform.height, transform.width)
        found = [self._masks(embedding, *each, prompt, transform) for each in self._objects(prompt)]
        logits, scores = (np.concatenate(each) for each in zip(*found, strict=True)) if found else self._nothing()
        return {self._io.logits.name: logits[None], self._io.scores.name: scores[None]}

    def _nothing(self) -> tuple[Float32, Float32]:
        grid = [size or 1 for size in self._io.logits.shape[-2:]]
        return np.zeros((0, *grid), np.float32), np.zeros(0, np.float32)

    def _objects(self, prompt: PromptInputs) -> Iterator[tuple[Float32, Int32, Float32 | None]]:
        """Yield points, their labels and the box of each object."""
        if len(prompt.boxes):
            yield from ((prompt.points, prompt.labels, box) for box in prompt.boxes)
        elif prompt:
            yield prompt.points, prompt.labels, None

    def _masks(
        self,
        embedding: Mapping[str, NDArray[Any]],
        points: Float32,
        labels: Int32,
        box: Float32 | None,
        prompt: PromptInputs,
        transform: ResizeTransform,
    ) -> tuple[Float32, Float32]:
        """Return the logits (K, h, w) and scores (K,) of one object."""
        io = self._io
        feeds = {taken: embedding[given] for given, taken in zip(io.encoded, io.embeddings, strict=True)}
        scale = np.array(transform.scale, np.float32)
        corner = np.array([transform.left, transform.top], np.float32)
        given = points / scale + corner
        if box is not None:
            if not io.takes_boxes:
                raise BadImageError("this model's decoder takes no PROMPT_BOXES; send POINTS")
            inside = np.clip(box.reshape(2, 2), 0, np.array([transform.width, transform.height], np.float32))
            given = np.concatenate([given, inside / scale + corner])
            labels = np.concatenate([labels, np.array([_TOP_LEFT, _BOTTOM_RIGHT], np.int32)])
        elif io.pads or not len(given):
            given, labels = _padded(given, labels, len(given) + 1)
        shown = len(given)
        if io.most_points is not None:
            if shown > io.most_points:
                raise BadImageError(
                    f"the prompt has {shown} points, those of a box and a last one included; this model's decoder "
                    f"takes {io.most_points}"
                )
            given, labels = _padded(given, labels, io.most_points)
        feeds[io.points.name] = given.reshape((1,) * (len(io.points.shape) - 2) + given.shape).astype(np.float32)
        feeds[io.labels.name] = _as(io.labels, labels)
        self._add_mask(feeds, prompt.mask)
        if io.size is not None:
            feeds[io.size.name] = _as(io.size, np.array([transform.input_height, transform.input_width]))
        logits, scores = self._opened().run([io.logits.name, io.scores.name], feeds)
        logits, scores = logits.reshape(-1, *logits.shape[-2:]), scores.reshape(-1)
        kept = chosen(scores, shown, multimask=prompt.multimask)
        return logits[kept], scores[kept]

    def _add_mask(self, feeds: dict[str, NDArray[Any]], mask: Float32 | None) -> None:
        io = self._io
        if io.mask is None:
            if mask is not None:
                raise BadImageError("this model's decoder takes no MASK_INPUT; send POINTS")
            return
        size = io.mask.shape[2:]
        if mask is not None and any(want not in (None, have) for want, have in zip(size, mask.shape, strict=True)):
            raise BadImageError(f"MASK_INPUT has shape {list(mask.shape)}; allowed is {list(size)}, as LOGITS has it")
        if mask is None and io.has_mask is None:
            raise BadImageError("this model's decoder needs a MASK_INPUT")
        shown = np.zeros([side or 256 for side in size], np.float32) if mask is None else mask
        feeds[io.mask.name] = shown[None, None]
        if io.has_mask is not None:
            feeds[io.has_mask] = np.array([float(mask is not None)], np.float32)

    def _opened(self) -> Any:
        from segserve_builder.steps.session import open_session

        with self._opening:
            self._session = self._session or open_session(self._path, self._threads)
            return self._session


def chosen(scores: Float32, points: int, *, multimask: bool) -> slice | list[int]:
    """Return the masks of one prompt to answer with, of scores (K,).

    Of four masks the first is for several points, and the others, of different extent, for one that is ambiguous:
    without `multimask` it is chosen as by segment-anything's `SamOnnxModel.select_masks`. `points` counts the corners
    of a box and the point that ends a prompt.
    """
    several = slice(1, None) if len(scores) == MULTIMASK + 1 else slice(None)
    if multimask:
        return several
    if len(scores) == MULTIMASK + 1 and points > _FEW_POINTS:
        return [0]
    return [int(np.argmax(scores[several])) + (several.start or 0)]


def _as(tensor: TensorSpec, values: NDArray[Any]) -> NDArray[Any]:
    """Return values (N,) of a tensor's type, with axes of 1 before."""
    dtype = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32}[tensor.dtype]
    return values.reshape((1,) * (len(tensor.shape) - 1) + values.shape).astype(dtype)


def _padded(points: Float32, labels: Int32, to: int) -> tuple[Float32, Int32]:
    more = to - len(points)
    return np.pad(points, ((0, more), (0, 0))), np.pad(labels, (0, more), constant_values=_NO_POINT)


@dataclass(frozen=True, slots=True)
class Embedding:
    """An image's embedding: the encoder's outputs by name, and the tensor GEOMETRY of the image."""

    outputs: Mapping[str, NDArray[Any]]
    geometry: NDArray[Any]

    @property
    def size_bytes(self) -> int:
        """The memory that it takes."""
        return sum(array.nbytes for array in self.outputs.values()) + self.geometry.nbytes


class EmbeddingCache:
    """The embeddings of the images that were used last, within a number of bytes, for one revision.

    All callers have the same share: what is evicted is of the caller who has the most.
    An image that several requests send at the same time is embedded once.
    """

    def __init__(self, revision: str, most_bytes: int) -> None:
        self._revision, self._most_bytes = revision, most_bytes
        self._lock = Lock()
        self._kept: OrderedDict[str, tuple[str, Embedding]] = OrderedDict()
        self._made: dict[str, Future[Embedding]] = {}
        self._bytes = 0

    def id_of(self, image: NDArray[Any], caller: str) -> str:
        """Return the id of a caller's image, encoded or as pixels."""
        encoded = image.dtype == np.object_
        content = bytes(image.item()) if encoded else np.ascontiguousarray(image).reshape(-1).view(np.uint8).data
        form = "" if encoded else f"{image.dtype} {image.shape}"
        named = f"{self._revision} {caller} {form} {hashlib.sha256(content).hexdigest()}"
        return f"{self._revision}.{hashlib.sha256(named.encode()).hexdigest()[:32]}"

    def of_image(self, name: str, caller: str, make: Callable[[], Embedding]) -> Embedding:
        """Return the embedding of a caller's image by its id, made if it is not kept; raises what `make` does."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name][1]
            others = self._made.get(name)
            ours = self._made.setdefault(name, Future())
        if others is not None:
            return others.result()
        try:
            made = make()
        except BaseException as error:
            ours.set_exception(error)
            raise
        else:
            self._keep(name, caller, made)
            ours.set_result(made)
            return made
        finally:
            with self._lock:
                del self._made[name]

    def of_id(self, name: str, caller: str) -> Embedding:
        """Return the embedding of an id.

        Raises `BadImageError` for a text that is no id, and `LostEmbeddingError` if the embedding is not kept, or is
        another revision's or another caller's.
        """
        read = _ID.fullmatch(name)
        if read is None:
            raise BadImageError(f"EMBEDDING is {name[:80]!r}; allowed is the EMBEDDING_ID of an earlier answer")
        if read["revision"] != self._revision:
            raise LostEmbeddingError(
                f"EMBEDDING is of revision {read['revision']}; {self._revision} answers now: {LOST}"
            )
        with self._lock:
            owner, found = self._kept.get(name, ("", None))
            # Nobody learns what others have sent.
            if found is None or owner != caller:
                raise LostEmbeddingError(f"this server does not hold the EMBEDDING {name}: {LOST}")
            self._kept.move_to_end(name)
            return found

    def holds(self, name: str) -> bool:
        """Return whether an id's embedding is kept."""
        with self._lock:
            return name in self._kept

    def clear(self) -> None:
        """Forget all embeddings."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _keep(self, name: str, caller: str, made: Embedding) -> None:
        if made.size_bytes > self._most_bytes:
            return
        with self._lock:
            self._kept[name] = caller, made
            self._bytes += made.size_bytes
            while self._bytes > self._most_bytes:
                held = Counter[str]()
                for owner, each in self._kept.values():
                    held[owner] += each.size_bytes
                # Of the caller who has the most, so that none evicts all of another's.
                most = held.most_common(1)[0][0]
                oldest = next(each for each, (owner, _) in self._kept.items() if owner == most)
                self._bytes -= self._kept.pop(oldest)[1].size_bytes
