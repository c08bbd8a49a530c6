from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from segserve_builder.families import FAMILIES
from segserve_builder.stages import POSTPROCESS, PREPROCESS
from segserve_operator.api import crd
from segserve_operator.api.crd import NotStructuralError, structural_schema
from segserve_operator.api.meta import Condition
from segserve_operator.api.pod_template import QUANTITY_PATTERN, Passed, Quantity
from segserve_operator.api.resources import KINDS

COMMITTED = Path(__file__).parents[4] / "crds"
KEYWORDS = {
    "type", "description", "format", "enum", "pattern", "default", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "required", "properties",
    "items", "additionalProperties", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
    "maxProperties", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip
PYTHON_TYPES = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,), "object": (dict,)
}  # fmt: skip


def schema_of(kind: str) -> dict[str, Any]:
    version = crd.crd(KINDS[kind])["spec"]["versions"][0]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from nodes(schema[name], f"{path}[]")


NODES = {f"{kind}{path}": node for kind in KINDS for path, node in nodes(schema_of(kind))}
DEFAULTED = {name: node for name, node in NODES.items() if "default" in node}
FIELDS = {name: node for name, node in NODES.items() if re.search(r"^\w+\.(spec|status)\b.*(?<!\[\])$", name)}
INT_OR_STRING = "x-kubernetes-int-or-string"
MAP_KEYS = "x-kubernetes-list-map-keys"


