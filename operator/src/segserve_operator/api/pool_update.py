"""How a pool replaces its servers by those of another template, and which template it has."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic.config import JsonDict

from segserve_operator.api.checks import check_distinct, located
from segserve_operator.api.meta import SHARE_PATTERN, ApiValue, Timestamp, check_count_or_share, format_duration
from segserve_operator.api.rollout_policy import SomeTime

UPDATE_ANNOTATION: Final = "segserve.dev/update"
"""A new text of it asks for the update that a new operator offers; its longest text is kept in the status."""
MAX_REQUEST_LENGTH: Final = 256
DIGEST_PATTERN: Final = r"^[0-9a-f]{8}$"
_NO_STEP: Final = "one of maxSurge and maxUnavailable must be positive"
_SET: Final[JsonDict] = {"x-kubernetes-list-type": "set"}


ServerCount = Annotated[
    int | str,
    PlainValidator(partial(check_count_or_share, least=0)),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": SHARE_PATTERN, "minimum": 0, "maxLength": 4}),
]
"""A number of servers, or a part of `replicas` as a percentage: `0`, `2`, `25%`."""

Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


class UpdateWindow(ApiValue):
    """Hours in which servers may be replaced."""

    days: Annotated[tuple[Day, ...], AfterValidator(check_distinct)] = Field(
        default=(), max_length=7, description="Days on which it begins. Default: every day.", json_schema_extra=_SET
    )
    start: str = Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="Local time at which it begins: 22:30.")
    duration: SomeTime = Field(le=timedelta(days=7), description="How long it lasts, up to a week.")
    time_zone: str = Field(
        default="UTC",
        max_length=64,
        pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$",
        description="Name of the time zone in the IANA database, such as Europe/Berlin.",
    )

    def __str__(self) -> str:
        days = f"{', '.join(self.days)} " if self.days else ""
        return f"{days}{self.start} {self.time_zone} for {format_duration(self.duration)}"


class Update(ApiValue):
    """How servers are replaced by those of another template. A new operator alone replaces none."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    # Defaults are not filled in where the default of the whole field is checked.
                    "rule": "!has(self.maxSurge) || !has(self.maxUnavailable) || "
                    "!(self.maxSurge == 0 && self.maxUnavailable == 0)",
                    "message": _NO_STEP,
                }
            ]
        }
    )

    strategy: Literal["RollingUpdate", "Recreate"] = Field(
        default="RollingUpdate",
        description="RollingUpdate replaces servers step by step; Recreate stops all of them before it starts others, "
        "for clusters without room for one more.",
    )
    max_unavailable: ServerCount = Field(
        default=0,
        description="Maximum number or percentage of the main group's servers that are unavailable during an update.",
    )
    max_surge: ServerCount = Field(
        default="25%", description="Number or percentage of servers beyond replicas, rounded up."
    )
    max_parallel_pools: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Maximum number of the operator's pools that replace their servers at the same time.",
    )
    window: UpdateWindow | None = Field(
        default=None,
        description="Hours in which servers are replaced, including those that a new operator would make otherwise.",
    )
    paused: bool = Field(default=False, description="Whether servers stay as they are for now.")

    @model_validator(mode="after")
    def _check_step(self) -> Self:
        if self.max_surge == 0 and self.max_unavailable == 0:
            raise located(f"{_NO_STEP}, got 0 of both", "maxSurge")
        return self


class TemplateStatus(ApiValue):
    """The template of the main group's servers, and the one that replaces it."""

    digest: str = Field(pattern=DIGEST_PATTERN, description="Digest of the template, with which groups' names end.")
    settings: str = Field(default="", max_length=16, description="Digest of the spec's fields that it was made from.")
    request: str = Field(
        default="",
        max_length=MAX_REQUEST_LENGTH,
        description="Text of the annotation segserve.dev/update when the template was adopted, unless it names "
        "another one.",
    )
    next: str | None = Field(
        default=None, pattern=DIGEST_PATTERN, description="Digest of the template that is to replace it."
    )
    since: Timestamp | None = Field(default=None, description="Time from which on it is to be replaced.")
