"""Metadata, conditions, timestamps and durations in the form that Kubernetes uses, and problems of resources.

A problem has its place in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from segserve_builder.spec.model_spec import FrozenModel
from segserve_builder.spec.names import MODEL_NAME_MAX_LENGTH, MODEL_NAME_PATTERN

API_GROUP: Final = "segserve.dev"
API_VERSION: Final = "v1alpha1"
GROUP_VERSION: Final = f"{API_GROUP}/{API_VERSION}"

ANNOTATION_PREFIX: Final = f"{API_GROUP}/"
ANNOTATION_DESCRIPTIONS: Final[Mapping[str, str]] = {
    "abort": "End the rollout of the named revision: it gets no more requests.",
    "pause": "Keep the current weight of the named revision; a breach still rolls back.",
    "promote": "Promote the named revision now, regardless of its gates.",
    "resume": "Continue the rollout of the named revision after a pause, or after a step that needs approval.",
    "retry": "Roll out the named revision, which failed, again from the start.",
    "rollback": "Return from the named stable revision to the previous one, which is still loaded.",
    "skip-gate": "Ignore a gate for the rollout of a revision: GATE@REVISION.",
}
"""The annotations that are read of models, without their prefix: they control rollouts."""

DURATION_PATTERN: Final = r"^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$"
_UNITS: Final = (("h", 3600), ("m", 60), ("s", 1))
UNSEEN: Final = -1
"""The observed generation of a resource that no operator has seen, as in the resources of other controllers."""
SHARE_PATTERN: Final = r"^(100|[1-9][0-9]?)%$"
UNREAD_METADATA: Final = (
    "generateName",
    "selfLink",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "managedFields",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: `message` says what was found and what is allowed.

    `line` and `column` count from 1; both are None if the resource was not read from text. `path` is the field within
    its document (`spec.postprocess[1].removeSmallRegions.minArea`), the parent of an unknown field or stage, or empty
    for the whole document.
    """

    source: str
    path: str
    message: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


class SpecError(Exception):
    """Raised for invalid resources; `problems` lists every problem in the order of the text."""

    reason: ClassVar[str] = "SpecInvalid"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def parse_duration(value: Any) -> timedelta:
    """Read a duration in hours, minutes and seconds: `1h`, `90s`, `1h30m`; a `timedelta` stays as it is."""
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(DURATION_PATTERN, value) if isinstance(value, str) and value else None
    if match is None:
        raise PydanticCustomError(
            "duration",
            "must be a duration such as 1h, 90s or 1h30m, got {seen}",
            {"seen": repr(value)},
        )
    amounts = [int(part[:-1]) if part else 0 for part in match.groups()]
    return timedelta(seconds=sum(amount * size for amount, (_, size) in zip(amounts, _UNITS, strict=True)))


def format_duration(duration: timedelta) -> str:
    """Return a duration of whole seconds in the form that `parse_duration` reads: `1h30m`; zero is `0s`."""
    rest = int(duration.total_seconds())
    parts = []
    for unit, size in _UNITS:
        amount, rest = divmod(rest, size)
        if amount:
            parts.append(f"{amount}{unit}")
    return "".join(parts) or "0s"


def check_name(name: str) -> str:
    """Return a valid name of a model or pool, or raise a validation error."""
    if len(name) > MODEL_NAME_MAX_LENGTH or not re.fullmatch(MODEL_NAME_PATTERN, name):
        raise PydanticCustomError(
            "name",
            "must be at most {limit} lower-case letters, digits and single hyphens between them, got {seen}",
            {"limit": MODEL_NAME_MAX_LENGTH, "seen": repr(name)},
        )
    return name


def check_count_or_share(value: Any, least: int = 1) -> int | str:
    """Return a number of servers from `least` on, or a percentage such as `80%` from 1 % to 100 %."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    if isinstance(value, str) and re.fullmatch(SHARE_PATTERN, value):
        return value
    raise PydanticCustomError(
        "count_or_share",
        "must be a whole number from {least} on, or a percentage from 1% to 100%, got {seen}",
        {"least": least, "seen": repr(value)},
    )


def _to_whole_seconds(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)


def _to_rfc3339(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


Duration = Annotated[
    timedelta,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "minLength": 2, "maxLength": 18}),
]
"""A `timedelta` in Python, `1h30m` in JSON."""

CountOrShare = Annotated[
    int | str,
    PlainValidator(check_count_or_share),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": SHARE_PATTERN, "minimum": 1, "maxLength": 4}),
]
"""A number of servers, or a part of all as a percentage: `2`, `80%`."""

Timestamp = Annotated[
    AwareDatetime,
    AfterValidator(_to_whole_seconds),
    PlainSerializer(_to_rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A UTC `datetime` of whole seconds in Python, RFC 3339 in JSON."""

ResourceName = Annotated[
    str,
    AfterValidator(check_name),
    WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": MODEL_NAME_MAX_LENGTH, "pattern": MODEL_NAME_PATTERN}
    ),
]
"""A DNS label of at most 40 characters without `--`."""


class ApiValue(FrozenModel):
    """A value of the API: immutable, camelCase in JSON, unknown keys forbidden."""

    def to_dict(self) -> dict[str, Any]:
        """Return the value as JSON with camelCase keys and without nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ObjectMeta(ApiValue):
    """The metadata that segserve reads; `UNREAD_METADATA` lists what it ignores."""

    name: ResourceName = Field(
        description="Name of the resource; models are served under it. A DNS label of at most 40 characters without --."
    )
    namespace: str = Field(default="default", description="Namespace of the resource.")
    labels: Mapping[str, str] = Field(default={}, description="Labels, for selection.")
    annotations: Mapping[str, str] = Field(
        default={}, description="Annotations; those with the prefix segserve.dev/ control rollouts."
    )
    uid: str | None = Field(default=None, description="Unique id, set by the store.")
    resource_version: str | None = Field(
        default=None, description="Version of the object, set by the store at every write."
    )
    generation: int | None = Field(
        default=None, description="Generation of the spec, set by the store; increases with every change."
    )
    creation_timestamp: Timestamp | None = Field(default=None, description="Time of creation, set by the store.")
    deletion_timestamp: Timestamp | None = Field(
        default=None, description="Time at which deletion was requested, set by the store."
    )
    finalizers: tuple[str, ...] = Field(
        default=(), description="Finalizers that must be removed before the resource is deleted."
    )


class ConditionStatus(StrEnum):
    """The status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiValue):
    """One aspect of a resource's observed state."""

    type: str = Field(min_length=1, max_length=316, description="Type of the condition, one CamelCase word.")
    status: ConditionStatus = Field(description="Status of the condition: True, False or Unknown.")
    reason: str = Field(
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        max_length=1024,
        description="Reason as one CamelCase word.",
    )
    message: str = Field(default="", max_length=32768, description="Reason as a sentence.")
    last_transition_time: Timestamp = Field(description="Time at which the status last changed.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="Generation of the spec that the condition describes."
    )
