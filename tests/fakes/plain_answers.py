"""The schemas of plain HTTP's answers, as the OpenAPI document has them."""

from __future__ import annotations

from jsonschema import Draft202012Validator

from segserve_builder.openapi import describe_models


def answer_schema(name: str) -> Draft202012Validator:
    """Return the validator of a schema among the document's components."""
    components = describe_models([], version="1")["components"]
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})
