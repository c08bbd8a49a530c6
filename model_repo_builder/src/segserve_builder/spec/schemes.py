"""The schemes of artifacts' URIs: the keys of the registry of sources, for what only checks and describes them."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

SCHEMES: Final = ("az", "file", "gs", "hf", "http", "https", "models", "oci", "pvc", "s3")

_SCHEME: Final = re.compile(r"([^:/]*):")
_KNOWN: Final = ", ".join(f"{scheme}:" for scheme in SCHEMES)
_RULE: Final = {
    "rule": f"!self.matches('^[^:/]*:') || self.matches('(?i)^({'|'.join(SCHEMES)}):')",
    "message": f"unknown scheme; allowed: {_KNOWN}, or a relative path",
}


def check_uri(uri: str) -> str:
    """Return a URI whose scheme a source is registered for, or a path.

    Raises `PydanticCustomError` for any other scheme.
    """
    found = _SCHEME.match(uri)
    if found is not None and found[1].lower() not in SCHEMES:
        allowed = {"seen": repr(found[1]), "allowed": _KNOWN}
        raise PydanticCustomError("scheme", "unknown scheme {seen}; allowed: {allowed}, or a relative path", allowed)
    return uri


Uri = Annotated[
    str,
    AfterValidator(check_uri),
    Field(min_length=1, max_length=2048, json_schema_extra={"x-kubernetes-validations": [_RULE]}),
]
"""Where an artifact is."""
