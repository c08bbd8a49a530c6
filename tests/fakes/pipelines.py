"""Pipelines of models of which a test says only what it is about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from segserve_builder.families import FAMILIES
from segserve_builder.families.promptable import PromptableFamily
from segserve_builder.steps.pipeline import Pipeline

Class = int | dict[str, Any]
DECODER = {"artifactSha256": "1" * 64, "cacheBytes": 2**28}
"""The prompt decoder of families that need one."""


def pipeline_of(family: str = "semantic-logits", classes: int | Iterable[Class] = 2, **changes: Any) -> Pipeline:
    """Return a pipeline without stages; `classes` are their number, ids or all of them, `changes` any other fields."""
    named = range(classes) if isinstance(classes, int) else classes
    plain = {
        "model": "coins",
        "artifactSha256": "0" * 64,
        "family": family,
        "input": {},
        "classes": [{"id": one, "name": f"class {one}"} if isinstance(one, int) else one for one in named],
        "preprocess": [],
        "postprocess": [],
        "output": {},
        "runtime": {},
    }
    if isinstance(FAMILIES.get(family), PromptableFamily):
        plain["decoder"] = DECODER
    return Pipeline.model_validate(plain | changes)
