"""What records keep comes back exactly as it was."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.plain import canonical, from_plain, to_plain


@dataclass(frozen=True)
class Inner:
    values: np.ndarray
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    number: float = 0.0
    flag: bool = False


@given(st.lists(st.floats(width=64), max_size=5), st.floats(allow_nan=False))
def test_every_number_comes_back_bit_by_bit(values: list[float], number: float) -> None:
    sent = Outer(Inner(np.array(values), ("a", "b")), number, flag=True)
    read = from_plain(Outer(Inner(np.zeros(0))), json.loads(canonical(sent)))

    assert read.inner.values.tobytes() == sent.inner.values.tobytes() or np.isnan(values).any()
    assert np.array_equal(read.inner.values, sent.inner.values, equal_nan=True)
    assert (read.number, read.flag, read.inner.names) == (number, True, ("a", "b"))


def test_progress_comes_back_with_its_types() -> None:
    progress = Progress.begun(12.0)
    read = from_plain(Progress.begun(0.0), to_plain(progress))

    for name in Progress.__dataclass_fields__:
        assert getattr(read, name).dtype == getattr(progress, name).dtype
        assert np.array_equal(getattr(read, name), getattr(progress, name))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="not a Progress"):
        from_plain(Progress.begun(0.0), 5)


def test_equal_values_have_one_text() -> None:
    assert canonical({"b": 1, "a": np.array([1.5, np.inf])}) == '{"a":[1.5,"Infinity"],"b":1}'
