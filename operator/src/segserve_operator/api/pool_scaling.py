"""How many servers a pool has by its requests (`spec.scaling`), and how many it has now."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from segserve_operator.api.checks import check_distinct, located
from segserve_operator.api.meta import ApiValue, Timestamp
from segserve_operator.api.rollout_policy import SomeTime

MAX_SERVERS: Final = 1000
_ONE_TARGET: Final = "exactly one of queueMilliseconds and concurrency must be set"
_BOUNDS: Final = "minimum must not be above maximum"
_SCHEDULED: Final = "minimum of schedule must not be above maximum"
_SET: Final[JsonDict] = {"x-kubernetes-list-type": "set"}

Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


class ScaleTarget(ApiValue):
    """Goal for the servers. Exactly one of the fields is set."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "has(self.queueMilliseconds) != has(self.concurrency)", "message": _ONE_TARGET}
            ]
        }
    )

    queue_milliseconds: int | None = Field(
        default=None,
        ge=1,
        le=60_000,
        description="Mean time in milliseconds for which requests may wait for a server. How many requests a server "
        "takes at a time for that is found out.",
    )
    concurrency: float | None = Field(
        default=None, gt=0, le=10_000, description="Number of requests that each server may have in flight."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.queue_milliseconds is None) == (self.concurrency is None):
            raise located(f"{_ONE_TARGET}, got {'none' if self.concurrency is None else 'both'}")
        return self


class ScheduledMinimum(ApiValue):
    """Hours in which a pool has at least so many servers."""

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
    minimum: int = Field(ge=1, le=MAX_SERVERS, description="Smallest number of servers per group in these hours.")


class Scaling(ApiValue):
    """Servers by requests: more at once, fewer after a delay."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "!has(self.minimum) || self.minimum <= self.maximum", "message": _BOUNDS},
                {
                    "rule": "!has(self.schedule) || self.schedule.all(each, each.minimum <= self.maximum)",
                    "message": _SCHEDULED,
                },
            ]
        }
    )

    minimum: int = Field(
        default=1,
        ge=1,
        le=MAX_SERVERS,
        description="Minimum number of servers per group; the pool's replicas is a minimum as well.",
    )
    maximum: int = Field(ge=1, le=MAX_SERVERS, description="Largest number of servers per group.")
    target: ScaleTarget = Field(description="What the servers are to achieve.")
    scale_down_delay: SomeTime = Field(
        default=timedelta(minutes=5),
        le=timedelta(days=1),
        description="Time for which fewer servers must have sufficed before some are given up.",
    )
    schedule: tuple[ScheduledMinimum, ...] = Field(
        default=(),
        max_length=16,
        description="Hours with a larger minimum; the largest of those that are open applies.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.minimum > self.maximum:
            raise located(f"{_BOUNDS}, got {self.minimum} and {self.maximum}", "minimum")
        for index, each in enumerate(self.schedule):
            if each.minimum > self.maximum:
                raise located(f"{_SCHEDULED}, got {each.minimum} and {self.maximum}", "schedule", index, "minimum")
        return self


class ScalingStatus(ApiValue):
    """The number of servers by requests."""

    desired: int = Field(ge=0, description="Desired number of servers per group.")
    reason: str = Field(default="", max_length=64, description="Reason of the last change as one CamelCase word.")
    message: str = Field(default="", max_length=2048, description="Reason of the last change as a sentence.")
    since: Timestamp | None = Field(default=None, description="Time of the last change.")
    startup_seconds: int | None = Field(
        default=None, ge=0, description="Seconds in which a server starts and loads the models, as measured."
    )
