"""How many processors a process may use."""

from __future__ import annotations

import os

import pytest

from segserve_builder.cpus import available_cpus, cpu_limit


@pytest.mark.parametrize(
    ("limit", "allowed", "available"),
    [("", None, 4), ("2", 2, 2), ("64", 4, 4), ("0", 1, 1), ("many", None, 4), ("-1", None, 4)],
)
def test_a_container_has_the_processors_of_its_limit_or_of_its_machine(
    monkeypatch: pytest.MonkeyPatch, limit: str, allowed: int | None, available: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    environment = {"SEGSERVE_CPUS": limit}

    assert (cpu_limit(environment), available_cpus(environment)) == (allowed, available)
