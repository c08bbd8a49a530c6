from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.cases import cases
from segserve_operator.api.documents import MAX_LENGTH, read_documents, with_strings, write_documents
from segserve_operator.api.meta import SpecError

TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), max_size=12)
LOOKALIKES = st.sampled_from(
    ["1e5", "1E-3", "0x1F", "017", "12:30", "2026-03-01", "no", "~", "", "<<", ".nan", "1_000"]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | LOOKALIKES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | LOOKALIKES, inner, max_size=3),
    max_leaves=8,
)


def problems_of(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_documents(text, "m.yaml")
    return [str(problem) for problem in caught.value.problems]


@given(st.dictionaries(TEXT | LOOKALIKES, JSON, max_size=4))
def test_every_json_value_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    assert [document.value for document in read_documents(write_documents([value]), "m.yaml")] == [value]


@given(st.dictionaries(TEXT, JSON, min_size=1, max_size=4))
def test_json_is_yaml(value: dict[str, Any]) -> None:
    assert [document.value for document in read_documents(json.dumps(value), "m.yaml")] == [value]


@given(st.text(alphabet=st.sampled_from(list("ab:-{}[]&*!|>'\"%@#?, \n\t\0\ud800é0.~<")), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but `SpecError` is ever raised."""
    with suppress(SpecError):
        read_documents(text, "m.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2", 2),
        ("0x10", 16),
        ("yes", True),
        ("off", False),
        ("null", None),
        ("2026-03-01", "2026-03-01"),
        ("12:30", "12:30"),
        ("017", "017"),
        ("'1'", "1"),
        ("!!str 1", "1"),
    ],
)
def test_plain_scalars_mean_what_they_mean_to_kubectl(text: str, value: object) -> None:
    """Dates and base 60 stay text, and a leading zero is no octal number by accident."""
    assert read_documents(f"a: {text}", "m.yaml")[0].value == {"a": value}


def test_empty_documents_are_left_out() -> None:
    assert [item.value for item in read_documents("---\n# nothing\n---\na: 1\n---\n", "m.yaml")] == [{"a": 1}]


@cases(
    ("text", "problem"),
    {
        "repeated key": ("a: 1\nb: 2\na: 3\n", "m.yaml:3:1: 'a' occurs twice, first in line 1"),
        "repeated inside": ("a: {b: 1, b: 1}", "m.yaml:1:11: a: 'b' occurs twice, first in line 1"),
        "number as key": ("1: a", "m.yaml:1:1: keys must be strings, got '1'"),
        "list as key": ("[a]: b", "m.yaml:1:1: keys must be strings"),
        "merge": ("a: &x {}\nb: {<<: *x}", "m.yaml:2:5: b: merge keys (<<) are not allowed"),
        "tag": ("a: !!python/none 1", "m.yaml:1:4: a: the tag 'tag:yaml.org,2002:python/none' is not allowed"),
        "bad boolean": ("a: !!bool maybe", "m.yaml:1:4: a: must be true or false, got 'maybe'"),
        "half a character": ('a: "\\ud800"', "m.yaml:1:4: a: contains an unpaired surrogate: '\\ud800'"),
        "not a number": ("a: .nan", "m.yaml:1:4: a: must be a finite number, got .nan"),
        "infinite": ("a: 1e999", "m.yaml:1:4: a: must be a finite number, got 1e999"),
        "alias of nothing": ("a: *x", "m.yaml:1:4: found undefined alias 'x'"),
        "tab": (
            "a:\n\tb: 1",
            "m.yaml:2:1: while scanning for the next token, found character '\\t' that cannot start any token",
        ),
        "zero byte": ("a: b\n\0", "m.yaml:2:1: the character #x0000 is not allowed in YAML"),
        "open bracket": (
            "a: [1",
            "m.yaml:1:6: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
        ),
    },
)
def test_a_text_that_cannot_be_meant_is_refused_with_its_place(text: str, problem: str) -> None:
    assert problems_of(text) == [problem]


def test_all_repeated_keys_are_told_at_once() -> None:
    assert len(problems_of("a: 1\na: 2\nb: {c: 1, c: 2}\n")) == 2


def test_an_alias_stands_for_what_it_names() -> None:
    assert read_documents("a: &x {b: 1}\nc: *x", "m.yaml")[0].value == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_bomb_of_aliases_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]

    (problem,) = problems_of("\n".join(lines))

    assert "more than 50000 values after expanding aliases" in problem


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: " + "[" * 5000, "- " * 5000 + "a"])
def test_endless_nesting_is_refused(text: str) -> None:
    (problem,) = problems_of(text)

    assert "nested more than 40 levels deep" in problem


def test_a_text_that_is_too_long_is_refused_unread() -> None:
    assert problems_of("a" * (MAX_LENGTH + 1)) == [
        "m.yaml: the text has 1048577 characters; at most 1048576 are allowed"
    ]


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("a:  # why\n  uri: x.onnx  # here\n  b: 1\n", 'a:  # why\n  uri: "y.onnx"  # here\n  b: 1\n'),
        ("{a: {uri: 'x', b: 1}}\n", '{a: {uri: "y.onnx", b: 1}}\n'),
        ("a: {uri: &x v}\nb: *x  # shared\n", "a:\n  uri: y.onnx\nb: v\n"),
        ("a: {uri: !!str 1}\n", 'a: {uri: "y.onnx"}\n'),
    ],
)
def test_a_string_changes_without_anything_else(text: str, changed: str) -> None:
    assert with_strings(text, {("a", "uri"): "y.onnx"}) == changed
