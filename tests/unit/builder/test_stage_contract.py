"""What every registered stage and family must keep to; a new one is tested by being registered."""

from __future__ import annotations

import importlib
import io
import pkgutil
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from fakes.offenders import offenders
from segserve_builder import families, stages
from segserve_builder.families import FAMILIES
from segserve_builder.stages import INFERENCE, POSTPROCESS, PREPROCESS
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.stages.resize import Resize
from segserve_builder.values import (
    CANDIDATES,
    Anchors,
    Candidates,
    ClassMasks,
    Encoded,
    Heads,
    HeatmapHeads,
    Image,
    Instances,
    KeypointDetections,
    LabelMap,
    Logits,
    MaskHeads,
    NoHeads,
    Panoptic,
    PointHeads,
    PrototypeHeads,
    Queries,
    ResizeTransform,
    RotatedHeads,
    ValueType,
)

CALLED = PREPROCESS | POSTPROCESS
STAGES = CALLED | INFERENCE
SHARED = {"base", "network_inputs", "signature"}
OPTIONS = {Resize: {"mode": "letterbox", "size": 8}}  # of stages whose required options depend on each other


def minimal_options(stage: type[Stage]) -> dict[str, Any]:
    """The least valid value of every required option, read from its schema."""
    if stage in OPTIONS:
        return OPTIONS[stage]
    schema = stage.model_json_schema()
    required = {name: schema["properties"][name] for name in schema.get("required", [])}
    return {name: field["enum"][0] if "enum" in field else field.get("minimum", 1) for name, field in required.items()}


def encoded(height: int, width: int) -> Encoded:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((height, width, 3), 77, np.uint8)).save(buffer, "PNG")
    return Encoded(buffer.getvalue(), "RGB", "UINT8", 10_000)


def image(height: int, width: int) -> Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image(pixels, ResizeTransform.of(height, width))


def logits(height: int, width: int, channels: int = 3) -> Logits:
    values = np.random.default_rng(0).normal(size=(channels, height, width)).astype(np.float32)
    guide = np.random.default_rng(3).integers(0, 256, (height, width, 3)).astype(np.uint8)
    transform = ResizeTransform(2 * height, 2 * width, 0, 0, height, width, height, width)
    return Logits(values, transform, things=frozenset({1}), guide=guide)


def labels(height: int, width: int, dtype: type = np.uint8) -> LabelMap:
    found = np.random.default_rng(0).integers(0, 3, (2 * height, 2 * width)).astype(dtype)
    return LabelMap(found, logits(height, width))


def detections(n: int, height: int, width: int, heads: Heads) -> Candidates:
    rng = np.random.default_rng(0)
    corner = rng.random((n, 2)) * (width / 2, height / 2)
    boxes = np.concatenate([corner, corner + rng.random((n, 2)) * (width, height)], axis=1).astype(np.float32)
    return Candidates(
        boxes,
        rng.random(n).astype(np.float32),
        rng.integers(0, 2, n).astype(np.int32),
        heads,
        ResizeTransform(height, width, 1, 2, 4 * height, 4 * width, 4 * height + 3, 4 * width + 5),
    )


def boxes(n: int, height: int, width: int) -> Candidates:
    return detections(n, height, width, NoHeads())


def prototypes(n: int, height: int, width: int) -> Candidates:
    return detections(n, height, width, PrototypeHeads(noise(n, 4), noise(4, height, width)))


def mask_heads(n: int, height: int, width: int) -> Candidates:
    return detections(n, height, width, MaskHeads(1 / (1 + np.exp(-noise(n, 7, 7)))))


def heatmaps(n: int, height: int, width: int) -> Candidates:
    return detections(n, height, width, HeatmapHeads(noise(n, 3, 6, 6)))


def points(n: int, height: int, width: int) -> Candidates:
    return detections(n, height, width, PointHeads(noise(n, 5, 3)))


