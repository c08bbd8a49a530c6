"""Writes the golden set, once every coin is cut out well enough, and the digests in model.yaml.

PYTHONPATH=examples/coins python examples/prompt/golden_clicks.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from make_golden import PHOTOGRAPH, TOLERANCE, masks_of
from score import truth

from segserve_builder.golden.judging import GOLDEN_FILE, record
from segserve_builder.sources.folder import folder_digest
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.prompts import PromptInputs
from segserve_common.files import file_sha256
from segserve_operator.api.documents import with_strings
from segserve_operator.api.loading import load
from segserve_operator.api.segmentation_model import SegmentationModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

HERE: Final = Path(__file__).parent
RESOURCE: Final = HERE / "model.yaml"
ENOUGH: Final = 0.9
"""IoU that one click or one box has to reach for each coin."""


def model() -> InProcessModel:
    """Return the example's model, run in this process by the steps that are served."""
    (resource,) = load(RESOURCE.read_text(), RESOURCE.name)
    assert isinstance(resource, SegmentationModel)
    pipeline = resource.spec.pipeline(resource.metadata.name)
    return InProcessModel(pipeline, HERE / "encoder.onnx", decoder=HERE / "decoder.onnx")


def coins() -> list[NDArray[np.bool_]]:
    """Return the mask (H, W) of each coin of the photograph."""
    labels = truth()
    return [labels == number for number in range(1, int(labels.max()) + 1)]


def click_on(coin: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the prompt of a click in a coin's middle."""
    return {"points": [[float(np.nonzero(coin)[axis].mean()) for axis in (1, 0)]]}


def box_around(coin: NDArray[np.bool_]) -> list[float]:
    """Return a coin's box as x1 y1 x2 y2."""
    rows, columns = np.nonzero(coin)
    return [float(side) for side in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def answers(served: InProcessModel, prompts: Sequence[dict[str, Any]]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the answer to each prompt about the photograph."""
    photograph = PHOTOGRAPH.read_bytes()
    raw = served.raw(served.network_input(photograph))
    for prompt in prompts:
        given = {"POINTS": prompt.get("points"), "PROMPT_BOXES": prompt.get("boxes")}
        tensors = {name: np.array(rows, np.float32) for name, rows in given.items() if rows}
        yield served.answer(photograph, RequestOptions(encoding="rle"), raw, PromptInputs.of(tensors))


def ious(served: InProcessModel) -> tuple[list[float], list[float]]:
    """Return the IoU of each coin by one click, and by one box."""
    clicked = [masks_of(each)[0] for each in answers(served, [click_on(coin) for coin in coins()])]
    (boxed,) = answers(served, [{"boxes": [box_around(coin) for coin in coins()]}])
    found = [
        [float((mask & coin).sum() / (mask | coin).sum()) for mask, coin in zip(masks, coins(), strict=True)]
        for masks in (clicked, [mask.astype(bool) for mask in masks_of(boxed)])
    ]
    return found[0], found[1]


def digests() -> dict[tuple[str, ...], str]:
    """Return what the digests of model.yaml have to be."""
    return {
        ("spec", "artifact", "sha256"): file_sha256(HERE / "encoder.onnx"),
        ("spec", "artifact", "provenance", "datasetSha256"): json.loads((HERE / "encoder.json").read_text())[
            "datasetSha256"
        ],
        ("spec", "decoder", "artifact", "sha256"): file_sha256(HERE / "decoder.onnx"),
        ("spec", "golden", "sha256"): folder_digest(HERE / "golden"),
    }


def main() -> None:
    """Write the golden set, a box around each coin, and then the digests."""
    served = model()
    for kind, found in zip(("click", "box"), ious(served), strict=True):
        print(f"by one {kind}: IoU {min(found):.3f} to {max(found):.3f}, mean {np.mean(found):.3f}")
        if min(found) < ENOUGH:
            raise SystemExit(f"a coin has an IoU of {min(found):.3f}: that is not good enough to be golden")
    prompt = {"boxes": [box_around(coin) for coin in coins()]}
    (answer,) = answers(served, [prompt])
    folder = HERE / "golden"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(PHOTOGRAPH, folder / PHOTOGRAPH.name)
    case = {**record(answer, PHOTOGRAPH.name, TOLERANCE), "prompt": prompt}
    (folder / GOLDEN_FILE).write_text(json.dumps({"cases": [case]}, indent=1) + "\n")
    RESOURCE.write_text(with_strings(RESOURCE.read_text(), digests()))


if __name__ == "__main__":
    main()
