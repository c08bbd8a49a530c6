"""The part of a TritonPool's spec that says where artifacts may come from, and with whose credentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, Field, WithJsonSchema

from segserve_builder.spec.schemes import SCHEMES
from segserve_operator.api.checks import check_distinct, located, unknown_name
from segserve_operator.api.meta import ApiValue
from segserve_operator.api.pod_template import Quantity, Subdomain

if TYPE_CHECKING:
    from pydantic.config import JsonDict

_SET: JsonDict = {"x-kubernetes-list-type": "set"}
_WHOLE: JsonDict = {"x-kubernetes-list-type": "atomic"}
_REMOTE: Final = tuple(scheme for scheme in SCHEMES if scheme not in ("file", "pvc"))
_WITH_ENDPOINT: Final = tuple(scheme for scheme in _REMOTE if scheme not in ("http", "https"))
_FOLDERS: Final = tuple(scheme for scheme in SCHEMES if scheme != "models")
_ENDPOINTS_RULE: JsonDict = {
    "rule": f"self.all(scheme, scheme in {list(_WITH_ENDPOINT)})",
    "message": f"servers are named for the schemes {', '.join(_WITH_ENDPOINT)}",
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


class SecretName(ApiValue):
    """A Secret of the pool's namespace."""

    name: Subdomain = Field(description="The Secret's name.")


class SourceCredential(ApiValue):
    """Whose name artifacts are asked for in; the Secret's keys depend on the scheme."""

    scheme: RemoteScheme = Field(description="For which URIs.")
    host: HostPattern = Field(
        "*", description="For which hosts, registries or buckets, as a pattern: models-*; the first that fits counts."
    )
    secret_ref: SecretName = Field(description="The Secret. A renewed one counts for the next try.")


class TrustedIdentity(ApiValue):
    """Somebody whom sigstore's certificates name."""

    identity: str = Field(min_length=1, max_length=512, description="Who: an e-mail address, or a workflow's URI.")
    issuer: str = Field(
        pattern=r"^https://", max_length=512, description="Who says so, such as https://accounts.google.com."
    )


class TrustedSigners(ApiValue):
    """Whose signatures of artifacts count: any one of them is enough."""

    required: bool = Field(False, description="Whether each artifact of the pool has to be signed.")
    keys: tuple[Pem, ...] = Field((), max_length=16, description="Public keys, as PEM.", json_schema_extra=_WHOLE)
    certificates: tuple[Pem, ...] = Field(
        (),
        max_length=16,
        description="Authorities of signers' certificates, as PEM.",
        json_schema_extra=_WHOLE,
    )
    identities: tuple[TrustedIdentity, ...] = Field(
        (), max_length=32, description="Signers without keys of their own, by sigstore.", json_schema_extra=_WHOLE
    )


class Artifacts(ApiValue):
    """Where artifacts may come from, and with whose credentials."""

    base: Base | None = Field(None, description="The URI that relative ones of artifacts and golden sets start from.")
    schemes: Annotated[tuple[Scheme, ...], AfterValidator(check_distinct)] = Field(
        (), max_length=16, description="The schemes allowed; all where none is listed.", json_schema_extra=_SET
    )
    hosts: Annotated[tuple[HostPattern, ...], AfterValidator(check_distinct)] = Field(
        (),
        max_length=64,
        description="Patterns of the hosts, registries and buckets allowed; all where none is listed.",
        json_schema_extra=_SET,
    )
    private_hosts: Annotated[tuple[PrivatePattern, ...], AfterValidator(check_distinct)] = Field(
        (),
        max_length=64,
        description="Patterns of hosts, or networks, at addresses that are not public: a server of the cluster, "
        "10.0.0.0/8. The hosts of base and endpoints count without being listed.",
        json_schema_extra=_SET,
    )
    endpoints: Annotated[Mapping[str, Endpoint], AfterValidator(_check_endpoints)] = Field(
        {},
        max_length=16,
        description="The server's URL by scheme, where it is not the usual one: s3: https://minio.example.com.",
        json_schema_extra={"x-kubernetes-validations": [_ENDPOINTS_RULE]},
    )
    credentials: tuple[SourceCredential, ...] = Field(
        (), max_length=32, description="Secrets of the namespace, by scheme and host.", json_schema_extra=_WHOLE
    )
    workload_identity: bool = Field(
        False, description="Whether the servers' own cloud identity counts where no Secret fits."
    )
    claims: Annotated[tuple[Subdomain, ...], AfterValidator(check_distinct)] = Field(
        (),
        max_length=16,
        description="Claims of the namespace whose files pvc: names; the servers mount them read-only.",
        json_schema_extra=_SET,
    )
    max_size: Quantity = Field("16Gi", description="Of one artifact or golden set; larger ones are refused.")
    signatures: TrustedSigners = Field(TrustedSigners(), description="Whose signatures count.")
