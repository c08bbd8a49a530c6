"""Reduces the precision of an ONNX file to FP16 or INT8, and measures by class what its answers lose.

INT8 is calibrated on every second image; the others are held out, and answered by both files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import timeit
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from segserve_builder.errors import BuilderError, ExportError, GoldenError, PrecisionError
from segserve_builder.golden.judging import Answer, compare, load, with_columns
from segserve_builder.scoring.agreement import agreement
from segserve_builder.scoring.quality import Regions, score_samples
from segserve_builder.scoring.regions import labels_of_map, regions_of
from segserve_builder.sources import files_digest
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.public_outputs import has_masks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Reduced: TypeAlias = Literal["fp16", "int8"]

LEAST_IMAGES: Final = 4
LEAST_OBJECTS: Final = 10
LEAST_PIXELS: Final = 32**2
"""With fewer objects or pixels of a class, its loss says nothing: one that is at a threshold would decide."""
MAX_LOSS: Final = 0.05
MAX_OBJECT_LOSS: Final = 0.15
"""Loss of the agreement of objects, which one object at a threshold changes."""
RUNS: Final = 7
_LAYERS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_QUANTISED: Final = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear"})


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """One class before and after, 0 to 1; None if it does not occur. A class that is rare is not judged."""

    name: str
    before: float | None
    after: float | None
    is_judged: bool = True

    @property
    def loss(self) -> float:
        """How much less it is after the reduction."""
        return 0.0 if self.after is None else (1.0 if self.before is None else self.before) - self.after


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Likeness of answers by class: `measure` says what was compared, `changed` the objects that are (lost, added)."""

    measure: str
    classes: Sequence[ClassAccuracy]
    changed: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Reduction:
    """Outcome: bytes of the file, milliseconds an image (each before, after), and why golden images fail."""

    accuracy: Accuracy
    size_bytes: tuple[int, int]
    run_ms: tuple[float, float]
    calibrated_on: int
    calibration_sha256: str
    golden_problems: Sequence[str]


