"""Random edits of a resource's spec, valid and invalid ones, drawn from the schema of its CustomResourceDefinition.

The way of Acto (Gu et al., SOSP 2023): the schema knows every field, so that no edit has to be thought of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias

from hypothesis import strategies as st

from segserve_operator.api.crd import structural_schema
from segserve_operator.api.resources import KINDS

Json: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[str | int, ...]

REMOVED: Final = object()
_LONGEST_LIST: Final = 3
_LONGEST_TEXT: Final = 12
_OF_ANOTHER_TYPE: Final[tuple[Any, ...]] = ("", "nonsense", -1, 2**40, 0.5, True, [], ["nonsense"], {}, {"a": {}})


@dataclass(frozen=True, slots=True)
class Edit:
    """A new value of the field at `path`, in which a number is an item of a list; `REMOVED` takes the field away."""

    path: Path
    value: Any

    def __repr__(self) -> str:
        shown = "removed" if self.value is REMOVED else repr(self.value)
        return f"{'.'.join(map(str, self.path))}: {shown}"


def spec_schema(kind: str, **most: int) -> Json:
    """Return the structural schema of a kind's spec; `most` replaces the maximum of fields that stand at its top."""
    schema: Json = deepcopy(structural_schema(KINDS[kind].type)["properties"]["spec"])
    for name, maximum in most.items():
        schema["properties"][name]["maximum"] = maximum
    return schema


def edited(spec: Mapping[str, Any], edit: Edit) -> Json:
    """Return a spec after an edit; what is missing on the way to the field is made, a number beyond a list appends."""
    whole: Json = {"spec": deepcopy(dict(spec))}
    at: Any = whole
    path: Path = ("spec", *edit.path)
    for here, after in pairwise(path):
        at = _step(at, here, [] if isinstance(after, int) else {})
    last = path[-1]
    if edit.value is REMOVED:
        if isinstance(last, str):
            at.pop(last, None)
        elif at:
            del at[last % len(at)]
    elif isinstance(last, int) and last >= len(at):
        at.append(edit.value)
    else:
        at[last] = edit.value
    result: Json = whole["spec"]
    return result


def _step(at: Any, name: str | int, empty: Any) -> Any:
    """Return the child to go on in; one that is missing, or of another type, is replaced by an empty one."""
    if isinstance(name, int) and name >= len(at):
        at.append(empty)
        return at[-1]
    present = at[name] if isinstance(name, int) else at.get(name)
    if type(present) is not type(empty):
        at[name] = present = empty
    return present


def edits(schema: Json, *, but: Sequence[str] = ()) -> st.SearchStrategy[Edit]:
    """Return edits of a spec with this schema, of none of the fields `but` at its top."""

    @st.composite
    def any_edits(draw: st.DrawFn) -> Edit:  # without arguments: failures would show the whole schema
        path: list[str | int] = []
        at = schema
        while True:
            names = [name for name in sorted(at.get("properties", {})) if path or name not in but]
            if names and (not path or draw(st.booleans())):
                path.append(draw(st.sampled_from(names)))
                at = at["properties"][path[-1]]
            elif "items" in at and draw(st.booleans()):
                path.append(draw(st.integers(0, _LONGEST_LIST - 1)))
                at = at["items"]
            else:
                break
        kind = draw(st.sampled_from(("valid", "valid", "removed", "invalid")))
        if kind == "removed":
            return Edit(tuple(path), REMOVED)
        return Edit(tuple(path), draw(values(at) if kind == "valid" else _wrong_values(at)))

    return any_edits()


def values(schema: Json) -> st.SearchStrategy[Any]:
    """Return values that a schema allows; rules in CEL may still refuse them."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return st.integers(0, 3) | st.integers(0, 100).map("{} %".format) | st.integers(1, 100).map("{}%".format)
    match schema.get("type"):
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", 0), schema.get("maximum", 1000))
        case "number":
            return st.floats(schema.get("minimum", 0), schema.get("maximum", 1000), allow_nan=False)
        case "string":
            return _texts(schema)
        case "array":
            fewest = schema.get("minItems", 0)
            return st.lists(values(schema["items"]), min_size=fewest, max_size=max(fewest, _LONGEST_LIST))
        case _:
            return _objects(schema)


def _texts(schema: Json) -> st.SearchStrategy[str]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True).filter(
            lambda text: len(text) <= schema.get("maxLength", 1000)
        )
    fewest = schema.get("minLength", 0)
    return st.text("abc:/.-1", min_size=fewest, max_size=max(fewest, _LONGEST_TEXT))


@st.composite
def _objects(draw: st.DrawFn, schema: Json) -> Json:
    properties = schema.get("properties", {})
    if not properties:
        return draw(st.dictionaries(st.sampled_from(("a", "b.example/c")), st.sampled_from(("", "d")), max_size=2))
    required = schema.get("required", ())
    optional = [name for name in sorted(properties) if name not in required]
    chosen = draw(st.lists(st.sampled_from(optional), max_size=2, unique=True)) if optional else []
    return {name: draw(values(properties[name])) for name in (*required, *chosen)}


def _wrong_values(schema: Json) -> st.SearchStrategy[Any]:
    """Return values most of which a schema refuses: another type, beyond a bound, an unknown word or field."""
    wrong = list(_OF_ANOTHER_TYPE)
    if "maximum" in schema:
        wrong.append(schema["maximum"] + 1)
    if "minimum" in schema:
        wrong.append(schema["minimum"] - 1)
    if "maxLength" in schema:
        wrong.append("x" * (schema["maxLength"] + 1))
    return st.sampled_from(wrong)
