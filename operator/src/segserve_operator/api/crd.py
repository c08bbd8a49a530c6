"""Writes the CustomResourceDefinitions: `python -m segserve_operator.api.crd OUT_DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segserve_operator.api.documents import write_documents
from segserve_operator.api.meta import API_GROUP, API_VERSION
from segserve_operator.api.resources import KINDS, Column, ResourceKind
from segserve_operator.api.schema import structural_schema


def crd(kind: ResourceKind) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    schema = structural_schema(kind.type)
    # Kubernetes owns metadata and its own two fields; a CRD may restrict only the name within metadata.
    named = schema["properties"]["metadata"]["properties"]["name"]
    name = {key: named[key] for key in ("type", "maxLength", "pattern")}
    own = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object", "properties": {"name": name}},
    }
    # A default for status would be dropped, because a request must not contain one.
    status = {key: value for key, value in schema["properties"]["status"].items() if key != "default"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": list(kind.short_names),
                "categories": list(kind.categories),
            },
            "versions": [
                {
                    "name": API_VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {**schema, "properties": {**schema["properties"], **own, "status": status}}
                    },
                    "subresources": {"status": {}} | ({"scale": dict(kind.scale)} if kind.scale else {}),
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    wide = {"priority": 1} if column.wide else {}
    return {"name": column.name, "type": column.type, "jsonPath": column.path, **wide}


def crd_files() -> dict[str, str]:
    """Return the YAML text of every CustomResourceDefinition by file name."""
    return {f"{API_GROUP}_{kind.plural}.yaml": write_documents([crd(kind)]) for kind in KINDS.values()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write every CustomResourceDefinition to the folder on the command line."""
    parser = argparse.ArgumentParser(description="Write the CustomResourceDefinitions of segserve.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in crd_files().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
