"""Each network of the zoo with and without optional stages: what is served, and the same in plain torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import yaml

from examples.zoo import calibration, offline
from examples.zoo.training import HERE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from examples.zoo.offline import Network, View

    # A label map (H, W), or instances.
    Answer: TypeAlias = Any

RESOURCES: Final = HERE / "zoo.yaml"
SEMANTIC: Final = ("unet", "attention-unet", "unet-plus-plus", "deeplab", "pspnet", "segformer")
LEAST_SCORE, NMS_IOU = 0.1, 0.6  # as in zoo.yaml
SPECK: Final = 10  # pixels; the smallest shapes of the world have 12
CRF: Final = {
    "iterations": 5,
    "bilateralSxy": 20.0,
    "bilateralRgb": 10.0,
    "bilateralWeight": 4.0,
    "gaussianSxy": 1.0,
    "gaussianWeight": 1.0,
}
"""Weaker and nearer than the defaults, which are made for images four times as wide."""
AS_IT_IS: Final = "as it is"


@dataclass(frozen=True)
class Variant:
    """One way to serve a network: what changes in its resource, and the same answer by plain means."""

    name: str
    answer: Callable[[Network, View], Answer]
    postprocess: Sequence[Mapping[str, Any]]
    inference: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    temperature: float = 1.0

    @property
    def semantic(self) -> bool:
        """Whether it gives label maps."""
        return any("argmax" in stage for stage in self.postprocess)

    def resource(self, network: str) -> dict[str, Any]:
        """Return the resource to serve, with an absolute URI."""
        document = copy.deepcopy(documents()[f"zoo-{network}"])
        document["metadata"]["name"] = self.model(network)
        spec = document["spec"]
        spec["artifact"]["uri"] = (HERE / spec["artifact"]["uri"]).resolve().as_uri()
        spec["postprocess"] = list(self.postprocess)
        if self.name != AS_IT_IS:
            spec["expose"] = []
        if self.inference:
            spec["inference"] = list(self.inference)
        return document

    def model(self, network: str) -> str:
        """Return the name that it is served under."""
        suffix = "" if self.name == AS_IT_IS else "-" + self.name.lower().replace(" ", "-")
        return f"zoo-{network}{suffix}"


def documents() -> dict[str, dict[str, Any]]:
    """Return the resources of zoo.yaml by name."""
    return {document["metadata"]["name"]: document for document in yaml.safe_load_all(RESOURCES.read_text())}


def variants(network: str) -> tuple[Variant, ...]:
    """Return all ways in which the named network is served for the report; the first is as zoo.yaml has it."""
    if network in SEMANTIC:
        return _semantic(calibration.semantic_temperature(offline.Network(network)))
    return {"yolo-seg": _yolo_seg, "mask-rcnn": _mask_rcnn, "maskformer": _maskformer}[network]()


def _semantic(temperature: float) -> tuple[Variant, ...]:
    specks, argmax = {"removeSmallRegions": {"minArea": SPECK}}, {"argmax": {}}

    def plain(network: Network, view: View) -> Answer:
        return offline.labels_of(network.run(view.pixels)[0], view)

    def cleaned(network: Network, view: View) -> Answer:
        return offline.without_specks(offline.labels_of(network.run(view.pixels)[0], view), SPECK)

    def with_crf(network: Network, view: View) -> Answer:
        refined = offline.refined(network.run(view.pixels)[0], view, CRF)
        inner = offline.resized(refined, view.height, view.width)
        return offline.argmax(inner)

    def flipped(network: Network, view: View) -> Answer:
        return offline.labels_of(offline.flipped_mean(network, view), view)

    flips = {"tta": {"flips": ["horizontal", "vertical", "both"]}}
    return (
        Variant(AS_IT_IS, plain, [argmax]),
        Variant("components", cleaned, [argmax, specks]),
        Variant("CRF", with_crf, [{"crf": CRF}, argmax]),
        Variant("TTA", flipped, [argmax], [flips]),
        Variant("calibrated", plain, [_calibrate(temperature), argmax], temperature=temperature),
    )


def _yolo_seg() -> tuple[Variant, ...]:
    stages = [{"scoreThreshold": {"threshold": LEAST_SCORE}}, {"nms": {"iouThreshold": NMS_IOU}}, {"cropMasks": {}}]

    def found(network: Network, view: View) -> list[tuple[int, float, NDArray[Any]]]:
        return offline.yolo_instances(network, view, LEAST_SCORE, NMS_IOU)

    # The network counts its classes from 0, and has none for the ground.
    return _calibrated("yolo-seg", _instances(stages, found, shift=1))


def _mask_rcnn() -> tuple[Variant, ...]:
    stages = [{"scoreThreshold": {"threshold": LEAST_SCORE}}, {"pasteMasks": {}}]

    def found(network: Network, view: View) -> list[tuple[int, float, NDArray[Any]]]:
        return offline.mask_rcnn_instances(network, view, LEAST_SCORE)

    return _calibrated("mask-rcnn", _instances(stages, found))


def _maskformer() -> tuple[Variant, ...]:
    def found(network: Network, view: View) -> list[tuple[int, float, NDArray[Any]]]:
        return offline.query_instances(network, view, LEAST_SCORE)

    def labels(network: Network, view: View) -> Answer:
        return offline.query_labels(network, view)

    def cleaned(network: Network, view: View) -> Answer:
        return offline.without_specks(offline.query_labels(network, view), SPECK)

    semantic: list[dict[str, Any]] = [{"semanticQueries": {}}, {"argmax": {}}]
    return (
        *_instances([{"instanceQueries": {"threshold": LEAST_SCORE}}], found),
        Variant("semantic", labels, semantic),
        Variant("semantic components", cleaned, [*semantic, {"removeSmallRegions": {"minArea": SPECK}}]),
    )


def _instances(
    stages: list[dict[str, Any]],
    found: Callable[[Network, View], list[tuple[int, float, NDArray[Any]]]],
    shift: int = 0,
) -> tuple[Variant, ...]:
    def answer(network: Network, view: View, least: int) -> Answer:
        shifted = [(class_id + shift, score, mask) for class_id, score, mask in found(network, view)]
        return offline.as_found([one for one in shifted if one[0]], least)

    return (
        Variant(AS_IT_IS, lambda network, view: answer(network, view, 1), stages),
        Variant(
            "components",
            lambda network, view: answer(network, view, SPECK),
            [*stages, {"removeSmallRegions": {"minArea": SPECK}}],
        ),
    )


def _calibrated(network: str, known: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Add the variant whose scores are calibrated, once masks are not yet made."""
    plain = known[0]
    temperature = calibration.instance_temperature(offline.Network(network), plain)

    def answer(network: Network, view: View) -> Answer:
        return [replace(one, score=offline.cooled(one.score, temperature)) for one in plain.answer(network, view)]

    *before, masks = plain.postprocess
    stages = [*before, _calibrate(temperature), masks]
    return (*known, Variant("calibrated", answer, stages, temperature=temperature))


def _calibrate(temperature: float) -> dict[str, Any]:
    return {"calibrate": {"temperature": temperature}}
