"""Exports a network: the artifact, checked and optionally reduced, its golden set, and the spec that serves it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from segserve_builder.errors import ExportError
from segserve_builder.export.graph import (
    TOLERANCE,
    ExportShape,
    Preparation,
    answers,
    folded,
    largest_difference,
    write,
)
from segserve_builder.export.reducing import Reduction, reduce_precision
from segserve_builder.families.base import CHANNELS, Family
from segserve_builder.families.semantic_logits import SEMANTIC_LOGITS, SEMANTIC_PROBABILITIES
from segserve_builder.golden.judging import GOLDEN_FILE, GoldenTolerance, record
from segserve_builder.sources import folder_digest
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.resize import Resize
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.public_outputs import has_masks
from segserve_common.files import file_sha256

GOLDEN_IMAGES: Final = 3
EXAMPLE_SIDE: Final = 256
GOLDEN_TOLERANCE: Final = GoldenTolerance(iou=0.98, score=0.02)


@dataclass(frozen=True)
class ExportPlan:
    """The model and the input of an export.

    `resize` fits images to the network's input; where it fixes no size, sides are multiples of `multiple_of`.
    """

    name: str
    family: Family
    classes: tuple[str, ...]
    preparation: Preparation
    resize: Resize
    multiple_of: int
    colour: Literal["RGB", "BGR", "GREY"]
    precision: Literal["fp32", "fp16", "int8"]

    @property
    def shape(self) -> ExportShape:
        """The input of the file."""
        side = -(-EXAMPLE_SIDE // self.multiple_of) * self.multiple_of
        fixed = self.resize.fixed_size
        height, width = fixed or (side, side)
        return ExportShape(height, width, CHANNELS[self.colour], free_size=fixed is None)

    def spec(self, sha256: str, golden_sha256: str) -> dict[str, Any]:
        """Return the spec of the resource that serves the file."""
        resize = self.resize.model_dump(by_alias=True, exclude_unset=True)
        return {
            "artifact": {"uri": f"{self.name}.onnx", "sha256": sha256},
            "family": self.family.name,
            "input": {"colour": self.colour},
            "classes": [{"id": number, "name": name} for number, name in enumerate(self.classes)],
            "preprocess": [{"decode": {}}, {"resize": resize}],
            "golden": {"uri": "golden", "sha256": golden_sha256},
        }

    def pipeline(self, sha256: str) -> Pipeline:
        """Return the pipeline around the file."""
        spec = self.spec(sha256, "")
        parts = {key: spec[key] for key in ("family", "input", "classes", "preprocess")}
        fixed = {"model": self.name, "artifactSha256": sha256, "postprocess": [], "output": {}, "runtime": {}}
        return Pipeline.model_validate(fixed | parts)


@dataclass(frozen=True)
class ExportResult:
    """The result of an export: the spec of its resource, and the outcome of the checks."""

    spec: dict[str, Any]
    difference: float
    size_bytes: int
    reduction: Reduction | None


def make(
    module: Any,
    plan: ExportPlan,
    images: Sequence[Path],
    labels: Mapping[str, Path],
    folder: Path,
    max_loss: float | None = None,
) -> ExportResult:
    """Write `<name>.onnx` and `golden/` into `folder`.

    `labels` are label PNGs by the stem of their image, of its size. Raises `ExportError` if the file does not answer as
    the network does, `PrecisionError` as `reduce_precision` does, and the errors of the pipeline's own steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, full = folder / f"{plan.name}.onnx", folder / f"{plan.name}.fp32.onnx"
    network = folded(module, plan.family, plan.preparation)
    try:
        write(network, plan.family, plan.shape, full)
        original = InProcessModel(plan.pipeline(file_sha256(full)), full)
        batches = [original.network_input(image.read_bytes()).tensor for image in images]
        import numpy as np

        if not plan.family.batched:
            tried = list(batches)
        else:
            tried = [*batches, np.concatenate([batches[0], batches[0][..., ::-1]])]
        difference = largest_difference(answers(network, tried), full, tried, batched=plan.family.batched)
        if difference > TOLERANCE:
            raise ExportError(
                f"the file's outputs differ from the network's by {difference:.2g} of their range; "
                f"at most {TOLERANCE:g} is allowed"
            )
        if plan.family is SEMANTIC_LOGITS:
            _refuse_probabilities(original, images[:GOLDEN_IMAGES])
        reduction = None
        if plan.precision == "fp32":
            shutil.move(full, target)
        else:
            reduction = reduce_precision(original, target, plan.precision, images, labels=labels, max_loss=max_loss)
    finally:
        full.unlink(missing_ok=True)
    served = InProcessModel(original.pipeline, target)
    golden_sha256 = _write_golden(served, images[:GOLDEN_IMAGES], folder / "golden")
    spec = plan.spec(file_sha256(target), golden_sha256)
    return ExportResult(spec, difference, target.stat().st_size, reduction)


def _refuse_probabilities(model: InProcessModel, images: Sequence[Path]) -> None:
    """Raise `ExportError` if what should be logits is within 0 and 1 for all images."""
    outputs = (model.raw(model.network_input(image.read_bytes())) for image in images)
    if all(array.min() >= 0 and array.max() <= 1 for one in outputs for array in one.values()):
        raise ExportError(
            "all values for your images are within 0 and 1, so they are probabilities and no logits: use --family "
            f"{SEMANTIC_PROBABILITIES.name}"
        )


def _write_golden(model: InProcessModel, images: Sequence[Path], folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    request = RequestOptions(encoding="rle" if has_masks(model.task) else None)
    cases = []
    for image in images:
        shutil.copyfile(image, folder / image.name)
        cases.append(record(model.answer(image.read_bytes(), request), image.name, GOLDEN_TOLERANCE))
    (folder / GOLDEN_FILE).write_text(json.dumps({"cases": cases}, indent=1) + "\n")
    return folder_digest(folder)
