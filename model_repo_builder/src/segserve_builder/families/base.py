"""The interface of a family of networks, with the checks of signatures that families share.

A family defines the meaning of raw outputs, and the conventions of its exporters.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from segserve_builder.errors import SignatureError
from segserve_builder.spec.model_spec import Input, ModelClass, Runtime
from segserve_builder.stages.base import Stage
from segserve_builder.values import Float32, ResizeTransform, Value, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_DTYPES: Final = ("UINT8", "UINT16", "FP16", "FP32")
CHANNELS: Final = {"RGB": 3, "BGR": 3, "GREY": 1}
LABEL_OPERATORS: Final = frozenset({"ArgMax", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "TopK"})
PROBABILITY_OPERATORS: Final = frozenset({"HardSigmoid", "Sigmoid", "Softmax"})
IN_FP32: Final = "export it with half=False, or convert it with keep_io_types=True"
BOX_NAMES: Final = re.compile(r"(?i)box|(^|[^a-z])dets?([^a-z]|$)|anchors|heat_?map|quer(y|ies)|pred_masks")
"""Names of outputs with boxes, or with a row or mask for each object or query, as exporters write them."""
OBJECT_NAMES: Final = re.compile(rf"{BOX_NAMES.pattern}|detections?([^a-z]|$)|num_|scores?([^a-z]|$)|keypoint")
"""Names of outputs with a value for each object."""
INNER_NAMES: Final = re.compile(
    r"(?i)^(aux|denoising|enc|init|intermediate|last_hidden|pixel_|transformer_|attentions)"
)
"""Names of what networks of transformers compute on the way, of any shape."""
BOX_SIZES: Final = (4, 5, 6, 7)
"""Values of a box: its corners or centre and sides, often an angle, a score or a class."""
ROUNDING: Final = 1e-3
"""How far beyond 0 and 1 rounding may put a probability."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a network: name, Triton's dtype name (`FP32`) and shape, batch first; None is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class NetworkSignature:
    """The inputs and outputs that a network's file declares.

    `last_operators` has by output the type of the last operator that does more than move or resize its values, as far
    as the graph shows. `quantisation` is None without pairs of QuantizeLinear and DequantizeLinear, and symmetric if
    they are of INT8 with zero points of 0.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    last_operators: Mapping[str, str] = field(default_factory=dict)
    quantisation: Literal["symmetric", "other"] | None = None


@dataclass(frozen=True, slots=True)
class NetworkIO:
    """The tensors of a network that a family uses: its image input, and its outputs in the family's order.

    Shapes have the batch first. If the file's outputs have no batch (`batched` is False), the network runs one image
    at a time, and a batch of one is prepended to each. `extra` are the inputs beside the image, None without any: steps
    of such networks then keep their names, which are digests.
    """

    input: TensorSpec
    layout: Literal["NCHW", "NHWC"]
    outputs: tuple[TensorSpec, ...]
    batched: bool = True
    extra: tuple[TensorSpec, ...] | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The image and the inputs beside it."""
        return (self.input, *(self.extra or ()))

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The height and width of the input, None if one is free."""
        height, width = self.input.shape[2:] if self.layout == "NCHW" else self.input.shape[1:3]
        return None if height is None or width is None else (height, width)

    @property
    def has_free_batch(self) -> bool:
        """Whether the network runs any number of images at once."""
        return self.batched and all(tensor.shape[0] is None for tensor in (*self.inputs, *self.outputs))


class PipelineStage(Protocol):
    """A stage as a pipeline lists it."""

    @property
    def stage(self) -> Stage:
        """The stage with its options."""


class ModelContext(Protocol):
    """The fields of a pipeline that families read."""

    @property
    def classes(self) -> Sequence[ModelClass]:
        """The model's classes."""

    @property
    def input(self) -> Input:
        """The type and colour of images."""

    @property
    def runtime(self) -> Runtime:
        """How the network runs."""

    @property
    def inference(self) -> Sequence[PipelineStage]:
        """The stages around the network: tiles or views of an image, whose outputs are merged."""

    @property
    def postprocess(self) -> Sequence[PipelineStage]:
        """The stages after the network; empty if the family's defaults apply."""


class InspectedNetwork(Protocol):
    """A network's file as `init` has inspected it."""

    @property
    def signature(self) -> NetworkSignature:
        """The declared inputs and outputs."""

    @property
    def operators(self) -> frozenset[str]:
        """The types of the graph's operators."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata, as exporters write it."""

    def shape(self, tensor: TensorSpec) -> tuple[int | None, ...]:
        """Return an output's shape, with dimensions that only running the network has shown."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The height and width of the input, or of a run that has shown the outputs' shapes; None without either."""

    def is_within_0_and_1(self, tensor: TensorSpec) -> bool:
        """Return whether the network was run, and all values of an output are probabilities by their size."""


