"""Describes plain HTTP as a document of OpenAPI 3.1: paths of models and gateway, and the answers of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

if TYPE_CHECKING:
    from segserve_builder.steps.public_outputs import Task

Json: TypeAlias = dict[str, Any]
PROBLEM: Final = "application/problem+json"
_SCHEMAS: Final = "#/components/schemas/"
_PROBLEM_RESPONSE: Final[Json] = {"$ref": "#/components/responses/Problem"}


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RleCounts(_Answer):
    """A mask as COCO's compressed RLE."""

    size: tuple[int, int] = Field(description="Height and width.")
    counts: str


Mask: TypeAlias = RleCounts | list[list[float]] | str
"""By the encoding: `rle`, `polygons` as COCO's, `png` and `raw` in base64."""
Box: TypeAlias = tuple[float, float, float, float]
_CLASS: Final[Any] = Field(default=None, alias="class", description="Name of the class; missing if it is not known.")
_BOX: Final[Any] = Field(description="x1 y1 x2 y2 in pixels of the image.")
_MASK: Final[Any] = Field(
    default=None, description="By the encoding: RLE, polygons x y x y ..., or base64 of a PNG or of raw bytes."
)


class FoundObject(_Answer):
    """An object of an instance, detection or keypoint model."""

    class_id: int
    class_name: str | None = _CLASS
    score: float
    box: Box = _BOX
    keypoints: list[tuple[float, float, float]] | None = Field(default=None, description="x y score of each point.")
    mask: Mask | None = _MASK


class FoundClass(_Answer):
    """A class of a semantic model."""

    class_id: int
    class_name: str | None = _CLASS
    area: int = Field(description="Pixels.")
    confidence: float = Field(description="Mean probability over these pixels, 0 if there are none.")
    mask: Mask | None = _MASK


class FoundSegment(_Answer):
    """A segment of a panoptic model."""

    id: int = Field(description="Number of the segment in the map.")
    class_id: int
    class_name: str | None = _CLASS
    is_thing: bool
    score: float
    area: int = Field(description="Pixels.")
    box: Box = _BOX
    mask: Mask | None = _MASK


class StrangeImage(_Answer):
    """How unlike the usual images this one is; it is flagged where the score is above the threshold."""

    score: float
    threshold: float


class PlainAnswer(_Answer):
    """The fields that answers of all tasks have."""

    model: str
    revision: str = Field(description="Revision that answered.")
    height: int = Field(description="Pixels of the image, after its EXIF orientation.")
    width: int
    out_of_distribution: StrangeImage | None = None
    continued: bool | None = Field(default=None, description="Whether the server knew earlier frames of the stream.")


_LABELS: Final[Any] = Field(default=None, description="Base64 of the label map; its encodings are png and raw.")


class ObjectsAnswer(PlainAnswer):
    """The answer of an instance, detection or keypoint model."""

    objects: list[FoundObject] = Field(description="Best first.")


class ClassesAnswer(PlainAnswer):
    """The answer of a semantic model."""

    classes: list[FoundClass]
    labels: str | None = _LABELS


class SegmentsAnswer(PlainAnswer):
    """The answer of a panoptic model."""

    segments: list[FoundSegment]
    labels: str | None = _LABELS


class ProblemDetails(_Answer):
    """An error, as RFC 9457 has it."""

    title: str | None = None
    status: int
    detail: str


