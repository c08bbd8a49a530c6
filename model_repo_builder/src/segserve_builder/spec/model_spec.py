"""The parts of a model's spec as immutable typed values.

The resource's API uses the same types, so that each field is described, defaulted and validated once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

SCHEMES: Final = ("az", "file", "gs", "hf", "http", "https", "models", "oci", "pvc", "s3")
"""Schemes of artifacts' URIs: the keys of the registry of sources, for what only checks and describes them."""

_SCHEME: Final = re.compile(r"([^:/]*):")
_KNOWN: Final = ", ".join(f"{scheme}:" for scheme in SCHEMES)
_RULE: Final = {
    "rule": f"!self.matches('^[^:/]*:') || self.matches('(?i)^({'|'.join(SCHEMES)}):')",
    "message": f"unknown scheme; allowed: {_KNOWN}, or a relative path",
}

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def check_uri(uri: str) -> str:
    """Return a URI whose scheme a source is registered for, or a path.

    Raises `PydanticCustomError` for any other scheme.
    """
    found = _SCHEME.match(uri)
    if found is not None and found[1].lower() not in SCHEMES:
        allowed = {"seen": repr(found[1]), "allowed": _KNOWN}
        raise PydanticCustomError("scheme", "unknown scheme {seen}; allowed: {allowed}, or a relative path", allowed)
    return uri


Uri = Annotated[
    str,
    AfterValidator(check_uri),
    Field(min_length=1, max_length=2048, json_schema_extra={"x-kubernetes-validations": [_RULE]}),
]
"""Where an artifact is."""


class FrozenModel(BaseModel):
    """An immutable value with camelCase keys in JSON; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Signature(FrozenModel):
    """The signature of a file. The pool sets which signers are trusted."""

    uri: Uri = Field(description="URI of the file's model-signing bundle; relative ones resolve as the artifact's.")


class Artifact(FrozenModel):
    """The network's file, located by URI and pinned by sha256."""

    uri: Uri = Field(
        description="URI of the file: s3:, gs:, az:, oci:, hf:, models: (MLflow), pvc:, http:, https: or file:, with "
        "#member for one file of an archive; or a path relative to the resource file, on a cluster to its pool's base.",
    )
    sha256: Sha256 = Field(description="SHA-256 of the file, 64 hex digits.")
    signature: Signature | None = Field(
        default=None, description="Requires a signature by a signer that the pool trusts."
    )
    provenance: Mapping[str, Annotated[str, Field(max_length=1024)]] | None = Field(
        default=None,
        max_length=16,
        description="Origin of the file, such as source, exporter and datasetSha256, for the record. It changes no "
        "revision.",
    )


class Golden(FrozenModel):
    """A folder of images with their expected answers."""

    uri: Uri = Field(
        description="URI of the folder that holds golden.json, or of an archive of it, with the artifact's schemes. "
        "Over http: a folder needs a list of its files at <uri>.sha256.",
    )
    sha256: Sha256 = Field(
        description="Digest of the folder, as printed by `segserve golden digest FOLDER`; of an archive, its SHA-256."
    )


class ModelClass(FrozenModel):
    """One class of the network's output."""

    id: int = Field(ge=0, le=65535, description="Number of the class in label maps and in CLASSES.")
    name: str = Field(min_length=1, max_length=100, description="Name of the class.")
    colour: str | None = Field(
        default=None, pattern=r"^#[0-9a-f]{6}$", description="Palette colour as #rrggbb. Default: a colour by id."
    )
    thing: bool | None = Field(
        default=None, description="Panoptic models: whether objects of the class are counted one by one."
    )


class Input(FrozenModel):
    """The type and colour of PIXELS and of decoded images."""

    dtype: Literal["UINT8", "UINT16"] = Field(
        default="UINT8", description="Data type of pixels; images of another depth are scaled to it."
    )
    colour: Literal["RGB", "BGR", "GREY"] = Field(
        default="RGB",
        description="Channels of the network's input: RGB, BGR (for networks trained with OpenCV) or GREY. PIXELS "
        "are RGB for both orders; mean and std of normalise are in the network's order.",
    )
    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=1_000_000_000,
        description="Largest number of pixels of an image; larger ones are refused before decoding.",
    )


