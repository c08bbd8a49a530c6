"""Fields of earlier versions are refused with what to write now, in files and in what is stored."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from fakes.pools import MINIMAL
from segserve_operator.api.errors import SpecError
from segserve_operator.api.former_fields import REPLACED, replacement_of
from segserve_operator.mapping.reading import read_pool

from .conftest import problem

CASES = [(parent, name) for parent, fields in REPLACED.items() for name in fields]
OF_POOL = ("spec.server", "spec.gateway", "spec.gateway.callerMetrics")
PARTS: dict[str, Any] = {
    "spec.instances": {"model": "other"},
    "spec.cascade.light": {"model": "other"},
}


def with_field(value: Any, parent: str, name: str) -> Any:
    """Add a field that is no longer there to a resource."""
    part = value
    for key in parent.split(".")[:-1]:
        part = part.setdefault(key, {})
    last = parent.rpartition(".")[2]
    part[last] = part.get(last, PARTS.get(parent, {})) | {name: {}}
    return value


@pytest.mark.parametrize(("parent", "name"), [case for case in CASES if case[0] not in OF_POOL])
def test_a_models_former_field_is_refused_with_what_to_write(coins_value: Any, parent: str, name: str) -> None:
    found = problem(with_field(coins_value, parent, name))

    assert f"{parent}: unknown field {name!r}; {replacement_of(f'{parent}.{name}')}" in found


@pytest.mark.parametrize(("parent", "name"), [case for case in CASES if case[0] in OF_POOL])
def test_a_stored_pool_with_a_former_field_is_refused_not_run_without_it(parent: str, name: str) -> None:
    """A pool of a newer release runs without what this one does not know; without this its pods would be elsewhere."""
    stored = with_field(yaml.safe_load(MINIMAL), parent, name)

    with pytest.raises(SpecError) as refused:
        read_pool(stored, "default")

    assert f"{parent}: unknown field {name!r}; {replacement_of(f'{parent}.{name}')}" in str(refused.value)
