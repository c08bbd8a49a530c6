"""Names and digests: canonical JSON, step names, revision names.

Steps inside Triton need these, and of `segserve_common`, which has its own `canonical_json`, import only the reader of
image files, and what draws overlays.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

DIGEST_LENGTH: Final = 10
STEP_PREFIX: Final = "segserve--"
MODEL_NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9]|-[a-z0-9])*$"
MODEL_NAME_MAX_LENGTH: Final = 40
SLICE_PARAMETER: Final = "segserve_slice"
"""Parameter of a request by which a caller says where its image comes from."""
SLICE_HEADER: Final = "x-segserve-slice"
"""Header of a request that says the same, and comes first; servers make a parameter of it."""
CALLER_HEADER: Final = "x-segserve-caller"
"""Header by which a gateway says who calls, empty for nobody that it knows; servers make a parameter of it."""
TRACES_VARIABLE: Final = "SEGSERVE_TRACES_URL"
"""Environment variable with the URL that takes the spans of a server and of its steps."""
OPTIONAL_OUTPUTS: Final = ("CONTINUED", "OUT_OF_DISTRIBUTION")
"""Public outputs that one revision of a model may have and another lack."""
FLAGGED_WORDS: Final = "(outOfDistribution.threshold)"
"""What the error says of an image that the model refuses because it is out of distribution."""
ENGINES: Final = "engines"
"""Name of the folder of a server's TensorRT engines, beside its repository."""
AGENT_REQUEST_ID: Final = "segserve-agent"
"""Id of the requests by which an agent tests its server: they are no callers', and no metric counts their answers."""


def canonical_json(value: Any) -> str:
    """Serialise a JSON value so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Return the first 10 hex digits of the sha256 of `value`'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_LENGTH]


def step_name(kind: str, content: Any) -> str:
    """Name a step after its content, so that equal steps are shared: `segserve--pre--3f9a0c77aa`."""
    return f"{STEP_PREFIX}{kind}--{digest(content)}"


def listed_outputs(value: object) -> frozenset[str]:
    """Return the outputs that a request's parameter `outputs` lists, separated by commas."""
    return frozenset(name.strip() for name in str(value).split(","))


def network_alias(model: str) -> str:
    """Return the public name of a model's bare network, if it is exposed."""
    return f"{model}.network"
