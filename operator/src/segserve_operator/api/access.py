"""Who may call: the credentials and web pages that a pool's gateway takes, and the callers of a model."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from segserve_operator.api.checks import check_distinct
from segserve_operator.api.meta import ApiValue
from segserve_operator.api.pod_template import SecretKey

_SET: JsonDict = {"x-kubernetes-list-type": "set"}
_WHOLE: JsonDict = {"x-kubernetes-list-type": "atomic"}
_ONE_JWKS: Final = "exactly one of url, secretRef and inline must be set"
_SOME_METHOD: Final = "at least one of jwt, apiKeys and mtls must be set"
_ONE_RULE: Final = "exactly one of claim, keys, certificates and callers must be set"
_VALUES: Final = "claim needs values; issuer and values are for claim"
_PRINTABLE: Final = r"^[\x20-\x7e]+$"
_CLAIM: Final = r"^[\x21-\x7e]+$"
KEY_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,62}"
"""What a caller with API keys may be called."""

Printable = Annotated[str, Field(pattern=_PRINTABLE, min_length=1, max_length=512)]
KeyName = Annotated[str, Field(pattern=f"^{KEY_NAME}$", max_length=63)]
Values = Annotated[tuple[Printable, ...], Field(min_length=1, max_length=64), AfterValidator(check_distinct)]
KeyNames = Annotated[tuple[KeyName, ...], Field(min_length=1, max_length=64), AfterValidator(check_distinct)]
_HOST: Final = r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
Origin = Annotated[str, Field(pattern=rf"^https?://{_HOST}(:[1-9][0-9]{{0,4}})?$", max_length=255)]
Claim = Annotated[str, Field(pattern=_CLAIM, min_length=1, max_length=253)]


def _exactly(message: str, *at: str) -> PydanticCustomError:
    return PydanticCustomError("spec", message, {"at": at})


class KeySet(ApiValue):
    """Public keys of an issuer, as a JSON Web Key Set. Exactly one field is set."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "[has(self.url), has(self.secretRef), has(self.inline)].exists_one(named, named)",
                    "message": _ONE_JWKS,
                }
            ]
        }
    )

    url: str | None = Field(
        default=None,
        pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[!-~]*)?$",
        max_length=1024,
        description="URL of the key set; the gateway fetches it again every 5 minutes. With https the certificate must "
        "be signed by an authority that the gateway's image trusts, or by that of caSecretRef.",
    )
    secret_ref: SecretKey | None = Field(
        default=None, description="Key set in a Secret; a changed Secret applies without a restart."
    )
    inline: str | None = Field(
        default=None, min_length=2, max_length=65_536, description="The key set itself, as JSON."
    )
    ca_secret_ref: SecretKey | None = Field(
        default=None, description="url: authorities (PEM) that sign its certificate. Default: the image's."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if [self.url, self.secret_ref, self.inline].count(None) != 2:
            raise _exactly(_ONE_JWKS)
        return self


class JwtIssuer(ApiValue):
    """An issuer of JSON Web Tokens, which callers send as `Authorization: Bearer`."""

    issuer: Printable = Field(description="Value that a token's iss claim must have.")
    audiences: Annotated[tuple[Printable, ...], AfterValidator(check_distinct)] = Field(
        min_length=1,
        max_length=16,
        description="Accepted values of a token's aud claim.",
        json_schema_extra=_SET,
    )
    jwks: KeySet = Field(description="Public keys that sign the tokens.")
    name_claim: Claim = Field(
        default="sub", description="Claim with the caller's name, for limits and logs; a dot leads into a nested claim."
    )


class ApiKeys(ApiValue):
    """API keys, which callers send as `x-api-key`."""

    secret_ref: SecretKey = Field(
        description="htpasswd lines NAME:{SHA}HASH, one for each key; NAME+1, NAME+2 are further keys of the caller "
        "NAME. The key that the caller sends is the base64 of NAME:SECRET."
    )


class Mtls(ApiValue):
    """Client certificates, which callers present at the TLS listener."""

    ca_secret_ref: SecretKey = Field(description="Authorities (PEM) that sign callers' certificates.")


class Auth(ApiValue):
    """Who may call the gateway: a caller with any one of these credentials."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "(has(self.jwt) && size(self.jwt) > 0) || "
                    "(has(self.apiKeys) && size(self.apiKeys) > 0) || has(self.mtls)",
                    "message": _SOME_METHOD,
                }
            ]
        }
    )

    jwt: tuple[JwtIssuer, ...] = Field(
        default=(), max_length=8, description="Issuers of tokens.", json_schema_extra=_WHOLE
    )
    api_keys: tuple[ApiKeys, ...] = Field(
        default=(), max_length=8, description="Secrets with API keys.", json_schema_extra=_WHOLE
    )
    mtls: Mtls | None = Field(default=None, description="Client certificates. They need gateway.tls.")
    anonymous: bool = Field(
        default=False, description="Whether callers without credentials are allowed. Wrong credentials are refused."
    )

    @property
    def client_certificates(self) -> Literal["required", "optional"]:
        """Whether a caller without a certificate may even connect: if there are other ways to say who calls."""
        return "optional" if self.jwt or self.api_keys or self.anonymous else "required"

    def secrets(self) -> list[str]:
        """Return the names of the Secrets with keys of issuers and callers; those of certificates belong to TLS."""
        of_issuers = (ref for each in self.jwt for ref in (each.jwks.secret_ref, each.jwks.ca_secret_ref))
        refs = (*of_issuers, *(each.secret_ref for each in self.api_keys))
        return list(dict.fromkeys(ref.name for ref in refs if ref is not None))

    @model_validator(mode="after")
    def _check_methods(self) -> Self:
        if not (self.jwt or self.api_keys or self.mtls):
            raise _exactly(_SOME_METHOD)
        return self


class AllowedCallers(ApiValue):
    """Callers who may use a model. Exactly one of claim, keys, certificates and callers is set."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "[has(self.claim), has(self.keys), has(self.certificates), has(self.callers)]"
                    ".exists_one(named, named)",
                    "message": _ONE_RULE,
                },
                {
                    "rule": "has(self.claim) == has(self.values) && (has(self.claim) || !has(self.issuer))",
                    "message": _VALUES,
                },
            ]
        }
    )

    claim: Claim | None = Field(
        default=None,
        description="Claim of a token, a text or a list of texts. A dot leads into a nested claim, except in a name "
        "that is a URL.",
    )
    values: Values | None = Field(
        default=None,
        description="claim: accepted values; the claim is one of them or contains one.",
        json_schema_extra=_SET,
    )
    issuer: Printable | None = Field(default=None, description="claim: issuer of the token. Default: any of the pool.")
    keys: KeyNames | None = Field(default=None, description="Names of callers with API keys.", json_schema_extra=_SET)
    certificates: Values | None = Field(
        default=None,
        description="Names in client certificates: the first URI, or else the first DNS name, or else the subject.",
        json_schema_extra=_SET,
    )
    callers: Literal["Authenticated", "Anonymous"] | None = Field(
        default=None,
        description="Authenticated is every caller with credentials, Anonymous every caller at all.",
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if [self.claim, self.keys, self.certificates, self.callers].count(None) != 3:
            raise _exactly(_ONE_RULE)
        if (self.claim is None) != (self.values is None) or (self.claim is None and self.issuer is not None):
            raise _exactly(_VALUES)
        return self


AccessRules = Annotated[tuple[AllowedCallers, ...], Field(min_length=1, max_length=32)]


class Cors(ApiValue):
    """Web pages that may call the gateway from a browser. A page sends its own key or token, never cookies."""

    origins: Annotated[tuple[Origin, ...], AfterValidator(check_distinct)] = Field(
        min_length=1,
        max_length=64,
        description="Their origins, such as https://app.example.com, as browsers write them: lower case, without a "
        "path, and without the usual port. There is none for all pages (*).",
        json_schema_extra=_SET,
    )
