"""The resource file: a validated manifest, serialised with remarks as comments above their fields."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from segserve.cli.init.values import Remark
from segserve_builder.stages.base import Stage

WIDTH: Final = 110
CHECK: Final = "CHECK: "
SHOWN: Final = frozenset({"threshold", "iouThreshold", "scoreThreshold", "maskThreshold"})
"""Options that are written even with their default values, since users change them first."""


def manifest_of(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resource; raises `SpecError` if applying it would be refused."""
    from segserve_operator.api.loading import parse

    manifest = {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": {"name": name},
        "spec": dict(spec),
    }
    parse(manifest, "the resource")
    return manifest


def listed(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return stages as a resource lists them, without options at their default, except for thresholds."""
    from segserve_builder.stages import POSTPROCESS

    names = {stage: name for name, stage in POSTPROCESS.items()}
    return [{names[type(stage)]: _options(stage)} for stage in stages]


def _options(stage: Stage) -> dict[str, Any]:
    every = stage.model_dump(mode="json", by_alias=True, exclude_none=True)
    changed = stage.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return {key: value for key, value in every.items() if key in changed or key in SHOWN}


def commented(manifest: Mapping[str, Any], remarks: Iterable[Remark], head: Sequence[str]) -> str:
    """Return the resource as YAML: `head` as comments first, and each remark as comments above its field."""
    from segserve_operator.api.documents import read_documents, write_documents

    text = write_documents([manifest])
    (document,) = read_documents(text, "the resource")
    above: dict[int, list[str]] = {}
    for remark in remarks:
        mark = document.keys.get(remark.place) or document.values[remark.place]
        comment = remark.text if remark.sure else f"{CHECK}{remark.text}"
        # The first key of a list's item stands behind its dash.
        indent = mark.column - 2 if isinstance(remark.place[-1], int) else mark.column
        above.setdefault(mark.line, []).extend(_comment(comment, indent))
    lines = [line for text in head for line in _comment(text, 0)]
    for number, line in enumerate(text.splitlines()):
        lines += [*above.get(number, ()), line]
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: int) -> list[str]:
    lead = f"{' ' * indent}# "
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=lead, break_long_words=False)
