"""Names and digests: canonical JSON, step names, revision names."""

from __future__ import annotations

from typing import Any, Final

from segserve_common.canonical import json_digest

DIGEST_LENGTH: Final = 10
STEP_PREFIX: Final = "segserve--"
MODEL_NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9]|-[a-z0-9])*$"
MODEL_NAME_MAX_LENGTH: Final = 40


def digest(value: Any) -> str:
    """Return the first 10 hex digits of the sha256 of `value`'s canonical JSON."""
    return json_digest(value, DIGEST_LENGTH)


def step_name(kind: str, content: Any) -> str:
    """Name a step after all that it does, so that equal steps are one: `segserve--pre--3f9a0c77aa`."""
    return f"{STEP_PREFIX}{kind}--{digest(content)}"


def network_alias(model: str) -> str:
    """Return the public name of a model's bare network, where it is exposed."""
    return f"{model}.network"