ANSWERS: Final[Mapping[Task, type[PlainAnswer]]] = {
    "semantic": ClassesAnswer,
    "instance": ObjectsAnswer,
    "panoptic": SegmentsAnswer,
    "detection": ObjectsAnswer,
    "keypoints": ObjectsAnswer,
}
"""The answer of plain HTTP by the task of a model."""
_SCORED: Final[frozenset[Task]] = frozenset({"instance", "detection", "keypoints"})
_TASKS: Final[Mapping[str, frozenset[Task]]] = {
    "score_threshold": _SCORED,
    "max_detections": _SCORED,
    "encoding": frozenset({"semantic", "instance", "panoptic"}),
}
"""The tasks whose models take an option."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, alias_generator=to_camel)


class DocumentInfo(_Part):
    """The title and version of the document."""

    title: str
    version: str
    description: str


class DocumentServer(_Part):
    """An address at which the paths are."""

    url: str


class Parameter(_Part):
    """A part of an address."""

    name: str
    place: Literal["path", "query"] = Field(alias="in")
    description: str
    required: bool = False
    value: Json = Field(alias="schema")


class Content(_Part):
    """A body of one type."""

    value: Json | None = Field(default=None, alias="schema")


class RequestBody(_Part):
    """The body of a request, by its types."""

    description: str
    content: dict[str, Content]
    required: bool = True


class ResponseObject(_Part):
    """A response, with its headers and its body by type."""

    description: str
    headers: dict[str, Json] | None = None
    content: dict[str, Content] | None = None


class Operation(_Part):
    """A method of a path."""

    operation_id: str
    summary: str
    description: str | None = None
    parameters: tuple[Parameter, ...] | None = None
    request_body: RequestBody | None = None
    responses: dict[str, ResponseObject | Json]
    security: tuple[dict[str, list[str]], ...] | None = None


class PathItem(_Part):
    """The methods of a path."""

    get: Operation | None = None
    post: Operation | None = None


class Components(_Part):
    """The parts that paths refer to by name."""

    schemas: dict[str, Json]
    responses: dict[str, ResponseObject]
    security_schemes: dict[str, Json]


class OpenApi(_Part):
    """A document of OpenAPI 3.1."""

    openapi: Literal["3.1.0"] = "3.1.0"
    info: DocumentInfo
    servers: tuple[DocumentServer, ...] | None = None
    paths: dict[str, PathItem]
    components: Components
    security: tuple[dict[str, list[str]], ...]

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the document as JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=indent)


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """A model of the document: its task, the ids and names of its classes, and the options that callers may set."""

    name: str
    task: Task
    classes: tuple[tuple[int, str], ...] = ()
    options: tuple[str, ...] = ()


def describe_models(models: Sequence[DescribedModel], *, version: str, url: str = "") -> OpenApi:
    """Return the document of a platform of this version, at an address if that is known: a path for each model."""
    return _document({_path(model.name): _of_model(model) for model in models}, version, url)


def describe_gateway(models: Sequence[str] | None, *, version: str) -> OpenApi:
    """Return the document of a gateway, which knows names of models alone, or with None is to tell none: one path."""
    name: Json = {"type": "string"} | ({"enum": list(models)} if models else {})
    parameter = Parameter(name="model", place="path", description="Name of the model.", required=True, value=name)
    answers = sorted({answer.__name__ for answer in ANSWERS.values()})
    operation = _segment(
        "segment",
        "Segment an image",
        options=tuple(_OPTIONS),
        answer={"anyOf": [{"$ref": _SCHEMAS + answer} for answer in answers]},
        parameters=(parameter,),
    )
    paths = {_path("{model}"): operation} if models != [] else {}
    return _document(paths, version)


def _path(model: str) -> str:
    return f"/v1/models/{model}:segment"


def _of_model(model: DescribedModel) -> PathItem:
    named = ", ".join(f"{number} {name}" for number, name in model.classes)
    return _segment(
        f"segment-{model.name}",
        f"Ask the {model.task} model {model.name}",
        options=tuple(option for option in model.options if model.task in _TASKS[option]),
        answer={"$ref": _SCHEMAS + ANSWERS[model.task].__name__},
        description=f"Classes: {named}." if named else None,
    )


_OPTIONS: Final[Mapping[str, tuple[Json, str]]] = {
    "score_threshold": ({"type": "number", "minimum": 0, "maximum": 1}, "Leaves out objects below it."),
    "max_detections": ({"type": "integer", "minimum": 1, "maximum": 10_000}, "At most so many objects, best first."),
    "encoding": ({"enum": ["rle", "polygons", "png", "raw"]}, "Encoding of masks and label maps."),
}


def _segment(
    operation_id: str,
    summary: str,
    *,
    options: tuple[str, ...],
    answer: Json,
    parameters: tuple[Parameter, ...] = (),
    description: str | None = None,
) -> PathItem:
    image: Json = {"type": "string", "contentMediaType": "image/*"}
    form: Json = {
        "type": "object",
        "properties": {"image": image, **{option: _OPTIONS[option][0] for option in options}},
        "required": ["image"],
        "additionalProperties": False,
    }
    queries = (
        Parameter(name=option, place="query", description=_OPTIONS[option][1], value=_OPTIONS[option][0])
        for option in options
    )
    revision: Json = {"description": "Revision that answered.", "schema": {"type": "string"}}
    wait: Json = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
    operation = Operation(
        operation_id=operation_id,
        summary=summary,
        description=description,
        parameters=(*parameters, *queries) or None,
        request_body=RequestBody(
            description="One JPEG, PNG, WebP or TIFF, as the body or as a field of a form.",
            content={"image/*": Content(), "multipart/form-data": Content(value=form)},
        ),
        responses={
            "200": ResponseObject(
                description="The answer.",
                headers={"x-segserve-revision": revision},
                content={"application/json": Content(value=answer)},
            ),
            "429": ResponseObject(
                description="More requests than the model's limits allow.",
                headers={"retry-after": wait},
                content={PROBLEM: Content(value={"$ref": f"{_SCHEMAS}ProblemDetails"})},
            ),
            "default": _PROBLEM_RESPONSE,
        },
    )
    return PathItem(post=operation)


def _document(paths: dict[str, PathItem], version: str, url: str = "") -> OpenApi:
    probes = {
        path: PathItem(
            get=Operation(
                operation_id=name,
                summary=summary,
                responses={"200": ResponseObject(description="It is."), "default": _PROBLEM_RESPONSE},
                security=({},),
            )
        )
        for path, name, summary in (
            ("/healthz", "live", "Whether a server lives"),
            ("/readyz", "ready", "Whether a server is ready"),
        )
    }
    return OpenApi(
        info=DocumentInfo(
            title="segserve",
            version=version,
            description="Image segmentation: an image as the body of a request, the answer as JSON.",
        ),
        servers=(DocumentServer(url=url),) if url else None,
        paths={**paths, **probes},
        components=Components(
            schemas=_schemas(),
            responses={
                "Problem": ResponseObject(
                    description="The request was not answered.",
                    content={PROBLEM: Content(value={"$ref": f"{_SCHEMAS}ProblemDetails"})},
                )
            },
            security_schemes={
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "token": {"type": "http", "scheme": "bearer"},
            },
        ),
        # Whether a platform asks for credentials is its pool's matter.
        security=({}, {"apiKey": []}, {"token": []}),
    )


class _AbsentSchema(GenerateJsonSchema):
    """Describes a field that may be None as one that may be missing, which is how answers are."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


@cache
def _schemas() -> dict[str, Json]:
    types: list[type[_Answer]] = [*dict.fromkeys(ANSWERS.values()), ProblemDetails]
    _, joined = models_json_schema(
        [(each, "validation") for each in types],
        ref_template=_SCHEMAS + "{model}",
        schema_generator=_AbsentSchema,
    )
    schemas: dict[str, Json] = joined["$defs"]
    return schemas
