"""TLS of a pool's gateway."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segserve_operator.api.meta import ApiValue
from segserve_operator.api.pod_template import Subdomain


class GatewayTls(ApiValue):
    """TLS for callers; without it the gateway speaks plain HTTP and gRPC.

    Gateways of the cluster (provider gatewayApi) are callers, too: they need a BackendTLSPolicy.
    """

    secret_name: Subdomain = Field(
        description="Secret of the namespace of type kubernetes.io/tls (tls.crt, tls.key), such as cert-manager "
        "writes; a renewed certificate is used without a restart."
    )
    min_version: Literal["1.2", "1.3"] = Field(default="1.2", description="Oldest version of TLS that is spoken.")
    redirect_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Another port of the Service, at which plain HTTP is redirected to https. Default: none.",
    )
