"""Permitted sources of artifacts in a TritonPool, their credentials and trusted signers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic.config import JsonDict

from segserve_builder.spec.model_spec import SCHEMES
from segserve_operator.api.checks import check_distinct, located, unknown_name
from segserve_operator.api.meta import ApiValue
from segserve_operator.api.pod_template import Quantity, SecretName, Subdomain

_SET: JsonDict = {"x-kubernetes-list-type": "set"}
_WHOLE: JsonDict = {"x-kubernetes-list-type": "atomic"}
_REMOTE: Final = tuple(scheme for scheme in SCHEMES if scheme not in ("file", "pvc"))
_WITH_ENDPOINT: Final = tuple(scheme for scheme in _REMOTE if scheme not in ("http", "https"))
_FOLDERS: Final = tuple(scheme for scheme in SCHEMES if scheme != "models")
_ENDPOINTS_RULE: JsonDict = {
    "rule": f"self.all(scheme, scheme in {list(_WITH_ENDPOINT)})",
    "message": f"endpoints can be set for the schemes {', '.join(_WITH_ENDPOINT)}",
}


def _one_of(name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise located(unknown_name("scheme", name, known))
    return name


def _check_endpoints(endpoints: Mapping[str, str]) -> Mapping[str, str]:
    for scheme in endpoints:
        _one_of(scheme, _WITH_ENDPOINT)
    return endpoints


Scheme = Annotated[
    str,
    AfterValidator(lambda name: _one_of(name, SCHEMES)),
    WithJsonSchema({"type": "string", "enum": list(SCHEMES)}),
]
RemoteScheme = Annotated[
    str,
    AfterValidator(lambda name: _one_of(name, _REMOTE)),
    WithJsonSchema({"type": "string", "enum": list(_REMOTE)}),
]
Base = Annotated[str, Field(pattern=f"^({'|'.join(_FOLDERS)})://", min_length=1, max_length=2048)]
HostPattern = Annotated[str, Field(pattern=r"^[^\s/@]+$", max_length=253)]
PrivatePattern = Annotated[str, Field(pattern=r"^[^\s@]+$", max_length=253)]
Endpoint = Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$", max_length=2048)]
Pem = Annotated[str, Field(pattern=r"^\s*-----BEGIN [A-Z ]+-----", max_length=65_536)]


class SourceCredential(ApiValue):
    """Credentials for fetching artifacts; the keys of the Secret depend on the scheme."""

    scheme: RemoteScheme = Field(description="Scheme of the URIs.")
    host: HostPattern = Field(
        default="*", description="Pattern of hosts, registries or buckets, such as models-*; the first match applies."
    )
    secret_ref: SecretName = Field(
        description="Secret with the credentials; a changed Secret applies to the next attempt."
    )


class TrustedIdentity(ApiValue):
    """A signer as named in sigstore certificates."""

    identity: str = Field(min_length=1, max_length=512, description="E-mail address or workflow URI of the signer.")
    issuer: str = Field(
        pattern=r"^https://", max_length=512, description="Issuer of the identity, such as https://accounts.google.com."
    )


class TrustedSigners(ApiValue):
    """Trusted signers of artifacts; a signature by any one of them is sufficient."""

    required: bool = Field(default=False, description="Whether every artifact of the pool must be signed.")
    keys: tuple[Pem, ...] = Field(
        default=(), max_length=16, description="Public keys, as PEM.", json_schema_extra=_WHOLE
    )
    certificates: tuple[Pem, ...] = Field(
        default=(),
        max_length=16,
        description="Certificate authorities of the signers, as PEM.",
        json_schema_extra=_WHOLE,
    )
    identities: tuple[TrustedIdentity, ...] = Field(
        default=(),
        max_length=32,
        description="Signers that use sigstore without keys of their own.",
        json_schema_extra=_WHOLE,
    )


class Artifacts(ApiValue):
    """Permitted sources of artifacts, their credentials and signers."""

    base: Base | None = Field(default=None, description="Base of relative URIs of artifacts and golden sets.")
    schemes: Annotated[tuple[Scheme, ...], AfterValidator(check_distinct)] = Field(
        default=(), max_length=16, description="Permitted schemes. Default: all.", json_schema_extra=_SET
    )
    hosts: Annotated[tuple[HostPattern, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        max_length=64,
        description="Patterns of permitted hosts, registries and buckets. Default: all.",
        json_schema_extra=_SET,
    )
    private_hosts: Annotated[tuple[PrivatePattern, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        max_length=64,
        description="Patterns of permitted hosts or networks with private addresses, such as a server in the cluster "
        "or 10.0.0.0/8. The hosts of base and endpoints are always permitted.",
        json_schema_extra=_SET,
    )
    endpoints: Annotated[Mapping[str, Endpoint], AfterValidator(_check_endpoints)] = Field(
        default={},
        max_length=16,
        description="URL of the server by scheme, such as s3: https://minio.example.com. Default: the public service.",
        json_schema_extra={"x-kubernetes-validations": [_ENDPOINTS_RULE]},
    )
    credentials: tuple[SourceCredential, ...] = Field(
        default=(), max_length=32, description="Credentials by scheme and host.", json_schema_extra=_WHOLE
    )
    workload_identity: bool = Field(
        default=False, description="Whether to use the servers' own cloud identity if no Secret matches."
    )
    claims: Annotated[tuple[Subdomain, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        max_length=16,
        description="PersistentVolumeClaims that pvc: URIs may name; servers mount them read-only.",
        json_schema_extra=_SET,
    )
    max_size: Quantity = Field(
        default="16Gi", description="Largest size of one artifact or golden set; larger ones are refused."
    )
    signatures: TrustedSigners = Field(default=TrustedSigners(), description="Trusted signers of artifacts.")
