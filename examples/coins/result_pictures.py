"""Draws docs/images/result-*.png, a picture of every kind of result: `python examples/coins/result_pictures.py`.

The answers are those of the example's trained networks, run in this process. No example has a trained network for boxes
or keypoints alone: their pictures show the boxes of the instances, and points that are found in their masks.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from in_process import RESOURCES, in_process, resources
from PIL import Image

from segserve import Detection, DetectionResult, InstanceResult, KeypointDetection, KeypointResult
from segserve.calls.answers import read_model_info, read_result
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_common.kserve import InferAnswer, Tensor
from segserve_operator.api.segmentation_model import SegmentationModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve import Result

HERE: Final = RESOURCES.parent
IMAGES: Final = HERE.parents[1] / "docs/images"
PHOTOGRAPH: Final = HERE / "coins.png"
GAP: Final = 6


def result_of(resource: SegmentationModel, model: InProcessModel) -> Result:
    """Return a model's answer to the photograph as the client reads it."""
    arrays = {"REVISION": np.array([b"coins-example"], object)}
    arrays |= model.answer(PHOTOGRAPH.read_bytes(), RequestOptions())
    classes = json.dumps([{"id": known.id, "name": known.name} for known in resource.spec.classes])
    info = read_model_info(resource.metadata.name, arrays, {"classes": classes})
    tensors = {name: tensor(name, array) for name, array in arrays.items()}
    return read_result(InferAnswer(info.model, tensors), info)


def tensor(name: str, array: NDArray[Any]) -> Tensor:
    return Tensor.of_items(name, array.tolist()) if array.dtype == object else Tensor.of_array(name, array)


def both(known: Mapping[str, SegmentationModel]) -> Result:
    """Return what the two networks answer as one panoptic model: the background of one, the coins of the other."""
    instances = known["coins-instances"].model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]
    document = known["coins"].model_dump(mode="json", by_alias=True, exclude_none=True)
    document["metadata"]["name"] = "both"
    document["spec"] |= {
        "preprocess": instances["preprocess"],
        "postprocess": [{"argmax": {}}, {"panopticFusion": {"stuffArea": 1000}}],
        "classes": [{"id": 0, "name": "table"}, {"id": 1, "name": "coin", "thing": True}],
        "instances": {key: instances[key] for key in ("artifact", "family", "postprocess")},
    }
    del document["spec"]["golden"]
    resource = SegmentationModel.model_validate(document)
    networks = [HERE / known[name].spec.artifact.uri for name in ("coins", "coins-instances")]
    return result_of(resource, InProcessModel(resource.spec.pipeline("both"), *networks))


def boxes(coins: InstanceResult) -> DetectionResult:
    found = tuple(Detection(one.box, one.score, one.class_id, one.class_name) for one in coins)
    return DetectionResult(coins.model, coins.revision, coins.size, coins.classes, found)


def extremes(coins: InstanceResult) -> KeypointResult:
    """Return the leftmost, topmost, rightmost and lowest point of each mask, and its middle."""
    found = []
    for one in coins:
        rows, columns = np.nonzero(one.mask)
        ends = [columns.argmin(), rows.argmin(), columns.argmax(), rows.argmax()]
        points = [(columns[end], rows[end], 1.0) for end in ends]
        points.append((columns.mean(), rows.mean(), 1.0))
        own = np.array(points, np.float32)
        found.append(KeypointDetection(one.box, one.score, one.class_id, one.class_name, own))
    return KeypointResult(coins.model, coins.revision, coins.size, coins.classes, tuple(found))


def save(name: str, *pictures: Image.Image) -> None:
    """Write pictures side by side."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    path = IMAGES / f"result-{name}.png"
    # Few pixels have the colours that matter; the palette must have them nevertheless.
    drawn = sheet.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    drawn.save(path, optimize=True)


def on_checks(cut_out: Image.Image) -> Image.Image:
    """Return a picture with transparency on the chequered ground that stands for it."""
    rows, columns = np.indices((cut_out.height, cut_out.width)) // 6
    grey = np.where((rows + columns) % 2, 255, 205).astype(np.uint8)
    ground = Image.fromarray(grey).convert("RGBA")
    return Image.alpha_composite(ground, cut_out).convert("RGB")


def main() -> None:
    known = resources()
    found = {name: result_of(known[name], in_process(known[name])) for name in ("coins", "coins-instances")}
    coins = found["coins-instances"]
    if not isinstance(coins, InstanceResult):
        raise TypeError(f"coins-instances answers instances, got {coins!r}")
    panoptic = both(known)
    save("semantic", found["coins"].overlay(PHOTOGRAPH), found["coins"].overlay(PHOTOGRAPH, alpha=0))
    save("instance", coins.overlay(PHOTOGRAPH), coins.overlay(PHOTOGRAPH, legend=True, labels=False))
    save("panoptic", panoptic.overlay(PHOTOGRAPH))
    save("detection", boxes(coins).overlay(PHOTOGRAPH))
    save("keypoints", extremes(coins).overlay(PHOTOGRAPH, labels=False))
    crops = [coins.crop(index, PHOTOGRAPH, margin=4) for index in range(4)]
    cut_outs = [on_checks(coins.crop(index, PHOTOGRAPH, margin=4, cut_out=True)) for index in range(4)]
    save("crops", *crops, *cut_outs)
    print(*(f"{result!r}" for result in (*found.values(), panoptic)), sep="\n")


if __name__ == "__main__":
    main()
