"""Writes the golden sets of the models, once their answers have been checked against the truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from in_process import in_process, resources
from score import InstanceScore, SemanticScore, score_instances, score_semantic, truth

from segserve.results.masks import EncodedMask
from segserve_builder.golden.judging import GOLDEN_FILE, GoldenTolerance, record
from segserve_builder.stages.base import RequestOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

HERE = Path(__file__).parent
PHOTOGRAPH = HERE / "coins.png"
# Another CPU or ONNX Runtime moves single pixels along the edges; a wrong answer moves many.
TOLERANCE = GoldenTolerance(iou=0.98, score=0.02)


def masks_of(answer: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the masks (H, W) of an answer that was asked for as RLE."""
    height, width = (int(number) for number in answer["SIZE"])
    return [EncodedMask(bytes(counts), height, width).bitmap for counts in answer["MASKS"]]


def score_of(answer: Mapping[str, NDArray[Any]]) -> SemanticScore | InstanceScore:
    """Score an answer to the photograph that was asked for as RLE."""
    masks = masks_of(answer)
    if "SCORES" in answer:
        return score_instances(masks, truth())
    return score_semantic(masks[answer["CLASSES"].tolist().index(1)], truth())


def main() -> None:
    """Write the golden set of each model of model.yaml; an answer that is not good enough stops it."""
    for name, resource in resources().items():
        answer = in_process(resource).answer(PHOTOGRAPH.read_bytes(), RequestOptions(encoding="rle"))
        score = score_of(answer)
        print(f"{name}: {score}")
        if not score.good:
            raise SystemExit(f"{name}: the answer is not good enough to be golden")
        if resource.spec.golden is None:
            raise SystemExit(f"{name}: model.yaml names no golden set")
        folder = HERE / resource.spec.golden.uri
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PHOTOGRAPH, folder / PHOTOGRAPH.name)
        golden = {"cases": [record(answer, PHOTOGRAPH.name, TOLERANCE)]}
        (folder / GOLDEN_FILE).write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
