"""The resource file: a typed object, serialised, with remarks as comments above the fields that they are about."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from segserve.cli.init.remarks import Place, Remark
    from segserve_builder.stages.base import Stage

WIDTH: Final = 110
CHECK: Final = "CHECK: "
SHOWN: Final = frozenset({"threshold", "iouThreshold", "scoreThreshold", "maskThreshold"})
"""Options that a file has even where they are the usual ones: they are what people change first."""


def manifest_of(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resource; raises `SpecError` where it would be refused when it is applied."""
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
    """Return stages as a resource has them: options that are as usual are left out, but for thresholds."""
    from segserve_builder.stages import POSTPROCESS

    names = {stage: name for name, stage in POSTPROCESS.items()}
    return [{names[type(stage)]: _options(stage)} for stage in stages]


def _options(stage: Stage) -> dict[str, Any]:
    every = stage.model_dump(mode="json", by_alias=True, exclude_none=True)
    unusual = stage.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return {key: value for key, value in every.items() if key in unusual or key in SHOWN}


def commented(manifest: Mapping[str, Any], remarks: Iterable[Remark], head: Sequence[str]) -> str:
    """Return the resource as YAML: `head` first, and each remark in lines of its own above its field."""
    from segserve_operator.api.documents import read_documents, write_documents

    text = write_documents([manifest])
    (document,) = read_documents(text, "the resource")
    above: dict[int, list[str]] = {}
    for remark in remarks:
        mark = document.keys.get(remark.place) or document.values[remark.place]
        said = remark.text if remark.sure else f"{CHECK}{remark.text}"
        above.setdefault(mark.line, []).extend(_comment(said, _indent(remark.place, mark.column)))
    lines = [line for text in head for line in _comment(text, 0)]
    for number, line in enumerate(text.splitlines()):
        lines += [*above.get(number, ()), line]
    return "\n".join(lines) + "\n"


def _indent(place: Place, column: int) -> int:
    # The first key of a list's item stands behind the dash.
    return column - 2 if isinstance(place[-1], int) else column


def _comment(text: str, indent: int) -> list[str]:
    lead = f"{' ' * indent}# "
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=lead, break_long_words=False)
