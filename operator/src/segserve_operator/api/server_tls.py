"""TLS between a pool's gateway and its servers."""

from __future__ import annotations

from typing import Final, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from segserve_operator.api.meta import ApiValue
from segserve_operator.api.pod_template import Subdomain

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
IDENTITY_PATTERN: Final = rf"^(spiffe://[-._a-z0-9]+(/[-._a-zA-Z0-9]+)+|{_LABEL}(\.{_LABEL})*)$"
_MESSAGE: Final = "servers and gateway need Secrets of their own, and identities of their own"


class TlsParty(ApiValue):
    """One side of the connections."""

    secret_name: Subdomain = Field(
        description="Secret of the namespace with tls.crt, tls.key and ca.crt (the authorities of the other side), "
        "such as cert-manager writes; a renewed certificate is used without a restart."
    )
    identity: str | None = Field(
        default=None,
        pattern=IDENTITY_PATTERN,
        max_length=512,
        description="The name that the other side requires in its certificate: a DNS name, or a SPIFFE ID such as "
        "spiffe://example.org/ns/vision/masks. Default: servers.POOL.NAMESPACE.svc, or gateway.POOL.NAMESPACE.svc.",
    )


class ServerTls(ApiValue):
    """Mutual TLS between the gateway and its servers: each shows a certificate, and Triton listens on loopback only."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.servers.secretName != self.gateway.secretName && (!has(self.servers.identity) || "
                    "!has(self.gateway.identity) || self.servers.identity != self.gateway.identity)",
                    "message": _MESSAGE,
                }
            ]
        }
    )

    servers: TlsParty = Field(description="The servers.")
    gateway: TlsParty = Field(description="The gateway.")

    @model_validator(mode="after")
    def _check_parties(self) -> Self:
        same_name = self.servers.identity is not None and self.servers.identity == self.gateway.identity
        if same_name or self.servers.secret_name == self.gateway.secret_name:
            raise PydanticCustomError("spec", _MESSAGE, {"at": ("gateway", "identity" if same_name else "secretName")})
        return self
