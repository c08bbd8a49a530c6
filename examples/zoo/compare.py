"""One way to serve a network: its figures by the real path, and the same offline."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import tritonclient.grpc as triton
from PIL import Image

from examples.zoo import offline
from examples.zoo.calibration import pixel_logits, scored
from examples.zoo.evaluate import Found, instance_figures, semantic_figures
from examples.zoo.offline import Network
from examples.zoo.variants import AS_IT_IS
from segserve import Client, InstanceResult, SemanticResult
from segserve_builder.golden.calibration import confidence_and_correct, expected_calibration_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from examples.zoo.variants import Answer, Variant
    from examples.zoo.world import Scene
    from segserve import Result

TOLERANCE: Final = 0.003
"""How far a figure of 0..1 may be from the same one offline."""
PIXELS: Final = {"CRF": 1e-3}
PIXELS_ELSE: Final = 2e-4
"""Which part of the pixels may have another label: ties, where ONNX Runtime and torch round differently."""
CERTAIN: Final = (AS_IT_IS, "calibrated")
"""The variants of semantic networks that are asked how sure they are."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The figures as served and offline, and which part of the pixels had another label (None for instances)."""

    served: dict[str, float]
    offline: dict[str, float]
    other_pixels: float | None

    def complaints(self, name: str) -> list[str]:
        """Return what of the variant called `name` does not agree."""
        most, found = PIXELS.get(name, PIXELS_ELSE), list[str]()
        if self.other_pixels is not None and self.other_pixels > most:
            found.append(f"{self.other_pixels:.2e} of the pixels differ; {most} may")
        for figure, value in self.served.items():
            # Counts are not of 0..1: a region more or less is one of many.
            if abs(value - self.offline[figure]) > TOLERANCE * max(1.0, abs(value)):
                found.append(f"{figure} is {value:.4f} served and {self.offline[figure]:.4f} offline")
        return found


def ask(
    url: str, variant: Variant, network: str, scenes: Sequence[Scene], least_score: float | None = None
) -> list[Result]:
    """Return the served answers to scenes, with another score threshold than the variant's where one is given."""
    options: dict[str, Any] = {"confidence": True} if variant.semantic else {"score_threshold": least_score}
    with Client(url) as client:
        return [client.segment(_png(scene), model=variant.model(network), **options) for scene in scenes]


def compare(url: str, variant: Variant, network: str, scenes: Sequence[Scene], results: Sequence[Result]) -> Compared:
    """Compare served answers with the same offline; `url` is asked for what answers do not tell: logits."""
    module = Network(network)
    plain = [variant.answer(module, module.view(scene.image)) for scene in scenes]
    answers = [_answer_of(result, network) for result in results]
    if not variant.semantic:
        served, own = (instance_figures(found, scenes) for found in (answers, plain))
        served["ECE"] = expected_calibration_error(*scored(answers, scenes))
        own["ECE"] = offline.expected_calibration_error(*map(torch.from_numpy, scored(plain, scenes)))
        return Compared(served, own, None)
    served, own = (semantic_figures(labels, scenes) for labels in (answers, plain))
    if variant.name in CERTAIN:
        served |= _served_certainty(url, network, variant, scenes) | {"confidence": _mean_confidence(results)}
        own |= _certainty(module, variant, scenes)
    differ = sum(np.count_nonzero(one != other) for one, other in zip(answers, plain, strict=True))
    return Compared(served, own, differ / sum(one.size for one in plain))


def _png(scene: Scene) -> bytes:
    buffer = BytesIO()
    Image.fromarray(scene.image).save(buffer, "PNG")
    return buffer.getvalue()


def _answer_of(result: Result, network: str) -> Answer:
    if isinstance(result, SemanticResult):
        return result.labels
    assert isinstance(result, InstanceResult)
    # A YOLO head counts its classes from 0; a query may have found the ground, which is no object.
    shift = 1 if network == "yolo-seg" else 0
    found = [Found(one.class_id + shift, one.score, one.rle["counts"]) for one in result]
    return [one for one in found if one.class_id]


def _mean_confidence(results: Sequence[Result]) -> float:
    """Return the mean probability of a pixel's label, of what the answers say of each class."""
    parts = [one for one in results if isinstance(one, SemanticResult)]
    sums = [one.areas[name] * (one.confidence or {})[name] for one in parts for name in one.areas]
    return float(sum(sums) / sum(one.labels.size for one in parts))


def _served_certainty(url: str, network: str, variant: Variant, scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the ECE of the pixels, from the logits of the bare network as served."""
    module, remote = Network(network), triton.InferenceServerClient(url.removeprefix("http://"))
    logits = []
    for scene in scenes:
        view = module.view(scene.image)
        batch = view.pixels[None] if network == "segformer" else view.pixels.transpose(2, 0, 1)[None]
        image = triton.InferInput("image", batch.shape, "UINT8")
        image.set_data_from_numpy(np.ascontiguousarray(batch))
        answer: NDArray[Any] = remote.infer(f"zoo-{network}.network", [image]).as_numpy("logits")
        logits.append(pixel_logits(torch.from_numpy(answer[0].copy()), view))
    sure = confidence_and_correct(np.concatenate(logits), _labels(scenes), variant.temperature)
    return {"ECE": expected_calibration_error(*sure)}


def _certainty(module: Network, variant: Variant, scenes: Sequence[Scene]) -> dict[str, float]:
    views = [module.view(scene.image) for scene in scenes]
    logits = np.concatenate([pixel_logits(module.run(view.pixels)[0], view) for view in views])
    sure, best = (torch.from_numpy(logits).double() / variant.temperature).softmax(1).max(1)
    right = best == torch.from_numpy(_labels(scenes).astype(np.int64))
    return {"ECE": offline.expected_calibration_error(sure, right), "confidence": float(sure.mean())}


def _labels(scenes: Sequence[Scene]) -> NDArray[np.uint8]:
    return np.concatenate([scene.labels.reshape(-1) for scene in scenes])
