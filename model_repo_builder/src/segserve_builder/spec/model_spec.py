"""The parts of a model's spec as immutable typed values.

The resource's API uses the same types, so that each field is described, defaulted and validated once.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
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


class Provenance(FrozenModel):
    """Origin of the artifact, for the record; it does not change the revision."""

    source: str | None = Field(
        default=None, description="Origin of the network's training, such as a repository and commit, or a run."
    )
    exporter: str | None = Field(default=None, description="Program that wrote the file, with its version.")
    dataset_sha256: Sha256 | None = Field(default=None, description="Digest of the training data, 64 hex digits.")


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
    provenance: Provenance | None = Field(default=None, description="Origin of the file, for the record.")


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
    colour: Literal["RGB", "GREY"] = Field(default="RGB", description="Colour of pixels: RGB (3 channels) or GREY (1).")
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


class Runtime(FrozenModel):
    """Settings of Triton for the network."""

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
        default=0, ge=0, le=256, description="Number of threads of one run; 0 lets ONNX Runtime choose."
    )

    @property
    def max_requests(self) -> int:
        """Largest number of requests on one server: those that run and those that wait."""
        return self.max_batch_size * self.instances + self.max_queue_size
