"""The files of a new model: the resource with remarks as comments, the golden set, and previews of its answers."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from segserve.calls.answers import read_result
from segserve.results.result import Result
from segserve.results.values import ModelInfo, SegmentClass
from segserve_builder.export.writing import GOLDEN_TOLERANCE
from segserve_builder.golden.judging import GOLDEN_FILE, Answer, GoldenPrompt, record
from segserve_builder.sources import folder_digest
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.prompts import NO_PROMPT, PromptInputs
from segserve_builder.steps.public_outputs import has_masks
from segserve_common.kserve import InferAnswer, Tensor, pack_bytes
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.cli.init.network import Progress, Remark, no_progress

IMAGES: Final = 3
DATATYPES: Final = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}
WIDTH: Final = 110
CHECK: Final = "CHECK: "
SHOWN: Final = frozenset({"threshold", "iouThreshold", "scoreThreshold", "maskThreshold"})
"""Options that are written even with their default values, since users change them first."""


def manifest_of(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resource; raises `SpecError` if applying it would be refused."""
    from segserve_operator.api.loading import parse

    manifest = {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": {"name": name},
        "spec": dict(spec),
    }
    parse(manifest, "the resource")
    return manifest


def listed(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return stages as a resource lists them, without options at their default, except for thresholds."""
    from segserve_builder.stages import POSTPROCESS

    names = {stage: name for name, stage in POSTPROCESS.items()}
    return [{names[type(stage)]: _options(stage)} for stage in stages]


def _options(stage: Stage) -> dict[str, Any]:
    every = stage.model_dump(mode="json", by_alias=True, exclude_none=True)
    changed = stage.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return {key: value for key, value in every.items() if key in changed or key in SHOWN}


def commented(manifest: Mapping[str, Any], remarks: Iterable[Remark], head: Sequence[str]) -> str:
    """Return the resource as YAML: `head` as comments first, and each remark as comments above its field."""
    from segserve_operator.api.documents import read_documents, write_documents

    text = write_documents([manifest])
    (document,) = read_documents(text, "the resource")
    above: dict[int, list[str]] = {}
    for remark in remarks:
        mark = document.keys.get(remark.place) or document.nodes[remark.place].start_mark
        comment = remark.text if remark.sure else f"{CHECK}{remark.text}"
        # The first key of a list's item stands behind its dash.
        indent = mark.column - 2 if isinstance(remark.place[-1], int) else mark.column
        above.setdefault(mark.line, []).extend(_comment(comment, indent))
    lines = [line for text in head for line in _comment(text, 0)]
    for number, line in enumerate(text.splitlines()):
        lines += [*above.get(number, ()), line]
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: int) -> list[str]:
    lead = f"{' ' * indent}# "
    lines = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, WIDTH, initial_indent=lead, subsequent_indent=lead, break_long_words=False)
    return lines


def golden_answers(
    model: InProcessModel, images: Sequence[Path], progress: Progress = no_progress
) -> list[tuple[Path, Answer]]:
    """Return the answers to the first images, by image; raises what the pipeline does."""
    request = RequestOptions(encoding="rle" if has_masks(model.task) else None)
    prompted = model.pipeline.decoder is not None
    answers: list[tuple[Path, Answer]] = []
    for number, image in enumerate(images[:IMAGES], 1):
        progress(f"golden image {number} of {len(images[:IMAGES])}")
        data, prompt = image.read_bytes(), NO_PROMPT
        if prompted:
            shown = model.network_input(data).transform
            prompt = PromptInputs.of_request({}, {**_middle(shown.height, shown.width).parameters()})
        answers.append((image, model.answer(data, request, prompt=prompt)))
    return answers


def _middle(height: int, width: int) -> GoldenPrompt:
    """Return the prompt of a recorded image of a promptable model."""
    return GoldenPrompt(points=((width / 2, height / 2),))


def write_golden(answers: Iterable[tuple[Path, Answer]], folder: Path, *, prompted: bool = False) -> str:
    """Write answers as a golden set and return its digest; other files in the folder are kept.

    The answers of a promptable model are to a click in the middle of each image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for image, answer in answers:
        # A name that is not UTF-8, as of a ZIP from Windows, is written in ASCII: servers list names as UTF-8.
        name = os.fsencode(image.name).decode(errors="backslashreplace").replace("\\x", "-x")
        shutil.copyfile(image, folder / name)
        case = record(answer, name, GOLDEN_TOLERANCE)
        if prompted:
            case["prompt"] = _middle(*answer["SIZE"].tolist()).model_dump(mode="json", exclude_none=True)
        cases.append(case)
    (folder / GOLDEN_FILE).write_text(json.dumps({"cases": cases}, indent=1) + "\n")
    return folder_digest(folder)


def write_previews(answers: Iterable[tuple[Path, Answer]], resource: SegmentationModel, folder: Path) -> list[Result]:
    """Draw each answer over its image, `folder/<stem>.png` (`folder/<name>.png` if that is taken); return results."""
    folder.mkdir(parents=True, exist_ok=True)
    results, taken = list[Result](), set[str]()
    for image, answer in answers:
        result = result_of(answer, resource)
        name = image.name if image.stem in taken else image.stem
        taken.add(name)
        result.overlay(image.read_bytes()).save(folder / f"{name}.png")
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
    limit = resource.spec.pipeline(resource.metadata.name).max_detections
    info = ModelInfo(resource.metadata.name, frozenset(tensors), revision, classes, max_detections=limit)
    return read_result(InferAnswer(info.model, tensors), info)
