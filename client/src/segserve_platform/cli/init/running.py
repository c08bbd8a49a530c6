"""Test runs: of a network for shapes, sizes and batches; of a pipeline to score how steady its answers are."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import ImageOps

from segserve.results.images import picture
from segserve_builder.families.base import PROBABILITY_OPERATORS
from segserve_builder.families.network_inputs import extra_array, extra_inputs
from segserve_builder.golden.judging import Answer, with_columns
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.session import NetworkSession
from segserve_builder.steps.step_options import NetOptions
from segserve_builder.values import ResizeTransform
from segserve_common.mask_encodings import read_labels
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.network import ImageInput, NetworkFile

if TYPE_CHECKING:
    from numpy.typing import NDArray


NUMPY: Final = {"UINT8": "uint8", "UINT16": "uint16", "FP16": "float16", "FP32": "float32"}
STEPS: Final = (1, 2, 4, 8, 16, 32, 64)
FREE_SIDE: Final = 256
DETECTOR_SIDE: Final = 640
SLOW_S: Final = 1.0
"""Seconds of processor for a run above which fewer runs are made: `guess` says how many."""
TRIAL_IMAGES: Final = 2
"""Images of each trial; each is also mirrored."""
MOST_KNOWN_BYTES: Final = 2**28
SAME_OBJECT_IOU: Final = 0.5
"""IoU above which a box matches one of the mirrored image."""


class KnownRuns(NetworkSession):
    """Runs a network once for each input: it keeps outputs, of up to `MOST_KNOWN_BYTES` and one run more."""

    def __init__(self, path: Path, options: NetOptions) -> None:
        super().__init__(path, options, apart=False)
        self._known: dict[bytes, dict[str, NDArray[Any]]] = {}

    def run(self, batch: NDArray[Any], extra: Sequence[NDArray[Any]] = ()) -> dict[str, NDArray[Any]]:
        """Return the outputs as a session does, at once for inputs that were run before."""
        given = b"".join(repr(array.shape).encode() + array.tobytes() for array in (batch, *extra))
        key = hashlib.sha256(given).digest()
        if key not in self._known:
            if sum(array.nbytes for known in self._known.values() for array in known.values()) > MOST_KNOWN_BYTES:
                self._known.clear()
            self._known[key] = super().run(batch, extra)
        return self._known[key]


known_runs: Final = lru_cache(maxsize=1)(KnownRuns)


class NetworkRunner:
    """Runs a network in ONNX Runtime on noise. A failed run is a result, not an error."""

    def __init__(self, network: NetworkFile, image: ImageInput) -> None:
        """Load the file; raises `CommandError` if ONNX Runtime cannot, `ModuleNotFoundError` if it is not installed."""
        from segserve_builder.steps.session import open_session

        self.image = image
        self._extra = extra_inputs(network.signature)
        try:
            self._session = open_session(network.path)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            mend = ""
            if "NOT_IMPLEMENTED" in str(error):
                mend = (
                    ". It lacks this operator for the types of its inputs: export with torch.onnx.export(dynamo=True), "
                    "or cast them to float32 in the network"
                )
            raise CommandError(f"ONNX Runtime cannot load {network.path}: {_brief(error)}{mend}") from error
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        self._run_options = options
        self.is_slow = False

    def run(self, batch: int, height: int, width: int) -> Mapping[str, Any] | None:
        """Return the outputs for noise of a size by name, None if the run fails."""
        import numpy as np

        noise = np.random.default_rng(0).integers(0, 256, self.image.shape(batch, height, width))
        return self._outputs(noise if self.image.dtype.startswith("UINT") else noise / 255)

    def _outputs(self, pixels: NDArray[Any]) -> Mapping[str, Any] | None:
        images = pixels.astype(NUMPY[self.image.dtype])
        height, width = images.shape[-2:] if self.image.layout == "NCHW" else images.shape[-3:-1]
        whole, count = ResizeTransform.of(height, width), 1 if self.image.single else len(images)
        feed = {each.name: extra_array(each, whole).repeat(count, axis=0) for each in self._extra}
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(
                zip(names, self._session.run(names, {**feed, self.image.name: images}, self._run_options), strict=True)
            )
        except Exception:
            return None

    def observe(self, network: NetworkFile, photo: Path) -> NetworkFile:
        """Return the network with what runs on noise and on a photograph show of its outputs.

        These are their shapes for one image, and which have only values of 0 to 1. Nothing is shown if no usual size
        works.
        """
        for side in (FREE_SIDE, DETECTOR_SIDE):
            height, width = self.image.height or side, self.image.width or side
            started = time.process_time()
            if (outputs := self.run(1, height, width)) is not None:
                self.is_slow = time.process_time() - started > SLOW_S
                shapes = {name: tuple(array.shape) for name, array in outputs.items()}
                probabilities = self._probabilities(network, outputs, photo, height, width)
                return replace(network, shapes=shapes, run_size=(height, width), probabilities=probabilities)
        return network

    def _probabilities(
        self, network: NetworkFile, outputs: Mapping[str, Any], photo: Path, height: int, width: int
    ) -> frozenset[str]:
        """Return the outputs of which no input, of pixels from 0 to 1 or to 255, gets a value beyond 0 and 1.

        Outputs whose graph ends with a sigmoid or softmax are not tried.
        """
        import numpy as np

        known = {name for name, last in network.signature.last_operators.items() if last in PROBABILITY_OPERATORS}
        left = _within_0_and_1(outputs) - known
        if not left:
            return left
        small = picture(photo).convert("L" if self.image.channels == 1 else "RGB").resize((width, height))
        pixels = np.asarray(small).reshape(height, width, self.image.channels)
        pixels = pixels.transpose(2, 0, 1) if self.image.layout == "NCHW" else pixels
        for given in (pixels, pixels / 255, np.random.default_rng(1).integers(0, 256, pixels.shape)):
            left &= _within_0_and_1(self._outputs(given.reshape(self.image.shape(1, height, width))) or {})
            if not left or self.is_slow:
                break
        return left

    def multiple(self) -> int | None:
        """Return the least power of two that the sides of images must be multiples of; None if none up to 64 works."""
        for step in STEPS:
            least = -(-64 // step)
            odd = least + 1 - least % 2
            if self.run(1, odd * step, (odd + 2) * step) is not None:
                return step
        return None

    def takes_pairs(self) -> bool:
        """Return whether the network answers a batch of two images."""
        height, width = self.image.size or (FREE_SIDE, FREE_SIDE)
        outputs = self.run(2, height, width)
        return outputs is not None and all(array.ndim and len(array) == 2 for array in outputs.values())


def _within_0_and_1(outputs: Mapping[str, NDArray[Any]]) -> frozenset[str]:
    return frozenset(
        name
        for name, array in outputs.items()
        if array.dtype == "float32" and array.min(initial=1) >= 0 and array.max(initial=0) <= 1
    )


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def steadiness(model: InProcessModel, images: Sequence[Path]) -> float:
    """Return the model's confidence times the agreement of its answers for each image and its mirror image, 0 to 1.

    Confidence alone is not enough: networks that get pixels of 0 to 255 instead of 0 to 1 are confident about noise.
    """
    scores = []
    for path in images[:TRIAL_IMAGES]:
        try:
            scores.append(_compared(model, path))
        except Exception:  # ONNX Runtime's exceptions have no common base class
            scores.append(0.0)
    return sum(scores) / len(scores)


def border_class(model: InProcessModel, images: Sequence[Path]) -> int | None:
    """Return the label of most pixels at the borders of the images; None if no label is on more than half of them."""
    import numpy as np

    found = [_label_map(model.answer(path.read_bytes(), RequestOptions(encoding="raw"))) for path in images]
    borders = np.concatenate([side.ravel() for labels in found for side in (labels[[0, -1]], labels[:, [0, -1]])])
    counts = np.bincount(borders)
    return int(counts.argmax()) if 2 * counts.max() > counts.sum() else None


def _compared(model: InProcessModel, path: Path) -> float:
    import numpy as np

    is_map = model.task == "semantic"
    request = RequestOptions(encoding="raw") if is_map else RequestOptions()
    answer = model.answer(path.read_bytes(), request)
    found = np.ptp(_label_map(answer)) if is_map else len(with_columns("the image", answer)["BOXES"])
    if not found:
        return 0.0
    return (_labels_agree if is_map else _objects_agree)(answer, model.answer(_mirrored(path), request))


def _mirrored(path: Path) -> bytes:
    buffer = BytesIO()
    ImageOps.mirror(picture(path)).save(buffer, "PNG")
    return buffer.getvalue()


def _labels_agree(answer: Answer, mirrored: Answer) -> float:
    """Return Cohen's kappa of two label maps, times the mean confidence."""
    import numpy as np

    labels, other = _label_map(answer), _label_map(mirrored)[:, ::-1]
    if labels.shape != other.shape:
        return 0.0
    top = int(max(labels.max(), other.max())) + 1
    shares = [np.bincount(one.ravel(), minlength=top) / one.size for one in (labels, other)]
    chance = float(shares[0] @ shares[1])
    agreed = float((labels == other).mean())
    kappa = 0.0 if chance >= 1 else max(0.0, (agreed - chance) / (1 - chance))
    areas = answer["AREAS"].astype(float)
    confidence = float(areas @ answer["CONFIDENCE"]) / max(float(areas.sum()), 1.0)
    return kappa * confidence


def _objects_agree(answer: Answer, mirrored: Answer) -> float:
    """Return the scores of objects that have a match in the mirrored image, relative to the mean number of objects."""
    import numpy as np

    mine, theirs = with_columns("the image", answer), with_columns("the image", mirrored)
    width = float(answer["SIZE"][1])
    boxes, other = mine["BOXES"], theirs["BOXES"].copy()
    if not len(other):
        return 0.0
    other[:, [0, 2]] = width - other[:, [2, 0]]
    same = (_overlaps(boxes, other) > SAME_OBJECT_IOU) & (mine["CLASSES"][:, None] == theirs["CLASSES"][None])
    return float((mine["SCORES"] * same.any(axis=1)).sum() * 2 / (len(boxes) + len(other))) if np.any(same) else 0.0


def _overlaps(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others)]
    overlaps: NDArray[Any] = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
    return overlaps


def _label_map(answer: Answer) -> NDArray[Any]:
    """Return the label map, uint8 or uint16 (H, W), of a semantic answer with `encoding=raw`."""
    return read_labels(answer["LABELS"].item(), *answer["SIZE"].tolist())
