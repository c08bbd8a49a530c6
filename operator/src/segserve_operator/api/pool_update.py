"""How a pool replaces its servers by those of another template, and which template it has."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from segserve_operator.api.checks import located
from segserve_operator.api.meta import SHARE_PATTERN, ApiValue, Timestamp, check_count_or_share

UPDATE_ANNOTATION: Final = "segserve.dev/update"
"""A new text of it asks for the update that a new operator offers; its longest text is kept in the status."""
MAX_REQUEST_LENGTH: Final = 256
DIGEST_PATTERN: Final = r"^[0-9a-f]{8}$"
_NO_STEP: Final = "one of maxSurge and maxUnavailable must be positive"


ServerCount = Annotated[
    int | str,
    PlainValidator(partial(check_count_or_share, least=0)),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": SHARE_PATTERN, "minimum": 0, "maxLength": 4}),
]
"""A number of servers, or a part of `replicas` as a percentage: `0`, `2`, `25%`."""


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