class EvidenceWeight(IntEnum):
    """How strongly an observation speaks for a family."""

    SHAPES = 1
    OBSERVATION = 10
    NAMES = 20
    METADATA = 100


@dataclass(frozen=True, slots=True)
class FamilyEvidence:
    """An observation that speaks for a family, as a clause for messages."""

    weight: EvidenceWeight
    text: str


@dataclass(frozen=True, slots=True)
class StageNote:
    """A comment of `init` on the stages of a family; one that is not `sure` is listed for the user to check."""

    text: str
    sure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryPreprocessing:
    """Resizing and normalisation of a library, before its networks.

    `resize` are options of that stage without sizes: `shortSide` pads to a square. `normalise` are those of the stage
    `normalise`, which `pixels` explains; Ultralytics' metadata make it sure. Where the network's size is free, images
    get the side `free_side`; None if the library keeps theirs. `output` is the name of an output that only the
    library's own exports have, None if the family is the library's alone.
    """

    networks: str
    resize: Mapping[str, Any]
    normalise: Mapping[str, Any]
    pixels: StageNote
    colour: Literal["RGB", "BGR"] = "RGB"
    free_side: int | None = None
    output: str | None = None


IMAGENET: Final[Mapping[str, Any]] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
ULTRALYTICS: Final = LibraryPreprocessing(
    networks="YOLO networks",
    resize={"mode": "letterbox"},
    normalise={},
    pixels=StageNote("YOLO networks take pixels of 0 to 1"),
    free_side=640,
)
USUAL_THRESHOLDS: Final = StageNote("the thresholds are the family's usual ones; the right ones depend on your images")


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """One kind of network: the meaning of its raw outputs, and its defaults in `export` and `init`.

    Raise `version` whenever the answers change: it is part of a revision's digest.
    """

    name: str
    version: int = 1
    gives: ValueType
    """The type of the value that `read` returns."""
    default_postprocess: tuple[Stage, ...]
    """The stages of a pipeline that lists none; they decide its task."""
    numbers_classes: bool = True
    """Whether classes are channels of an output, so that their ids count up from 0; else the network gives the ids."""

    output_names: tuple[str, ...]
    """The usual names of the outputs, in the order in which a network without names returns them."""
    batched: bool = True
    """Whether networks of the family usually take batches."""
    image_sized_outputs: tuple[str, ...] = ()
    """Outputs whose height and width follow the input's."""
    architectures: tuple[str, ...] = ()
    """Class names of transformers' models of the family."""
    tasks: tuple[str, ...] = ()
    """Values of `task` in the metadata of Ultralytics' exports of the family."""

    first_class_id: int = 0
    """1 if channel 0 of the logits is the background."""
    has_things: bool = False
    """Whether classes are marked as things, counted one by one, or not."""
    fixed_size_resize: Literal["stretch", "letterbox"] = "letterbox"
    """How images of another aspect are usually resized to a fixed size."""
    preprocessing: LibraryPreprocessing | None = None
    """What the library that the family's networks usually come from does to images."""
    stage_notes: tuple[StageNote, ...] = (USUAL_THRESHOLDS,)
    reads_maps: bool = False
    """Whether an output is a map of the whole image, which values for each object beside it speak against."""
    may_leave_out: frozenset[str] = frozenset()
    """Names of outputs for each object without which the answer has less and is still right."""

    def network_io(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the tensors to use.

        Raises `SignatureError` if the network has others, or if what is left out of them may change the meaning of
        what is read: values for each object, labels and counts, in any family.
        """
        io = self.tensors(signature, model)
        read = {tensor.name: tensor for tensor in io.outputs}
        rows = io.outputs[0].shape[1]
        others = [t for t in signature.outputs if t.name not in read and not self._may_leave_out(t, rows)]
        if self.reads_maps:
            others += [tensor for tensor in io.outputs if BOX_NAMES.search(tensor.name)]
        if others:
            why = "it is no map of classes" if self.reads_maps else "it may be of another family"
            raise SignatureError(
                f"{self.name} reads {described_all(io.outputs)}; the network has {described_all(others)}, as detectors "
                f"have for each object, so {why}; if not, remove or rename them in the file (onnx.utils.extract_model)"
            )
        return io

    def _may_leave_out(self, tensor: TensorSpec, rows: int | None) -> bool:
        if tensor.name.lower() in self.may_leave_out or INNER_NAMES.match(tensor.name):
            return True
        if not tensor.dtype.startswith(("FP", "BF")):
            return tensor.shape == (2,)  # the image's size, as detectron2 adds it
        rank = len(tensor.shape)
        if rank < 3 and re.match("(?i)label|class|cls", tensor.name):
            return self.reads_maps  # of the image; beside boxes they are each object's
        is_row = tensor.shape[-1] in (*BOX_SIZES, rows or 0) or (rank == 3 and self.reads_maps)
        return (rank == 4 or not is_row) and not OBJECT_NAMES.search(tensor.name)

    @abstractmethod
    def tensors(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the tensors that the family reads; raises `SignatureError` if it cannot identify them."""

    @abstractmethod
    def read(self, outputs: Mapping[str, NDArray[Any]], transform: ResizeTransform, model: ModelContext) -> Value:
        """Turn one image's raw outputs into the first value of the postprocess stages.

        `outputs` have a batch of one, are finite, and come in the order of `network_io`. Raises `SignatureError` if
        their shapes or class ids are not the family's. The arrays have the dtypes and shapes of `network_io`.
        """

    def implied_classes(self, network: InspectedNetwork) -> int | None:
        """Return the number of classes that the outputs imply if the network is of this family, None if unknown."""
        del network
        return None

    def class_channels(self, network: InspectedNetwork) -> int | None:
        """Return the number of class ids that the outputs can give, the background's included; None if unknown."""
        return self.implied_classes(network)

    def implausibility(self, network: InspectedNetwork) -> str | None:
        """Return why a network with fitting shapes is still not of this family, None if it may be."""
        del network
        return None

    def evidence(self, network: InspectedNetwork) -> Iterator[FamilyEvidence]:
        """Yield observations beyond shapes and names that speak for this family."""
        del network
        yield from ()


def described(tensor: TensorSpec) -> str:
    """Describe a tensor by name, dtype and shape: `'logits' FP32 [?, 2, 384, 384]`."""
    shape = ", ".join("?" if size is None else str(size) for size in tensor.shape)
    return f"{tensor.name!r} {tensor.dtype} [{shape}]"


def described_all(tensors: Iterable[TensorSpec]) -> str:
    """Describe tensors one after another; `none` without any."""
    return ", ".join(described(tensor) for tensor in tensors) or "none"


def float_output(tensor: TensorSpec, rank: int, shape: str) -> TensorSpec:
    """Return `tensor`, an FP32 output of `rank` dimensions; `shape` names the dimensions in errors.

    Raises `SignatureError` if it is another.
    """
    if tensor.dtype != "FP32":
        mend = f": {IN_FP32}" if tensor.dtype == "FP16" else ""
        raise SignatureError(f"output {described(tensor)}: the dtype must be FP32{mend}")
    if len(tensor.shape) != rank:
        raise SignatureError(f"output {described(tensor)}: the shape must be {shape}")
    check_batch("output", tensor)
    return tensor


def check_logits(tensor: TensorSpec, signature: NetworkSignature, probabilities: str = "export it without") -> None:
    """Raise `SignatureError` if an output holds probabilities or labels instead of logits.

    `probabilities` is what to do about the former.
    """
    operator = signature.last_operators.get(tensor.name)
    if operator in PROBABILITY_OPERATORS:
        raise SignatureError(f"output {described(tensor)} ends with {operator}, so it holds no logits: {probabilities}")
    if operator in LABEL_OPERATORS:
        raise SignatureError(
            f"output {described(tensor)} ends with {operator}, so it holds no logits: export the logits, or integers "
            "for the family semantic-labels"
        )


def check_probabilities(name: str, values: Float32) -> None:
    """Raise `SignatureError` if values, float32 of any shape, are not within 0 and 1."""
    low, high = (values.min(), values.max()) if values.size else (0, 1)
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise SignatureError(
            f"{name} must be probabilities, 0 to 1; these are {low:.4g} to {high:.4g}: the family does not fit the "
            "network, or its last sigmoid or softmax is missing"
        )


def check_grid(name: str, shape: tuple[int, ...], transform: ResizeTransform) -> None:
    """Raise `SignatureError` if a grid (h, w) over the network's whole input has not its aspect, to a cell a side."""
    (height, width), p = shape, transform
    if p.input_height * (width - 1) > p.input_width * (height + 1) or (
        p.input_width * (height - 1) > p.input_height * (width + 1)
    ):
        raise SignatureError(
            f"{name} have {height} rows and {width} columns; the network's input is {p.input_height} x {p.input_width} "
            "pixels, and they must have its aspect"
        )


def thing_ids(model: ModelContext) -> frozenset[int]:
    """Return the ids of the classes whose objects are counted."""
    return frozenset(item.id for item in model.classes if item.thing)


def check_batch(kind: str, tensor: TensorSpec) -> None:
    """Check that a tensor's batch is free, or 1; `kind` is input or output.

    Raises `SignatureError` if it is not.
    """
    if tensor.shape[0] not in (None, 1):
        raise SignatureError(f"{kind} {described(tensor)}: the batch size must be free or 1; it is {tensor.shape[0]}")
