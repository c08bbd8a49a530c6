"""No claim of a test is about how fast the machine is: deadlines are long, and the clock is read while a test runs."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from patience import DEADLINES, FACTOR
from segserve_operator.adapters.notify import notifier

ROOT = Path(__file__).parents[3]
SOURCES = [ROOT / "client/src", ROOT / "model_repo_builder/src", ROOT / "operator/src"]
SHORT_S: Final = 10.0
WAITS: Final = {"timeout", "settimeout", "join", "create_connection"}
"""Functions whose argument is a deadline."""
NOT_LENGTHENED: Final = {
    "segserve_operator.adapters.kube.objects.gateway:_REPLY_S": "written for a gateway of Kubernetes",
    "segserve_operator.adapters.traffic.envoy_auth:_JWKS_TIMEOUT_S": "written for Envoy",
    "segserve_operator.adapters.traffic.envoy_listener:_AFTER_TIMEOUT_S": "written for Envoy",
    "segserve_operator.adapters.traffic.envoy_telemetry:_EXPORT_TIMEOUT_S": "written for Envoy",
}
CLOCKS: Final = {
    *("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
}
OWN_S, LONG_S = 5.0, 100.0


def test_a_deadline_of_the_product_is_twenty_times_as_long_in_a_test() -> None:
    defaults = notifier.Notifier.__init__.__kwdefaults__
    assert (notifier.TIMEOUT_S, defaults["timeout_s"]) == (LONG_S, LONG_S) == (FACTOR * OWN_S, FACTOR * OWN_S)


@pytest.mark.own_deadlines
def test_a_test_that_is_about_a_deadline_has_the_products_own() -> None:
    defaults = notifier.Notifier.__init__.__kwdefaults__
    assert (notifier.TIMEOUT_S, defaults["timeout_s"]) == (OWN_S, OWN_S)


def test_each_deadline_that_is_lengthened_is_one_of_the_product() -> None:
    missing = {f"{module}:{name}" for module, names in DEADLINES.items() for name in names} - set(short_constants())

    assert missing == set()


def test_each_short_deadline_of_the_product_is_lengthened_or_said_not_to_be() -> None:
    """Others that only a reader recognises are in the table as well."""
    constants = short_constants()
    handed = {f"{name}:{each.id}" for name, module in modules().items() for each in deadlines(module)}
    named = {key for key in constants if "TIMEOUT" in key.partition(":")[2]}
    lengthened = {f"{module}:{name}" for module, names in DEADLINES.items() for name in names}
    # Where it is imported by name, only its importers' are changed.
    known = lengthened | NOT_LENGTHENED.keys() | {constants.get(key) for key in lengthened}

    assert ((handed & constants.keys()) | named) - known == set()
    assert NOT_LENGTHENED.keys() - constants.keys() == set()


def test_no_test_reads_the_clock_when_it_is_imported() -> None:
    read = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for call in at_import(ast.parse(path.read_text()))
        if ".".join(ast.unparse(call.func).split(".")[-2:]) in CLOCKS
    ]

    assert read == []


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(source).with_suffix("").parts): ast.parse(path.read_text())
        for source in SOURCES
        for path in source.rglob("*.py")
    }


def short_constants() -> dict[str, str]:
    """Return where each constant of at most `SHORT_S` is defined, by `module:NAME` of all modules that know it."""
    found = {
        f"{name}:{node.target.id}": f"{name}:{node.target.id}"
        for name, module in modules().items()
        for node in module.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.endswith("_S")
        if isinstance(node.value, ast.Constant) and 0 < node.value.value <= SHORT_S
    }
    imported = {
        f"{name}:{alias.name}": f"{node.module}:{alias.name}"
        for name, module in modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}:{alias.name}" in found
    }
    return imported | found


def deadlines(module: ast.Module) -> Iterator[ast.Name]:
    """Yield names that stand where a deadline does: as a parameter `timeout`, also its default, or of what waits."""
    for node in ast.walk(module):
        values: list[ast.expr | None] = []
        if isinstance(node, ast.Call):
            values = [each.value for each in node.keywords if each.arg and "timeout" in each.arg]
            if ast.unparse(node.func).rpartition(".")[2] in WAITS:
                values += node.args
        elif isinstance(node, ast.arguments):
            values = [*node.defaults, *node.kw_defaults]
        for value in values:
            if value is not None:
                yield from (each for each in ast.walk(value) if isinstance(each, ast.Name))


def at_import(node: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that the import of a module makes: not those in functions, but those of their defaults."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for each in (*child.decorator_list, child.args):
                yield from at_import(each)
        elif not isinstance(child, ast.Lambda):
            yield from at_import(child)
