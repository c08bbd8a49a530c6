"""Exact conversion of frozen dataclasses of arrays to JSON values and back, for records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache
from operator import attrgetter
from typing import Any, Final, TypeVar

import numpy as np

T = TypeVar("T")
_WORDS: Final = {"Infinity": np.inf, "-Infinity": -np.inf, "NaN": np.nan}


@cache
def field_names(kind: type) -> tuple[str, ...] | None:
    """Return the names of a dataclass's fields, None for any other type."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None


@cache
def reader(kind: type) -> Callable[[Any], tuple[Any, ...]] | None:
    """Return what reads all fields of a dataclass's value at once, None for any other type."""
    names = field_names(kind)
    if names is None:
        return None
    # Of a single name, an attrgetter returns no tuple.
    return attrgetter(*names) if len(names) > 1 else lambda value: tuple(getattr(value, name) for name in names)


def to_plain(value: Any) -> Any:
    """Return `value` as JSON; infinities and NaN become strings."""
    # Hundreds of them are written with each record, most of one number.
    if isinstance(value, (np.ndarray, np.generic)):
        plain = value.tolist()
        if value.ndim == 0:
            return plain if math.isfinite(plain) else to_plain(plain)
        return plain if np.isfinite(value).all() else to_plain(plain)
    if (names := field_names(value.__class__)) is not None:
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if np.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def canonical(value: Any) -> str:
    """Return the canonical JSON text of a value: equal values have equal texts."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_plain(like: T, value: Any) -> T:
    """Return the value that `to_plain` converted; `like` is any value of the same type.

    Raises ValueError if the JSON does not fit.
    """
    try:
        converted: T = _read(like, value)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a {type(like).__name__}: {error}") from error
    return converted


def _read(like: Any, value: Any) -> Any:
    if is_dataclass(like) and not isinstance(like, type):
        return replace(like, **{each.name: _read(getattr(like, each.name), value[each.name]) for each in fields(like)})
    if isinstance(like, (np.ndarray, np.generic)):
        return np.array(_numbers(value), dtype=like.dtype)
    if isinstance(like, Enum):
        return type(like)(value)
    if isinstance(like, tuple):
        return _frozen(value)
    return _numbers(value) if isinstance(like, float) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _WORDS[value] if isinstance(value, str) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