def rotated(n: int, height: int, width: int) -> Candidates:
    return detections(n, height, width, RotatedHeads(np.abs(noise(n, 5)) * np.float32(max(height, width))))


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def anchors(n: int, height: int, width: int) -> Anchors:
    transform = boxes(0, height, width).transform
    return Anchors(
        noise(n, 3), noise(n, 4), detections(n, height, width, NoHeads()).boxes, (n // 2, n - n // 2), transform
    )


def queries(n: int, height: int, width: int) -> Queries:
    centres = np.random.default_rng(2).random((n, 4)).astype(np.float32)
    transform = boxes(0, height, width).transform
    return Queries(3 * noise(n, 4), 5 * noise(n, height, width), centres, frozenset({1, 2}), transform)


def instances(n: int, height: int, width: int) -> Instances:
    from segserve_builder.kernels.rle import encode_bitmap

    rng = np.random.default_rng(0)
    masks = tuple(encode_bitmap((rng.random((height, width)) < i / max(n - 1, 1)).astype(np.uint8)) for i in range(n))
    some = boxes(n, height, width)
    return Instances(some.boxes, some.scores, some.classes, masks, height, width)


SAMPLES = {
    ValueType.ENCODED: {"one pixel": encoded(1, 1), "an image": encoded(9, 13)},
    ValueType.IMAGE: {"one pixel": image(1, 1), "an image": image(9, 13)},
    ValueType.LOGITS: {"one cell": logits(1, 1), "logits": logits(9, 13), "one channel": logits(9, 13, 1)},
    ValueType.LABELS: {"four pixels": labels(1, 1), "labels": labels(9, 13), "16 bit": labels(9, 13, np.uint16)},
} | {
    kind: {"none": make(0, 9, 13), "one pixel": make(2, 1, 1), "some": make(20, 9, 13)}
    for kind, make in {
        ValueType.ANCHORS: anchors,
        ValueType.BOXES: boxes,
        ValueType.PROTOTYPES: prototypes,
        ValueType.MASK_HEADS: mask_heads,
        ValueType.HEATMAPS: heatmaps,
        ValueType.POINTS: points,
        ValueType.ROTATED: rotated,
        ValueType.QUERIES: queries,
        ValueType.INSTANCES: instances,
    }.items()
}
TYPES = {
    ValueType.ENCODED: Encoded,
    ValueType.IMAGE: Image,
    ValueType.LOGITS: Logits,
    ValueType.LABELS: LabelMap,
    ValueType.CLASS_MASKS: ClassMasks,
    ValueType.ANCHORS: Anchors,
    **dict.fromkeys(CANDIDATES, Candidates),
    ValueType.QUERIES: Queries,
    ValueType.INSTANCES: Instances,
    ValueType.KEYPOINTS: KeypointDetections,
    ValueType.PANOPTIC: Panoptic,
}
CASES = [
    pytest.param(CALLED[name], kind, SAMPLES[kind][sample], id=f"{name} on {sample}")
    for name in CALLED
    for kind in sorted(CALLED[name].takes)
    for sample in SAMPLES[kind]
]


def awkward(value: Any) -> Any:
    """The same value with read-only arrays that are not contiguous."""
    if isinstance(value, np.ndarray):
        wide = np.repeat(value, 2, axis=-1)[..., ::2]
        wide.setflags(write=False)
        return wide
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: awkward(getattr(value, field.name)) for field in fields(value)})
    return value


def plain(value: Any) -> Any:
    """The value as nested tuples and lists, with the arrays' types."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), [plain(getattr(value, field.name)) for field in fields(value)]
    return value


@pytest.mark.parametrize(("stage", "kind", "value"), CASES)
def test_a_stage_gives_what_it_declares_and_leaves_its_input_alone(
    stage: type[Stage], kind: ValueType, value: Any
) -> None:
    before = plain(value)

    given = stage(**minimal_options(stage))(value, RequestOptions())

    assert isinstance(given, TYPES[stage.gives or kind])
    assert plain(value) == before


def test_a_stage_takes_read_only_and_strided_arrays() -> None:
    def check(stage: type[Stage], _kind: ValueType, value: Any) -> None:
        built = stage(**minimal_options(stage))
        assert plain(built(awkward(value), RequestOptions())) == plain(built(value, RequestOptions()))

    assert offenders(check, {(case.id, case.values[1]): case.values for case in CASES}) == {}


@pytest.mark.same
def test_every_option_of_a_stage_is_described() -> None:
    assert [
        f"{name}.{option}"
        for name, stage in STAGES.items()
        for option, schema in stage.model_json_schema(by_alias=True).get("properties", {}).items()
        if not schema.get("description")
    ] == []


@pytest.mark.parametrize("package", [stages, families], ids=["stages", "families"])
def test_every_file_is_registered(package: Any) -> None:
    registered = {type(item).__module__ for item in FAMILIES.values()} | {item.__module__ for item in STAGES.values()}
    found = {module.name for module in pkgutil.iter_modules(package.__path__)} - SHARED

    assert {f"{package.__name__}.{name}" for name in found} <= registered


def test_every_stage_class_is_registered() -> None:
    modules = [
        importlib.import_module(f"segserve_builder.stages.{m.name}") for m in pkgutil.iter_modules(stages.__path__)
    ]
    defined = {
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Stage) and item is not Stage
    }

    assert defined == set(STAGES.values())
