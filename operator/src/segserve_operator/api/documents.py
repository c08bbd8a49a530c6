"""YAML text to plain JSON values with their positions, and back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from segserve_operator.api.meta import Problem, SpecError

MAX_LENGTH: Final = 1024 * 1024
MAX_VALUES: Final = 50_000
MAX_DEPTH: Final = 40

Path = tuple[str | int, ...]
_TAG: Final = "tag:yaml.org,2002:"
_BOOLEANS: Final = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_TOO_DEEP: Final = f"nested more than {MAX_DEPTH} levels deep"


class _Loader(yaml.BaseLoader):
    """Composes nodes with marks; plain scalars are resolved as kubectl does, except dates and base 60."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = None if parent is None else parent.start_mark
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes every value in full; PyYAML would write aliases for equal objects."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^([Yy]es|YES|[Nn]o|NO|[Tt]rue|TRUE|[Ff]alse|FALSE|[Oo]n|ON|[Oo]ff|OFF)$", list("yYnNtTfFoO")),
    ("int", r"^[-+]?(0|[1-9][0-9]{0,18}|0x[0-9a-fA-F]{1,16})$", list("-+0123456789")),
    ("float", r"^[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)
    # In addition to PyYAML's own: a string that this reader or an older one would read as another type is quoted.
    _Dumper.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


@dataclass(slots=True)
class Document:
    """One document of a text: its plain value, the marks of each key and the nodes of each value by path."""

    source: str
    value: Any = None
    keys: dict[Path, yaml.Mark] = field(default_factory=dict)
    nodes: dict[Path, yaml.Node] = field(default_factory=dict)

    def problem(self, path: Path, message: str, *, key: bool = False) -> Problem:
        """Return the problem at `path`, with the position of the nearest value in the text.

        With `key` the position is that of the field's name instead of its value.
        """
        mark = self.keys.get(path) if key else None
        near = path
        while mark is None and near not in self.nodes and near:
            near = near[:-1]
        if mark is None and near in self.nodes:
            mark = self.nodes[near].start_mark
        return _problem(self.source, mark, format_path(path[:-1] if key else path), message)


def read_documents(text: str, source: str) -> list[Document]:
    """Return the documents of a YAML text except empty ones.

    Raises `SpecError` for text that is not YAML, is too large after expanding aliases, repeats a key, or contains a
    value that JSON cannot represent.
    """
    if len(text) > MAX_LENGTH:
        raise SpecError([Problem(source, "", f"the text has {len(text)} characters; at most {MAX_LENGTH} are allowed")])
    try:
        nodes = [node for node in yaml.compose_all(text, _Loader) if node is not None]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        column = error.position - text.rfind("\n", 0, error.position)
        message = f"the character #x{error.character:04x} is not allowed in YAML"
        raise SpecError([Problem(source, "", message, line + 1, column)]) from error
    except yaml.MarkedYAMLError as error:
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError([_problem(source, error.problem_mark or error.context_mark, "", message)]) from error
    reader = _Reader(source)
    documents = [reader.read(node) for node in nodes]
    if reader.problems:
        raise SpecError(reader.problems)
    return [document for document in documents if document.value is not None]


def write_documents(values: Iterable[Any]) -> str:
    """Return JSON values as the YAML documents of one text, which `read_documents` reads back."""
    return yaml.dump_all(values, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def with_strings(text: str, *strings: Mapping[Path, str]) -> str:
    """Return a YAML text with other strings at some paths, given for each document; comments and layout stay.

    A text in which such a value has an alias, or is folded over lines, is written anew, without its comments.
    """
    documents, edits = read_documents(text, ""), list[tuple[int, int, str]]()
    for document, others in zip(documents, strings, strict=True):
        for path, string in others.items():
            parent = document.value
            for part in path[:-1]:
                parent = parent[part]
            parent[path[-1]] = string
            node = document.nodes[path]
            edits.append((node.start_mark.index, node.end_mark.index, json.dumps(string, ensure_ascii=False)))
    changed, values = text, [document.value for document in documents]
    for start, end, string in sorted(edits, reverse=True):
        changed = f"{changed[:start]}{string}{changed[end:]}"
    with suppress(SpecError):
        if [each.value for each in read_documents(changed, "")] == values:
            return changed
    return write_documents(values)


def format_path(path: Path) -> str:
    """Return a path in the usual notation: `spec.classes[1].name`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


def _problem(source: str, mark: yaml.Mark | None, path: str, message: str) -> Problem:
    if mark is None:
        return Problem(source, path, message)
    return Problem(source, path, message, mark.line + 1, mark.column + 1)


class _Reader:
    """Turns nodes into plain values and counts them, so that aliases cannot expand a small text into a huge value."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.count = 0

    def read(self, node: yaml.Node) -> Document:
        document = Document(self.source)
        document.value = self._value(document, node, ())
        return document

    def _value(self, document: Document, node: yaml.Node, path: Path) -> Any:
        document.nodes[path] = node
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:
            limit = f"more than {MAX_VALUES} values" if self.count > MAX_VALUES else _TOO_DEEP
            raise SpecError([_problem(self.source, node.start_mark, "", f"{limit} after expanding aliases")])
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return dict(self._items(document, node, path))
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self._value(document, item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            return _scalar(node)
        except ValueError as error:
            self.problems.append(document.problem(path, str(error)))
            return None

    def _items(self, document: Document, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        line_by_key: dict[str, int] = {}
        for key_node, value in node.value:
            mark = key_node.start_mark
            try:
                key = _key(key_node)
                if key in line_by_key:
                    raise ValueError(f"{key!r} occurs twice, first in line {line_by_key[key]}")
            except ValueError as error:
                self.problems.append(_problem(self.source, mark, format_path(path), str(error)))
                continue
            line_by_key[key] = mark.line + 1
            document.keys[(*path, key)] = mark
            yield key, self._value(document, value, (*path, key))


def _key(node: yaml.Node) -> str:
    """Return the text of a key; raises ValueError if it is not a string."""
    if node.tag == f"{_TAG}merge":
        raise ValueError("merge keys (<<) are not allowed")
    if node.tag != f"{_TAG}str" or not isinstance(node, yaml.ScalarNode):
        actual = f", got {node.value!r}" if isinstance(node, yaml.ScalarNode) else ""
        raise ValueError(f"keys must be strings{actual}")
    return _text(node.value)


def _text(text: str) -> str:
    """Join surrogate pairs, which JSON may contain; raises ValueError for an unpaired one."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise ValueError(f"contains an unpaired surrogate: {text!r}") from error


def _scalar(node: yaml.Node) -> Any:
    """Return the JSON value of a scalar; raises ValueError if there is none."""
    kind = node.tag.removeprefix(_TAG)
    if not isinstance(node, yaml.ScalarNode) or kind not in ("null", "bool", "int", "float", "str", "merge"):
        raise ValueError(f"the tag {node.tag!r} is not allowed")
    text = str(node.value)
    match kind:
        case "null":
            return None
        case "bool":
            if text.lower() not in _BOOLEANS:
                raise ValueError(f"must be true or false, got {text!r}")
            return _BOOLEANS[text.lower()]
        case "int":
            return int(text, 16 if "x" in text else 10)
        case "float":
            number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
            if not math.isfinite(number):
                raise ValueError(f"must be a finite number, got {text}")
            return number
        case _:
            return _text(text)
