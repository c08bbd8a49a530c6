"""Requests of one id go to one revision and one server: which id a request has (`spec.gateway.sessionAffinity`)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from segserve_operator.api.meta import ApiValue

Token: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]


class SessionAffinity(ApiValue):
    """The id of a request: that of its stream (the header `x-sequence-id`), else the first of these that it has.

    Requests without an id are split at random, and go to any server.
    """

    header: Token | None = Field(default=None, description="Request header whose value is the id.")
    cookie: Token | None = Field(default=None, description="Cookie whose value is the id.")
    caller: bool = Field(
        default=False,
        description="Whether the id is the caller's name, from the API key, token or certificate (gateway.auth).",
    )
