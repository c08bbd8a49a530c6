"""The golden set of a new model, and previews of its answers for the user to check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from segserve.calls.answers import read_result
from segserve.results.result import Result
from segserve.results.values import ModelInfo, SegmentClass
from segserve_builder.export.writing import GOLDEN_TOLERANCE
from segserve_builder.golden.judging import GOLDEN_FILE, Answer, record
from segserve_builder.sources import folder_digest
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.public_outputs import has_masks
from segserve_common.kserve import InferAnswer, Tensor, pack_bytes
from segserve_operator.api.segmentation_model import SegmentationModel

IMAGES: Final = 3
DATATYPES: Final = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}


def write_golden(model: InProcessModel, images: Sequence[Path], folder: Path) -> tuple[str, list[tuple[Path, Answer]]]:
    """Write the answers to the first images as a golden set; return its digest, and the answers by image.

    Other files in the folder are kept.
    """

    request = RequestOptions(encoding="rle" if has_masks(model.task) else None)
    answers: list[tuple[Path, Answer]] = [
        (image, model.answer(image.read_bytes(), request)) for image in images[:IMAGES]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for image, answer in answers:
        shutil.copyfile(image, folder / image.name)
        cases.append(record(answer, image.name, GOLDEN_TOLERANCE))
    (folder / GOLDEN_FILE).write_text(json.dumps({"cases": cases}, indent=1) + "\n")
    return folder_digest(folder), answers


def write_previews(answers: Iterable[tuple[Path, Answer]], resource: SegmentationModel, folder: Path) -> list[Result]:
    """Draw each answer over its image, `folder/<stem>.png`; return the answers as results."""
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for image, answer in answers:
        result = result_of(answer, resource)
        result.overlay(image.read_bytes()).save(folder / f"{image.stem}.png")
        results.append(result)
    return results


def result_of(answer: Answer, resource: SegmentationModel) -> Result:
    """Return the result that the client would return for an answer."""

    revision = resource.assigned.revision
    tensors = {"REVISION": Tensor("REVISION", "BYTES", (1,), pack_bytes([revision.encode()]))}
    for name, array in answer.items():
        if array.dtype.kind == "O":
            items = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel()]
            tensors[name] = Tensor(name, "BYTES", array.shape, pack_bytes(items))
        else:
            tensors[name] = Tensor(name, DATATYPES[array.dtype.name], array.shape, array.tobytes())
    classes = tuple(SegmentClass(item.id, item.name, None) for item in resource.spec.classes)
    info = ModelInfo(resource.metadata.name, frozenset(tensors), revision, classes)
    return read_result(InferAnswer(info.model, tensors), info)
