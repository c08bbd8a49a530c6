"""What every resource has: its metadata, conditions, times and durations, as Kubernetes has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

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

DURATION_PATTERN: Final = r"^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$"
_UNITS: Final = (("h", 3600), ("m", 60), ("s", 1))
UNREAD_METADATA: Final = (
    "generateName",
    "selfLink",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "managedFields",
)


def parse_duration(value: Any) -> timedelta:
    """Read a duration in hours, minutes and seconds: `1h`, `90s`, `1h30m`; a `timedelta` stays as it is."""
    if isinstance(value, timedelta):
        return value
    found = re.fullmatch(DURATION_PATTERN, value) if isinstance(value, str) and value else None
    if found is None:
        raise PydanticCustomError(
            "duration",
            "must be a duration in h, m and s such as 1h, 90s or 1h30m, got {seen}",
            {"seen": repr(value)},
        )
    amounts = [int(part[:-1]) if part else 0 for part in found.groups()]
    return timedelta(seconds=sum(amount * size for amount, (_, size) in zip(amounts, _UNITS, strict=True)))


def format_duration(duration: timedelta) -> str:
    """Write a duration of whole seconds as `parse_duration` reads it: `1h30m`; zero is `0s`."""
    rest = int(duration.total_seconds())
    parts = []
    for unit, size in _UNITS:
        amount, rest = divmod(rest, size)
        if amount:
            parts.append(f"{amount}{unit}")
    return "".join(parts) or "0s"


def check_name(name: str) -> str:
    """Return a name that models and pools may have."""
    if len(name) > MODEL_NAME_MAX_LENGTH or not re.fullmatch(MODEL_NAME_PATTERN, name):
        raise PydanticCustomError(
            "name",
            "must be at most {limit} lower-case letters, digits and single hyphens between them, got {seen}",
            {"limit": MODEL_NAME_MAX_LENGTH, "seen": repr(name)},
        )
    return name


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
"""A `timedelta` inside, `1h30m` outside."""

Timestamp = Annotated[
    AwareDatetime,
    AfterValidator(_to_whole_seconds),
    PlainSerializer(_to_rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A UTC `datetime` of whole seconds inside, RFC 3339 outside."""

ResourceName = Annotated[
    str,
    AfterValidator(check_name),
    WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": MODEL_NAME_MAX_LENGTH, "pattern": MODEL_NAME_PATTERN}
    ),
]
"""A DNS label of at most 40 characters without `--`."""


class ApiValue(FrozenModel):
    """A value of the API: immutable, camelCase outside, no unknown keys."""

    def to_dict(self) -> dict[str, Any]:
        """Return the value as JSON with camelCase keys and without nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ObjectMeta(ApiValue):
    """The metadata that segserve reads; `UNREAD_METADATA` names what else Kubernetes has."""

    name: ResourceName = Field(
        description="A DNS label of at most 40 characters without --; models are served under it."
    )
    namespace: str = Field("default", description="Where the resource lives.")
    labels: Mapping[str, str] = Field({}, description="For people and tools to select by.")
    annotations: Mapping[str, str] = Field({}, description="Notes and requests (segserve.dev/...).")
    uid: str | None = Field(None, description="Set by the store.")
    resource_version: str | None = Field(None, description="Set by the store at every write.")
    generation: int | None = Field(None, description="Set by the store; grows with every change of the spec.")
    creation_timestamp: Timestamp | None = Field(None, description="Set by the store.")
    deletion_timestamp: Timestamp | None = Field(None, description="Set by the store when deletion was asked for.")
    finalizers: tuple[str, ...] = Field((), description="What has to be done before the resource is gone.")


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiValue):
    """One observation of a resource's state."""

    type: str = Field(min_length=1, max_length=316, description="What is observed, one CamelCase word.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: str = Field(
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        max_length=1024,
        description="Why, one CamelCase word.",
    )
    message: str = Field("", max_length=32768, description="Why, for people.")
    last_transition_time: Timestamp = Field(description="When the status last changed.")
    observed_generation: int | None = Field(None, ge=0, description="The generation that was judged.")
