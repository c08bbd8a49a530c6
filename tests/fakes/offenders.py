"""Many small cases of one claim, checked in one test that lists all that do not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def offenders(check: Callable[..., object], cases: Mapping[Any, Iterable[Any]]) -> dict[Any, str]:
    """Return the failed assertions by case; `check` is called with the arguments of each."""
    found = {}
    for name, arguments in cases.items():
        try:
            check(*arguments)
        except AssertionError as error:
            found[name] = str(error)
    return found