def reduce_precision(
    original: InProcessModel,
    target: Path,
    precision: Reduced,
    images: Sequence[Path],
    *,
    labels: Mapping[str, Path],
    golden: Path | None = None,
    max_loss: float | None = None,
) -> Reduction:
    """Write the network of a model with a reduced precision.

    `labels` are label PNGs by the stem of their image; `golden` is a golden set, whose images are also a check. Raises
    `PrecisionError` if a class loses more than `max_loss` (by default `MAX_LOSS`, or `MAX_OBJECT_LOSS` for objects), or
    if the held-out images show nothing; then no file is written.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if precision == "int8" and len(images) < LEAST_IMAGES:
        raise PrecisionError(
            f"{len(images)} images are too few for int8: half of them calibrate, the others are the check; "
            f"give at least {LEAST_IMAGES}, better 50"
        )
    calibration, held_out = (images[::2], images[1::2]) if precision == "int8" else ([], images)
    names = {item.id: item.name for item in original.pipeline.classes}
    cases = () if golden is None else load(golden).cases
    encoded = [image.read_bytes() for image in (*held_out, *(golden / case.image for case in cases if golden))]
    calibrating = {image.read_bytes() for image in calibration}
    checked = [index for index, image in enumerate(encoded) if index < len(held_out) or image not in calibrating]
    old = answers_of(original, encoded)
    _check_shown(old[: len(held_out)], names)
    truth = _truth(held_out, labels, old, names) if labels else None
    digest = files_digest(calibration)
    made_of = {"segserve.sourceSha256": original.pipeline.artifact_sha256, "segserve.precision": precision}
    if calibration:
        made_of |= {"segserve.calibrationSha256": digest, "segserve.calibrationImages": str(len(calibration))}
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as scratch:
        path = Path(scratch) / target.name
        try:
            if precision == "fp16":
                network = convert_float_to_float16(onnx.load(original.artifact), keep_io_types=True)
            else:
                feeds = (feed for image in calibration for feed in original.feeds(image.read_bytes()))
                symmetric = original.pipeline.runtime.engine == "tensorrt"
                network = to_int8(original.artifact, feeds, target.parent, symmetric=symmetric)
            metadata = {entry.key: entry.value for entry in network.metadata_props}
            onnx.helper.set_model_props(network, metadata | made_of)
            onnx.save(network, path)
            reduced = InProcessModel(original.pipeline, path)
        except (BuilderError, ImportError):
            raise
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot reduce the network to {precision}: {error!r:.400}") from error
        new = answers_of(reduced, encoded)
        accuracy = compared([old[index] for index in checked], [new[index] for index in checked], names, truth)
        if max_loss is None:
            max_loss = MAX_LOSS if accuracy.changed is None else MAX_OBJECT_LOSS
        if lossy := [each for each in accuracy.classes if each.is_judged and each.loss > max_loss]:
            named = ", ".join(f"{each.name} loses {each.loss:.3f}" for each in lossy)
            raise PrecisionError(
                f"{precision} costs too much {accuracy.measure}: {named}; at most {max_loss:g} is allowed "
                "(--max-loss). Nothing was written; give more images, and such as are served"
            )
        sizes = (original.artifact.stat().st_size, path.stat().st_size)
        speeds = _run_ms((original, reduced), held_out[0])
        path.replace(target)
    problems = []
    for case, answer in zip(cases, new[len(held_out) :], strict=True):
        try:
            compare(case, answer)
        except GoldenError as error:
            problems.append(str(error))
    return Reduction(accuracy, sizes, speeds, len(calibration), digest, problems)


def _truth(
    held_out: Sequence[Path], labels: Mapping[str, Path], answers: Sequence[Answer], names: Mapping[int, str]
) -> dict[int, Regions]:
    """Return the labels of the held-out images that have some; raises `ExportError` if they do not fit."""
    found = {index: labels[image.stem] for index, image in enumerate(held_out) if image.stem in labels}
    if not found or "AREAS" not in answers[0]:
        raise ExportError(
            "labels are PNGs with the names of held-out images (with int8 every second one), for semantic models; "
            f"{len(found)} of {len(held_out)} held-out images have one"
        )
    truth = {index: labels_of_map(file, frozenset(names)) for index, file in found.items()}
    for index, regions in truth.items():
        if regions.size != (size := tuple(answers[index]["SIZE"].tolist())):
            raise ExportError(
                f"{found[index]} is {regions.size[0]} x {regions.size[1]} pixels, its image {size[0]} x {size[1]}; "
                "labels must have the image's size"
            )
    return truth


def to_int8(source: Path, feeds: Iterable[Mapping[str, NDArray[Any]]], folder: Path, *, symmetric: bool = False) -> Any:
    """Return the `ModelProto` in `source` with INT8 convolutions, calibrated on `feeds`: inputs by name.

    Standard operators only (QuantizeLinear and DequantizeLinear around the others), weights by channel, of 7 bits:
    without VNNI, ONNX Runtime adds two products of x86's 8 bits in 16, which saturates with larger weights, so that one
    file would answer differently on two processors. The last convolutions stay as they are: they make scores and
    classes, and take little time. Products also stay: in INT8 the products of the zoo's transformers save no time.
    A `symmetric` file is for TensorRT, which takes no zero points and no quantised biases. Temporary files are in
    `folder`. Raises `ExportError` if nothing is left to reduce.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    left = iter(feeds)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            return next(left, None)

    full = onnx.load(source)
    if found := sorted(_QUANTISED & {node.op_type for node in full.graph.node}):
        raise ExportError(f"the network is quantised already: it has {', '.join(found)}; give it in FP32")
    with TemporaryDirectory(dir=folder) as scratch:
        path = f"{scratch}/network.onnx"
        # This joins normalisations with convolutions.
        quant_pre_process(str(source), path, skip_symbolic_shape=True)
        model = onnx.load(path)
        inner = _named_inner_convolutions(model)
        if not inner:
            raise ExportError("the network has no convolutions that int8 would make faster; fp16 makes it smaller")
        quantize_static(
            model,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=inner,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
        )
        model = onnx.load(path)
    # Quantisation lists all operator sets that ONNX Runtime has, and adds metadata.
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:], model.metadata_props[:]
    model.opset_import.extend(kept)
    model.metadata_props.extend(full.metadata_props)
    return model


def _named_inner_convolutions(model: Any) -> list[str]:
    """Give all nodes names, and return the names of the convolutions that a layer with weights follows."""
    leading: set[str] = set()
    inner = []
    for index, node in reversed([*enumerate(model.graph.node)]):
        node.name = f"{index}:{node.name}"  # exporters repeat names, or leave them out
        followed = not leading.isdisjoint(node.output)
        if followed and node.op_type == "Conv":
            inner.append(node.name)
        if followed or node.op_type in _LAYERS:
            leading.update(node.input)
    return inner