class Output(FrozenModel):
    """The format of answers, unless a request overrides it."""

    encoding: Literal["rle", "polygons", "png", "raw"] | None = Field(
        default=None,
        description="Encoding of masks: rle, polygons, png or raw. Default: rle for masks, png for label maps.",
    )
    polygon_tolerance: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Largest distance of polygons from the mask's outline, in pixels. Default: exact outlines.",
    )
    max_detections: int = Field(
        default=300,
        ge=1,
        le=10_000,
        description="Largest number of instances in an answer; those with the best scores are kept.",
    )
    overrides: tuple[Literal["score_threshold", "max_detections", "encoding"], ...] = Field(
        default=("score_threshold", "max_detections", "encoding"),
        description="Request parameters that callers may set.",
    )


MAX_COUNTED_CLASSES: Final = 50


SliceLabel: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,40}$")]
MAX_COUNTED_SLICES: Final = 200
MAX_COUNTED_PAIRS: Final = 500
"""Most pairs of a slice and a class that have series, some 25 each."""


class ModelMetrics(FrozenModel):
    """Counting of the model's answers on its servers, for Prometheus. It makes no revision."""

    answers: bool = Field(
        default=True, description="Whether servers count answers: instances, areas, scores and images, by class."
    )
    classes: tuple[str, ...] = Field(
        default=(),
        max_length=MAX_COUNTED_CLASSES,
        description="Names of the classes with series of their own; all others count as `other`. Default: the first "
        f"{MAX_COUNTED_CLASSES} classes.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    slices: tuple[SliceLabel, ...] | None = Field(
        # The API server would write a default into every object.
        default=None,
        min_length=1,
        max_length=MAX_COUNTED_SLICES,
        description="Labels of requests (`X-Segserve-Slice`) with series of their own; all others count as `other`. "
        f"The product with the number of classes is at most {MAX_COUNTED_PAIRS}: by default fewer classes are counted. "
        "Default: answers are not counted by slice.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )

    @property
    def most_classes(self) -> int:
        """How many classes may have series of their own."""
        return min(MAX_COUNTED_CLASSES, MAX_COUNTED_PAIRS // len(self.slices or ("",)))

    @model_validator(mode="after")
    def _slices_are_counted(self) -> Self:
        if self.slices is not None and not self.answers:
            raise ValueError("slices need counts of answers, which answers: false switches off")
        return self

    @model_validator(mode="after")
    def _pairs_are_few(self) -> Self:
        if len(self.classes) > self.most_classes:
            raise ValueError(
                f"{len(self.slices or ())} slices of {len(self.classes)} classes; "
                f"their product is at most {MAX_COUNTED_PAIRS}"
            )
        return self


COUNTED: Final = ModelMetrics()
UNCOUNTED: Final = ModelMetrics(answers=False)


OutOfDistributionScore: TypeAlias = Literal["maxSoftmax", "energy", "detail"]


class OutOfDistributionPolicy(FrozenModel):
    """How images are judged that the model was not made for, and what follows."""

    score: OutOfDistributionScore = Field(
        description="Score of an image, higher for stranger ones: maxSoftmax, one less the mean probability of what is "
        "answered; energy, of the pixels' logits (semantic models); or detail, the fine detail of the image itself."
    )
    threshold: float = Field(
        allow_inf_nan=False,
        description="Score above which an image is flagged, as `segserve golden threshold` finds it.",
    )
    on_flag: Literal["Count", "Flag", "Refuse"] = Field(
        default="Count",
        description="Effect for a flagged image: Count it in metrics; Flag, which also sets the output "
        "OUT_OF_DISTRIBUTION; or Refuse it with 400, and count it.",
    )


CascadeScore: TypeAlias = Literal["confidence", "area", "class"]

Engine: TypeAlias = Literal["onnxruntime", "tensorrt", "openvino"]
Device: TypeAlias = Literal["auto", "cpu", "gpu"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
_SPELT_OUT: Final = {"engine": "onnxruntime", "device": "auto", "precision": "fp32"}
_ONLY_DEVICES: Final[Mapping[str, str]] = {"tensorrt": "gpu", "openvino": "cpu"}
"""Devices of the engines that run on one alone."""
_DEVICE_RULE: Final[dict[str, JsonValue]] = {
    "rule": "!has(self.engine) || self.engine == 'onnxruntime' || !has(self.device) || self.device == 'auto' || "
    "(self.engine == 'tensorrt') == (self.device == 'gpu')",
    "message": "engine tensorrt runs on the device gpu, openvino on the device cpu",
}
_PRECISION_MESSAGE: Final = (
    "precision fp16 and int8 need engine tensorrt; other engines run a file in its own precision"
)
_PRECISION_RULE: Final[dict[str, JsonValue]] = {
    "rule": "!has(self.precision) || self.precision == 'fp32' || has(self.engine) && self.engine == 'tensorrt'",
    "message": _PRECISION_MESSAGE,
}


class Runtime(FrozenModel):
    """Settings of Triton for the network.

    Revisions are named by all that is not None, so `engine`, `device` and `precision` are None where they are the
    default, and `device` is the engine's where that runs on one alone.
    """

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_DEVICE_RULE, _PRECISION_RULE]})

    max_batch_size: int = Field(
        default=8, ge=1, le=1024, description="Largest number of requests in a batch of the network."
    )
    max_queue_delay_us: int = Field(
        default=0, ge=0, le=1_000_000, description="Time that a request waits for a fuller batch, in microseconds."
    )
    max_queue_size: int = Field(
        default=128,
        ge=1,
        le=100_000,
        description="Largest number of requests that wait at a server; further ones get 503.",
    )
    instances: int = Field(default=1, ge=1, le=64, description="Number of copies of the network on each server.")
    intra_op_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Number of threads of one run; 0: the container's CPU limit, or the engine's choice.",
    )
    engine: Engine | None = Field(
        default=None,
        description="Library that runs the network: onnxruntime; tensorrt, on GPUs; or openvino, on CPUs. A server "
        "without it does not load the network. Default: onnxruntime.",
    )
    device: Device | None = Field(
        default=None,
        description="Device of the network: gpu, every GPU of a server (a server without one does not load the "
        "network); cpu; or auto, GPUs if the server has some and its Triton runs the file itself, else the CPU. "
        "Default: auto.",
    )
    precision: Precision | None = Field(
        default=None,
        description="Precision in which TensorRT 10 runs the network: fp32; fp16, which changes answers; or int8, for "
        "files with QuantizeLinear pairs of INT8 whose zero points are 0. Never run on a GPU. Default: fp32.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        kept = {name: value for name, value in given.items() if name not in _SPELT_OUT or value != _SPELT_OUT[name]}
        engine = kept.get("engine")
        only = _ONLY_DEVICES.get(engine) if isinstance(engine, str) else None
        device = kept["device"] = kept.get("device") or only
        if only is not None and device in get_args(Device) and device != only:
            raise PydanticCustomError(
                "engine",
                "engine {engine} runs on the device {only}, not on {device}",
                {"engine": engine, "only": only, "device": device},
            )
        if kept.get("precision") in ("fp16", "int8") and engine != "tensorrt":
            raise PydanticCustomError("precision", _PRECISION_MESSAGE)
        return kept

    @property
    def concurrent_requests(self) -> int:
        """Number of requests that keep all copies busy: those that run, and the next batches."""
        return 2 * self.max_batch_size * self.instances

    @property
    def max_requests(self) -> int:
        """Largest number of requests on one server: those that run and those that wait."""
        return self.max_batch_size * self.instances + self.max_queue_size