def failing(found: Mapping[str, Mapping[str, Any]], holds: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    """Return the names of the nodes for which something does not hold."""
    return [name for name, node in found.items() if not holds(node)]


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a default is one that an API server would take."""
    if INT_OR_STRING in schema:
        if isinstance(value, int):
            return value >= schema["minimum"]
        return isinstance(value, str) and re.search(schema["pattern"], value) is not None
    if value is None:
        return False
    if isinstance(value, dict) and "properties" not in schema:
        return value == {}
    if isinstance(value, dict):
        return (
            all(fits(value[key], schema["properties"][key]) for key in value)
            and set(value) <= set(schema["properties"])
            and not set(schema.get("required", ())) - set(value)
        )
    if isinstance(value, list):
        return all(fits(item, schema["items"]) for item in value) and len(value) >= schema.get("minItems", 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value in schema.get("enum", (value,))
    return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))


@pytest.mark.same
def test_the_committed_files_are_what_the_types_give() -> None:
    """`make crds` writes them anew."""
    assert {path.name: path.read_text() for path in COMMITTED.iterdir()} == crd.crd_files()


def test_the_command_writes_every_file(tmp_path: Path) -> None:
    crd.main([str(tmp_path / "new")])

    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == crd.crd_files()


def test_any_yaml_reader_reads_the_files_as_they_were_meant() -> None:
    for kind in KINDS.values():
        (text,) = [text for name, text in crd.crd_files().items() if kind.plural in name]
        assert yaml.safe_load(text) == crd.crd(kind)
        assert "*id" not in text


def test_no_node_says_what_structural_schemas_cannot() -> None:
    """No references and no unions, above all."""
    assert {name: sorted(set(node) - KEYWORDS) for name, node in NODES.items() if not set(node) <= KEYWORDS} == {}


def test_every_node_has_one_type() -> None:
    assert failing(NODES, lambda node: INT_OR_STRING in node or node.get("type") in PYTHON_TYPES) == []


def test_a_number_or_text_names_no_type() -> None:
    assert failing(NODES, lambda node: INT_OR_STRING not in node or "type" not in node) == []


def test_lists_alone_have_items() -> None:
    assert failing(NODES, lambda node: ("items" in node) == (node.get("type") == "array")) == []


def test_no_map_has_fields_too() -> None:
    assert failing(NODES, lambda node: not {"properties", "additionalProperties"} <= set(node)) == []


def test_what_is_required_is_a_field() -> None:
    assert failing(NODES, lambda node: set(node.get("required", ())) <= set(node.get("properties", ()))) == []


def test_a_list_with_keys_is_a_map_of_items_that_require_them() -> None:
    keyed = {name: node for name, node in NODES.items() if MAP_KEYS in node}

    assert keyed
    assert failing(keyed, lambda node: node["x-kubernetes-list-type"] == "map") == []
    assert failing(keyed, lambda node: set(node[MAP_KEYS]) <= set(node["items"]["required"])) == []


def test_every_default_is_of_its_node_s_type() -> None:
    assert DEFAULTED
    either = {**PYTHON_TYPES, None: (str, int)}  # a number or text names no type
    assert failing(DEFAULTED, lambda node: isinstance(node["default"], either[node.get("type")])) == []


def test_every_default_is_one_that_an_api_server_takes() -> None:
    assert DEFAULTED
    assert failing(DEFAULTED, lambda node: fits(node["default"], node)) == []


@pytest.mark.same
def test_every_field_is_described() -> None:
    assert FIELDS
    assert failing(FIELDS, lambda node: len(node.get("description", "")) > 3) == []


@pytest.mark.same
def test_every_description_is_one_line() -> None:
    assert failing(NODES, lambda node: "\n" not in node.get("description", "")) == []


def test_a_required_field_has_no_default() -> None:
    required = {
        f"{name}.{field}": node["properties"][field]
        for name, node in NODES.items()
        for field in node.get("required", ())
    }

    assert required
    assert failing(required, lambda node: "default" not in node) == []


def test_enums_are_the_registries_keys() -> None:
    spec = schema_of("SegmentationModel")["properties"]["spec"]["properties"]

    assert spec["family"]["enum"] == sorted(FAMILIES)
    for field, registry in (("preprocess", PREPROCESS), ("postprocess", POSTPROCESS)):
        step = spec[field]["items"]
        assert set(step["properties"]) == set(registry)
        (rule,) = step["x-kubernetes-validations"]
        assert all(f"has(self.{name})" in rule["rule"] for name in registry)


def test_lists_under_a_rule_are_bounded_so_that_its_cost_is() -> None:
    spec = schema_of("SegmentationModel")["properties"]["spec"]["properties"]

    for field in ("classes", "preprocess", "postprocess"):
        assert spec[field]["maxItems"] <= 2000


def test_metadata_restricts_the_name_alone() -> None:
    """Of metadata a CRD may say nothing else."""
    served = {"type": "string", "maxLength": 40, "pattern": "^[a-z0-9]([a-z0-9]|-[a-z0-9])*$"}
    names = dict.fromkeys(KINDS, served) | {
        "SegmentationRollout": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
    }
    for kind, name in names.items():
        assert schema_of(kind)["properties"]["metadata"] == {"type": "object", "properties": {"name": name}}


def test_get_prints_what_matters() -> None:
    definition = crd.crd(KINDS["SegmentationModel"])["spec"]
    (version,) = definition["versions"]

    columns = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert columns == ["Ready", "Stable", "Candidate", "Phase", "Weight", "SLO", "URL", "Age"]
    assert version["subresources"] == {"status": {}}
    assert definition["names"]["shortNames"] == ["segm"]
    assert definition["names"]["categories"] == ["ml", "segserve"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_list_says_why(kind: str) -> None:
    (version,) = crd.crd(KINDS[kind])["spec"]["versions"]

    names = [column["name"] for column in version["additionalPrinterColumns"]]
    assert {"Reason", "Message"} <= set(names)
    assert len(set(names)) == len(names)
    assert names[-1] == "Age"


def test_a_pool_can_be_scaled() -> None:
    definition = crd.crd(KINDS["TritonPool"])["spec"]
    (version,) = definition["versions"]

    columns = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert columns == ["Ready", "Replicas", "Models", "URL", "Age"]
    for path in version["subresources"]["scale"].values():
        node = schema_of("TritonPool")
        for name in path.strip(".").split("."):
            node = node["properties"][name]
        assert node["type"] in ("integer", "string")


def test_the_paths_of_columns_lead_to_fields() -> None:
    for kind in KINDS:
        for column in KINDS[kind].columns:
            node = schema_of(kind)
            if condition := re.fullmatch(r'\.status\.conditions\[\?\(@\.type=="\w+"\)\]\.(\w+)', column.path):
                assert condition[1] in Condition.model_fields
                continue
            if column.path.startswith(".metadata"):
                continue
            for name in column.path.strip(".").split("."):
                node = node["properties"][name]
            assert node["type"] == column.type


class Odd(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int | str = Field(description="Neither.")


class Pair(BaseModel):
    pair: tuple[int, str] = Field(description="Mixed.")


class Sized(BaseModel):
    size: Quantity = Field("1Gi", description="Of a folder.")
    other: str = Field("b", description="Another.")


class Open(BaseModel):
    sized: Sized = Field(Sized(size="2Gi"), description="With a default of its own.")
    same: Sized = Field(Sized(), description="With the default that its fields have.")
    passed: Passed = Field({}, description="Handed on.")
    few: Mapping[str, str] = Field({}, max_length=3, description="Bounded.")


class Bounded(BaseModel):
    share: float = Field(0.5, gt=0, lt=1, description="Strictly between.")
    point: tuple[int, int] = Field((1, 2), description="Two numbers.")
    names: dict[str, int] = Field({}, description="By name.")
    kind: Literal["one"] = Field("one", description="Fixed.")
    text: str | None = Field(None, description="Optional.")


@pytest.mark.parametrize("model", [Odd, Pair])
def test_a_type_without_a_structural_schema_is_refused(model: type[BaseModel]) -> None:
    with pytest.raises(NotStructuralError):
        structural_schema(model)


def test_what_kubernetes_has_words_of_its_own_for() -> None:
    size = {
        "description": "Of a folder.",
        "pattern": QUANTITY_PATTERN,
        "maxLength": 28,
        "x-kubernetes-int-or-string": True,
        "default": "1Gi",
    }
    sized = {
        "type": "object",
        "properties": {"size": size, "other": {"type": "string", "description": "Another.", "default": "b"}},
    }

    assert structural_schema(Open)["properties"] == {
        "sized": {**sized, "description": "With a default of its own.", "default": {"size": "2Gi"}},
        "same": {**sized, "description": "With the default that its fields have.", "default": {}},
        "passed": {"type": "object", "description": "Handed on.", "x-kubernetes-preserve-unknown-fields": True},
        "few": {
            "type": "object",
            "description": "Bounded.",
            "maxProperties": 3,
            "additionalProperties": {"type": "string"},
            "default": {},
        },
    }


def test_types_become_structural() -> None:
    assert structural_schema(Bounded)["properties"] == {
        "share": {
            "type": "number",
            "description": "Strictly between.",
            "minimum": 0,
            "exclusiveMinimum": True,
            "maximum": 1,
            "exclusiveMaximum": True,
            "default": 0.5,
        },
        "point": {
            "type": "array",
            "description": "Two numbers.",
            "minItems": 2,
            "maxItems": 2,
            "items": {"type": "integer", "format": "int64"},
            "default": [1, 2],
        },
        "names": {
            "type": "object",
            "description": "By name.",
            "additionalProperties": {"type": "integer", "format": "int64"},
            "default": {},
        },
        "kind": {"type": "string", "description": "Fixed.", "enum": ["one"], "default": "one"},
        "text": {"type": "string", "description": "Optional."},
    }
