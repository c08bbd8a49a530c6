"""The pipeline: all that makes one revision of a model, as immutable typed values.

The resource's spec is made of the same types, so that a field is described, defaulted and checked once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from segserve_builder.spec.schemes import Uri

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FrozenModel(BaseModel):
    """An immutable value with camelCase keys outside and no unknown ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Provenance(FrozenModel):
    """How the artifact came to be. It is recorded, and does not change the revision."""

    source: str | None = Field(None, description="Where the network was trained: a repository and commit, a run.")
    exporter: str | None = Field(None, description="What wrote the file, with its version.")
    dataset_sha256: Sha256 | None = Field(None, description="The digest of the data it was trained on.")


class Signature(FrozenModel):
    """Where the proof lies of who signed a file. The pool says who is trusted."""

    uri: Uri = Field(description="The model-signing bundle of the file; relative as the artifact's own.")


class Artifact(FrozenModel):
    """The network's file, named by URI and pinned by sha256."""

    uri: Uri = Field(
        description="Where it is: s3:, gs:, az:, oci:, hf:, models: (MLflow), pvc:, http:, https: or file:, with "
        "#member for one file of an archive; or relative: to the resource file, on a cluster to its pool's base.",
    )
    sha256: Sha256 = Field(description="sha256 of the file, 64 hex digits.")
    signature: Signature | None = Field(None, description="Demands that somebody trusted by the pool signed the file.")
    provenance: Provenance | None = Field(None, description="How the file came to be.")


class Golden(FrozenModel):
    """A folder of images with their expected answers."""

    uri: Uri = Field(
        description="The folder that holds golden.json, or an archive of it; schemes are as the artifact's. Over "
        "http: a folder has the list of its files beside it, <uri>.sha256.",
    )
    sha256: Sha256 = Field(
        description="The folder's digest, as `segserve golden digest FOLDER` prints it; of an archive, its sha256."
    )


class ModelClass(FrozenModel):
    """One class of the network's output."""

    id: int = Field(ge=0, le=65535, description="The number in label maps and in CLASSES.")
    name: str = Field(min_length=1, max_length=100, description="What it is called.")
    colour: str | None = Field(None, pattern=r"^#[0-9a-f]{6}$", description="Palette colour, #rrggbb.")
    thing: bool | None = Field(None, description="Panoptic models: whether its objects are counted, one by one.")


class Input(FrozenModel):
    """What callers send as PIXELS, and what images are decoded to."""

    dtype: Literal["UINT8", "UINT16"] = Field("UINT8", description="Type of PIXELS; 16-bit images are scaled to UINT8.")
    colour: Literal["RGB", "GREY"] = Field("RGB", description="RGB (3 channels) or GREY (1).")
    max_pixels: int = Field(50_000_000, ge=1, le=1_000_000_000, description="Larger images are refused undecoded.")


class Output(FrozenModel):
    """How answers look where a request does not say."""

    encoding: Literal["rle", "polygons", "png", "raw"] | None = Field(
        None, description="Masks: rle (default), polygons, png or raw. Label maps: png (default), rle, polygons or raw."
    )
    polygon_tolerance: float | None = Field(
        None,
        gt=0,
        le=100,
        description="How far polygons may be from the mask's outline, in pixels; exact unless given.",
    )
    max_detections: int = Field(300, ge=1, le=10_000, description="The best-scored instances that are kept.")
    overrides: tuple[Literal["score_threshold", "max_detections", "encoding"], ...] = Field(
        ("score_threshold", "max_detections", "encoding"), description="Request parameters that callers may set."
    )


class Runtime(FrozenModel):
    """How Triton runs the network."""

    max_batch_size: int = Field(8, ge=1, le=1024, description="Requests that the network runs at once, at most.")
    max_queue_delay_us: int = Field(0, ge=0, le=1_000_000, description="How long a request waits for a fuller batch.")
    max_queue_size: int = Field(
        128, ge=1, le=100_000, description="Requests that may wait at the gateway's servers; more get 503."
    )
    instances: int = Field(1, ge=1, le=64, description="Copies of the network on each server.")
    intra_op_threads: int = Field(0, ge=0, le=256, description="Threads of one run; 0 leaves it to ONNX Runtime.")

    @property
    def max_requests(self) -> int:
        """Requests that one server may hold at once: those that run and those that wait."""
        return self.max_batch_size * self.instances + self.max_queue_size