def _run_ms(models: tuple[InProcessModel, InProcessModel], image: Path) -> tuple[float, float]:
    """Return the median milliseconds of two networks for an image, run in turns."""
    import numpy as np

    given = models[0].network_input(image.read_bytes())
    taken_s = [[timeit(partial(model.raw, given), number=1) for model in models] for _ in range(RUNS)]
    before, after = (1000 * np.median(taken_s[1:], axis=0)).tolist()  # the first run allocates
    return before, after


def answers_of(model: InProcessModel, images: Iterable[bytes]) -> list[Answer]:
    """Return a model's answers to encoded images, with run-length masks if it has any."""
    request = RequestOptions(encoding="rle" if has_masks(model.task) else None)
    return [with_columns("", model.answer(image, request)) for image in images]


def compared(
    old: Sequence[Answer], new: Sequence[Answer], names: Mapping[int, str], labels: Mapping[int, Regions] | None = None
) -> Accuracy:
    """Return how near `new` answers are to `old` ones of the same images, or both to labels, for each class of `names`.

    Regions of classes are compared by their IoU over all images, objects by `scoring.agreement`. `labels` has labels by
    the image's index. Raises `PrecisionError` for objects that are too large to be compared.
    """
    if "AREAS" not in old[0]:
        return _of_objects(old, new, names, _total(old) | _total(new))
    places = range(len(old)) if labels is None else labels.keys()
    amounts = _total(old[index] for index in places) | _total(new[index] for index in places)
    regions = [
        [regions_of("an image", tuple(answer["SIZE"].tolist()), answer, "semantic") for answer in answers]
        for answers in (old, new)
    ]
    truth = dict(enumerate(regions[0])) if labels is None else labels
    before, after = (
        next(
            score_samples(
                "semantic", [*truth.values()], [each[index] for index in truth], [range(len(truth))], false_classes=True
            )
        ).classes
        for each in regions
    )
    return Accuracy(
        "IoU with the answers before" if labels is None else f"IoU with {len(labels)} label maps",
        [
            # A class that no label map has is one of few false pixels, before or after.
            ClassAccuracy(
                names[each],
                before.get(each),
                after.get(each),
                amounts[each] >= LEAST_PIXELS and (labels is None or before.get(each) is not None),
            )
            for each in names
        ],
    )


def _check_shown(answers: Sequence[Answer], names: Mapping[int, str]) -> None:
    """Raise `PrecisionError` if the full network's answers show nothing that could be lost."""
    shown = +_total(answers)
    if len(shown) < (2 if "AREAS" in answers[0] and len(names) > 1 else 1):
        raise PrecisionError(
            f"the full network finds {f'only {names[min(shown)]}' if shown else 'no object'} in the {len(answers)} "
            "held-out images, so that a loss would go unnoticed; give images such as are served"
        )


def _of_objects(
    old: Sequence[Answer], new: Sequence[Answer], names: Mapping[int, str], objects: Mapping[int, int]
) -> Accuracy:
    alike, weights, changed = defaultdict[int, float](float), defaultdict[int, float](float), Counter[str]()
    for one, other in zip(old, new, strict=True):
        found = agreement(one, other)
        if found is None:
            raise PrecisionError("the answers are too large to be compared; give smaller images")
        for number, weight in found.weights.items():
            weights[number] += weight
            alike[number] += weight * found.classes[number]
        changed.update(lost=sum(found.stable_only), added=sum(found.candidate_only), cut=found.left_out)
    classes = [
        ClassAccuracy(
            names.get(each, "further classes"), 1.0, alike[each] / weights[each], objects[each] >= LEAST_OBJECTS
        )
        for each in sorted(weights)
    ]
    everything = ClassAccuracy("all classes", 1.0, sum(alike.values()) / sum(weights.values()) if weights else None)
    measure = "agreement with the answers before" + (" (of each the 1,000 best objects)" if changed["cut"] else "")
    return Accuracy(measure, [*classes, everything], (changed["lost"], changed["added"]))


def _total(answers: Iterable[Answer]) -> Counter[int]:
    """Return the pixels or objects of each class in all answers."""
    total = Counter[int]()
    for answer in answers:
        classes = answer["CLASSES"].tolist()
        total.update(dict(zip(classes, answer["AREAS"].tolist(), strict=True)) if "AREAS" in answer else classes)
    return total
