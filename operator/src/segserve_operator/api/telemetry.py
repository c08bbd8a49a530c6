"""The access log and traces of a pool's gateway, in `spec.gateway`."""

from __future__ import annotations

import ssl
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from segserve_operator.api.meta import ApiValue

_HOST = r"([a-zA-Z0-9._-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?(/[^?#\s]*)?$"


class AccessLog(ApiValue):
    """A line of JSON for each request that fails, and for a share of the others."""

    sampling_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the requests without an error that are logged: 0 for none, 1 for all. Default 0.",
    )


class Tracing(ApiValue):
    """Traces of requests and of decisions about rollouts, sent to an OpenTelemetry collector."""

    endpoint: str = Field(
        max_length=2048,
        pattern=rf"^https?://{_HOST}",
        description="Base URL of an OTLP/HTTP receiver, such as http://collector:4318; spans go to its v1/traces. With "
        "https, Triton needs serverEndpoint.",
    )
    ca_bundle: str | None = Field(
        default=None,
        max_length=65536,
        description="Certificates, as PEM, of the authorities that sign the receiver's certificate. Only with https. "
        "Default: the public authorities.",
    )
    server_endpoint: str | None = Field(
        default=None,
        max_length=2048,
        pattern=rf"^http://{_HOST}",
        description="Base URL of the receiver of Triton's spans, without TLS, since Triton has no option for trusted "
        "certificates. Default: endpoint if it is http; else Triton sends none.",
    )
    sampling_ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of the requests without a traceparent that are traced: 0 for none, 1 for all. With one, its "
        "caller has decided. Default 0.01.",
    )

    @field_validator("server_endpoint", mode="before")
    @classmethod
    def _refuse_tls(cls, endpoint: Any) -> Any:
        if str(endpoint).startswith("https://"):
            raise ValueError(
                f"it must begin with http://, as Triton has no option for trusted certificates, got {endpoint!r}"
            )
        return endpoint

    @field_validator("endpoint", "server_endpoint")
    @classmethod
    def _check_port(cls, endpoint: str | None) -> str | None:
        try:
            port = urlsplit(endpoint or "").port
        except ValueError:
            port = 0
        if port == 0:
            raise ValueError(f"its port must be from 1 to 65535, got {endpoint!r}")
        return endpoint

    @field_validator("ca_bundle")
    @classmethod
    def _check_certificates(cls, bundle: str | None) -> str | None:
        if bundle is not None:
            if not bundle.strip():
                raise ValueError("it must be certificates as PEM, got none")
            if not bundle.isascii():
                raise ValueError("it must be certificates as PEM, got characters that are not ASCII")
            try:
                ssl.create_default_context(cadata=bundle)
            except (ssl.SSLError, ValueError) as error:
                raise ValueError(f"it must be certificates as PEM: {error}") from None
        return bundle

    @model_validator(mode="after")
    def _check_bundle(self) -> Self:
        if self.ca_bundle is not None and not self.endpoint.startswith("https://"):
            raise ValueError(f"caBundle is for an endpoint with https://, got {self.endpoint!r}")
        return self

    @property
    def traces_url(self) -> str:
        """Return the URL that takes spans of the gateway and of the operator."""
        return _traces_url(self.endpoint)

    @property
    def server_traces_url(self) -> str | None:
        """Return the URL that takes Triton's spans, if there is one."""
        if self.server_endpoint is None and self.endpoint.startswith("https://"):
            return None
        return _traces_url(self.server_endpoint or self.endpoint)


def _traces_url(endpoint: str) -> str:
    return f"{endpoint.rstrip('/')}/v1/traces"
