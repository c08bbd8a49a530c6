"""The product's short deadlines are twenty times as long in tests of one process.

A plugin of pytest. The product gives up after 0.3 to 10 s and then answers otherwise, which on a busy machine would be
a claim about that machine. A test that is about a deadline is marked `own_deadlines`, or sets one of its own.
Processes that a test starts keep the product's own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Final

import pytest

FACTOR: Final = 20
FOLDERS: Final = ("tests/unit/", "tests/contract/", "tests/hostile/")
DEADLINES: Final[Mapping[str, tuple[str, ...]]] = {
    "segserve_platform.cli.options": ("PATIENCE_S",),
    "segserve_platform.control.rollouts": ("ANSWER_S",),
    "segserve_platform.platforms.cluster.gateway": ("REACH_S",),
    "segserve_ui.app": ("ACTION_S",),
    "segserve_ui.server": ("END_S",),
    "segserve_builder.agent.answer_counts": ("_TIMEOUT_S",),
    "segserve_builder.agent.loop": ("TAKEOVER_S",),
    "segserve_builder.agent.server": ("QUERY_TIMEOUT_S", "UNANSWERED_GRACE_S"),
    "segserve_builder.backend.batch_spans": ("TIMEOUT_S",),
    "segserve_builder.cluster.config_map_watch": ("JOIN_S",),
    "segserve_builder.cluster.probe_server": ("_TIMEOUT_S",),
    "segserve_builder.cluster.triton": ("_ANSWER_S",),
    "segserve_builder.gpus": ("_ANSWER_S",),
    "segserve_builder.cluster.report_sender": ("JOIN_S",),
    "segserve_builder.comparator.comparing": ("TIMEOUT_S",),
    "segserve_builder.copies.copies": ("TIMEOUT_S",),
    "segserve_common.kube.async_client": ("CONNECT_TIMEOUT_S",),
    "segserve_common.kube.client": ("CONNECT_TIMEOUT_S",),
    "segserve_operator.adapters.checks.gateway": ("CONNECT_S",),
    "segserve_operator.adapters.checks.probe": ("TIMEOUT_S",),
    "segserve_operator.adapters.checks.triton_queue": ("TIMEOUT_S",),
    "segserve_operator.adapters.kube.resources": ("TIMEOUT_S",),
    "segserve_operator.adapters.local.comparator": ("END_GRACE_S",),
    "segserve_operator.adapters.local.fleet": ("FRESH_S", "PROBE_TIMEOUT_S"),
    "segserve_operator.adapters.local.gateway": ("END_GRACE_S",),
    "segserve_operator.adapters.local.processes": ("KILL_TIMEOUT_S",),
    "segserve_operator.adapters.notify.notifier": ("TIMEOUT_S",),
    "segserve_operator.adapters.outbound.child": ("REQUEST_S",),
    "segserve_operator.adapters.samples.prometheus": ("_TIMEOUT_S",),
    "segserve_operator.adapters.samples.wire": ("TIMEOUT_S",),
    "segserve_operator.adapters.traffic.envoy": ("_ADMIN_TIMEOUT_S", "UPDATE_TIMEOUT_S"),
    "segserve_operator.adapters.traffic.envoy_updater": ("UPDATE_TIMEOUT_S",),
    "segserve_operator.adapters.traffic.pair_counts": ("TIMEOUT_S",),
    "segserve_operator.gateway_sync.__main__": ("TIMEOUT_S",),
    "segserve_operator.gateway_sync.sidecar": ("_METRICS_S", "_READY_S"),
    "segserve_operator.local_platform.metrics": ("SERVER_TIMEOUT_S",),
    "segserve_operator.main": ("STOP_S",),
}
"""Constants by the module that uses them, which may have imported them from another."""

_changes: Final = pytest.MonkeyPatch()
_lengthened: Final[set[str]] = set()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give the test longer deadlines, or the product's own, before its fixtures begin."""
    if not item.nodeid.startswith(FOLDERS) or item.get_closest_marker("own_deadlines"):
        _changes.undo()
        _lengthened.clear()
        return
    # Modules that no test has imported yet are not imported for this.
    for name in DEADLINES.keys() - _lengthened:
        if (module := sys.modules.get(name)) is not None:
            _lengthen(module, DEADLINES[name])
            _lengthened.add(name)


def _lengthen(module: ModuleType, constants: tuple[str, ...]) -> None:
    for constant in constants:
        own_s = getattr(module, constant)
        _changes.setattr(module, constant, FACTOR * own_s)
        # A default is a constant's value at the time of the import.
        for function in _functions(module):
            defaults = function.__kwdefaults__ or {}
            for parameter in [name for name, value in defaults.items() if value is own_s]:
                _changes.setitem(defaults, parameter, FACTOR * own_s)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    for each in vars(module).values():
        yield from filter(inspect.isfunction, vars(each).values() if inspect.isclass(each) else (each,))
