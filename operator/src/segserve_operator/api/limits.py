"""How much callers may send to a model."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field, model_validator

from segserve_operator.api.checks import located
from segserve_operator.api.meta import ApiValue

_FIELDS = ("requestsPerSecond", "megabytesPerSecond")
_MESSAGE = "perCaller must not allow more than total"


class Rate(ApiValue):
    """Inference requests per second, and bytes of them, at each gateway; what is not set is not limited."""

    requests_per_second: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Requests per second, and at once after a pause."
    )
    megabytes_per_second: int | None = Field(
        default=None,
        ge=1,
        le=2000,
        description="Million bytes of requests per second. A burst has at most the same amount, or one request of "
        "the gateway's maxRequestBytes.",
    )


class Limits(ApiValue):
    """Limits of inference requests, each held by every gateway for itself; more get 429 with Retry-After."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": " && ".join(
                        f"(!has(self.perCaller) || !has(self.total) || !has(self.perCaller.{name}) || "
                        f"!has(self.total.{name}) || self.perCaller.{name} <= self.total.{name})"
                        for name in _FIELDS
                    ),
                    "message": _MESSAGE,
                }
            ]
        }
    )

    per_caller: Rate | None = Field(
        default=None,
        description="Limits per caller, identified by name if authenticated (gateway.auth), otherwise by IP address.",
    )
    total: Rate | None = Field(default=None, description="Of all callers together.")

    @model_validator(mode="after")
    def _check_total(self) -> Self:
        for field, name in zip(Rate.model_fields, _FIELDS, strict=True):
            own, every = (getattr(rate, field) if rate is not None else None for rate in (self.per_caller, self.total))
            if own is not None and every is not None and own > every:
                raise located(f"{_MESSAGE}, got {own} and {every}", "perCaller", name)
        return self
