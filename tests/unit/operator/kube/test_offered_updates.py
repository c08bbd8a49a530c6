"""Which changes of a spec are the pool's own."""

from __future__ import annotations

from typing import Any

from fakes.cases import cases
from fakes.pools import MINIMAL, VARIABLE, pool_context, with_defaults
from segserve_operator.adapters.kube.updates import settings_digest


@cases(
    ("changes", "own"),
    {
        "the environment": ({"server": VARIABLE}, True),
        "the artifacts' base": ({"artifacts": {"base": "https://m.example.com/"}}, True),
        "a default that is written out": ({"server": {"drainSeconds": 10}}, False),
        "annotations of accounts": ({"server": {"serviceAccountAnnotations": {"a": "b"}}}, False),
        "the number of servers and their update": ({"replicas": 3, "update": {"paused": True}}, False),
    },
)
def test_the_pools_own_part_of_a_template(changes: dict[str, Any], own: bool) -> None:
    before, after = pool_context(MINIMAL), pool_context(MINIMAL, **changes)

    assert (settings_digest(before) != settings_digest(after)) is own


def test_what_an_operator_brings_is_no_part_of_a_pools_own_settings() -> None:
    context = pool_context(MINIMAL)

    assert settings_digest(with_defaults(context, server_image="segserve/server:2")) == settings_digest(context)
