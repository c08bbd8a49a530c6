"""kopf's handlers: every event updates the view and enqueues a pool; none makes a decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from segserve_common.kube.kinds import NAMESPACES, Kind
from segserve_operator.adapters.kube.namespaces import ENABLED, EnabledNamespaces, pools_within
from segserve_operator.adapters.kube.view import PoolKey, View, selector


def registry_of(
    view: View, enqueue: Callable[[PoolKey], None], enabled: EnabledNamespaces | None = None
) -> kopf.OperatorRegistry:
    """Return kopf's handlers for all kinds of the view, and for the labels of namespaces if `enabled` follows them.

    Only `on.event` is used: kopf then writes nothing into any object, no finalizer, no annotation, and has no
    handler that could fail for good.
    """
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_login)
    for kind in view.kinds:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(_feed(kind, view, enqueue))
    if enabled is not None:
        kopf.on.event(NAMESPACES.group, NAMESPACES.version, NAMESPACES.plural, registry=registry)(
            feed_of_namespaces(enabled, view, enqueue)
        )
    return registry


def settings_of(view: View) -> kopf.OperatorSettings:
    """Return kopf's settings: watches that notice silence, calls that end, nothing of its own in the objects."""
    settings = kopf.OperatorSettings()
    settings.watching.server_timeout = 600
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 70
    # All 10,000 models at once take hundreds of MiB, and so do 500 ConfigMaps of any author.
    settings.watching.chunk_size = 50
    for kind in view.kinds:
        if labels := selector(kind):
            chosen = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = chosen
    # A namespace that loses the label is reported as deleted.
    own = ",".join(f"{name}={value}" for name, value in ENABLED.items())
    settings.watching.label_selectors[NAMESPACES.group, NAMESPACES.version, NAMESPACES.plural] = own
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.enforce_retry_after = True
    # A worker that waits for another event of its object holds up all other objects: of 10,000, for half an hour.
    settings.queueing.idle_timeout = 0.01
    settings.queueing.worker_limit = 100
    settings.queueing.error_delays = (1, 2, 5, 10, 30)
    settings.execution.max_workers = 4
    settings.posting.enabled = False  # Events are the store's, with names that make them one
    settings.persistence.finalizer = "segserve.dev/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="kopf.segserve.dev")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix="kopf.segserve.dev")
    settings.peering.standalone = True  # the Lease decides which process may write; peers would freeze each other
    settings.scanning.disabled = True  # the kinds are known, and a namespaced operator may not look for others
    return settings


def _feed(kind: Kind, view: View, enqueue: Callable[[PoolKey], None]) -> Callable[..., Any]:
    async def feed(event: kopf.RawEvent, **_: Any) -> None:
        item: Any = event["object"]
        news = view.drop(kind, item) if event["type"] == "DELETED" else view.take(kind, dict(item))
        for key in news:
            enqueue(key)

    feed.__name__ = f"feed_{kind.plural}"
    return feed


def feed_of_namespaces(
    enabled: EnabledNamespaces, view: View, enqueue: Callable[[PoolKey], None]
) -> Callable[..., Any]:
    """Return kopf's handler of events of labelled namespaces: pools of a new one are enqueued."""

    async def feed_namespaces(event: kopf.RawEvent, **_: Any) -> None:
        name = str(event["object"]["metadata"]["name"])
        if event["type"] == "DELETED":
            enabled.discard(name)
        elif enabled.add(name):
            for key in pools_within(view, {name}):
                enqueue(key)

    return feed_namespaces


def _login(**kwargs: Any) -> Any:
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
