"""The TritonPool resource: the Triton servers that many models share, and their gateway."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segserve_operator.api.meta import ApiValue, Condition, ObjectMeta


class Gateway(ApiValue):
    """The only entrance to the pool's models."""

    port: int = Field(8080, ge=1, le=65535, description="One port for HTTP and gRPC.")
    max_request_bytes: int = Field(64 * 1024**2, ge=65_536, le=2**31 - 1, description="Larger requests get 413.")
    request_timeout_seconds: int = Field(60, ge=1, le=3600, description="Requests that take longer get 504.")


class TritonPoolSpec(ApiValue):
    """How the pool is run."""

    gateway: Gateway = Field(Gateway(), description="The only entrance to the pool's models.")


class TritonPoolStatus(ApiValue):
    """What has become of the spec."""

    observed_generation: int | None = Field(None, ge=0, description="The generation that the status speaks of.")
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=32,
        description="Ready.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class TritonPool(ApiValue):
    """A fleet of Triton servers that host many models behind one gateway."""

    api_version: Literal["segserve.dev/v1alpha1"] = Field("segserve.dev/v1alpha1", description="The API's version.")
    kind: Literal["TritonPool"] = Field("TritonPool", description="The kind of resource.")
    metadata: ObjectMeta = Field(description="Name, labels, annotations.")
    spec: TritonPoolSpec = Field(TritonPoolSpec(), description="How the pool is run.")
    status: TritonPoolStatus = Field(TritonPoolStatus(), description="What has become of it.")
