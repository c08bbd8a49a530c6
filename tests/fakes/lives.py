"""A pool, its model and the model's rollouts in all states that other tools tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import groupby
from typing import Final

from fakes.cluster import Json
from fakes.cluster_models import model, pool, smallest
from fakes.kube_connection import client_of_file
from fakes.served_namespace import MODEL, POOL, ServedNamespace
from segserve_common.kube.kinds import MODELS, POOLS, ROLLOUTS, Kind
from segserve_common.kube.requests import Selector, WatchEvent
from segserve_common.kube.watch import DELETED, Reflector

NAME: Final = "followed"
_ROLLOUT: Final = {"strategy": "canary", "gates": [], "steps": [{"weight": 25, "pause": True}], "bakeTime": "1s"}


def lives(served: ServedNamespace) -> dict[Kind, list[Json]]:
    """Return each version of a pool, a model and its rollouts, from when they are applied until they are gone."""
    events: dict[Kind, list[WatchEvent]] = {POOLS: [], MODELS: [], ROLLOUTS: []}
    with client_of_file(served.cluster.kubeconfig, served.name) as client, ExitStack() as stack:
        for kind, found in events.items():
            watch = Reflector(
                client, Selector(kind), on_list=lambda _: None, on_event=found.append, on_error=lambda _: None
            )
            stack.callback(watch.stop)
            watch.start(watch.list())
        _live(served)
        served.cluster.wait("all are seen to go", lambda: all(map(_gone, events.values())))
    return {kind: [event.object for event in found if _is_own(event)] for kind, found in events.items()}


def judged(judge: Callable[[Json], str], versions: Iterable[Json]) -> str:
    """Return what a tool says of an object from its first version to its last, each change of that once."""
    return " ".join(said for said, _ in groupby(map(judge, versions)))


def _live(served: ServedNamespace) -> None:
    """Have the model serve, be edited, paused, promoted, refused and mended, and the pool miss a Secret."""
    edited = model(name=NAME, pool=NAME, postprocess=smallest(153), rollout=_ROLLOUT)
    served.apply(pool(NAME), model(name=NAME, pool=NAME))
    served.becomes(NAME, "Ready", "True")
    served.becomes(NAME, "Reconciling", "False")
    served.apply(edited)
    said = served.cluster.wait("traffic", lambda: _rollout(served, phase="Progressing"))
    for request, paused in (("pause", True), ("resume", False), ("promote", False)):
        served.patch(MODEL, NAME, {"metadata": {"annotations": {f"segserve.dev/{request}": said["revision"]}}})
        served.cluster.wait(request, lambda paused=paused: _rollout(served, paused=paused))
    served.becomes(NAME, "Reconciling", "False")

    served.apply(model(name=NAME, pool=NAME, artifact=model("coins-instances")["spec"]["artifact"]))
    served.becomes(NAME, "Stalled", "True")
    served.apply(edited)
    served.becomes(NAME, "Reconciling", "False")
    served.delete(MODEL, NAME)

    keys = [{"secretRef": {"name": "nowhere", "key": "htpasswd"}}]
    served.patch(POOL, NAME, {"spec": {"gateway": {"auth": {"apiKeys": keys}}}})
    served.cluster.wait_condition(served.name, POOL, NAME, "Degraded")
    served.delete(POOL, NAME)


def _rollout(served: ServedNamespace, **fields: object) -> Json | None:
    """Return the state of the model's rollout if it has these fields."""
    said: Json = {"paused": False, **served.status(NAME).get("rollout", {})}
    return said if said.items() >= fields.items() else None


def _is_own(event: WatchEvent) -> bool:
    return str(event.object["metadata"]["name"]).startswith(NAME)


def _gone(events: list[WatchEvent]) -> bool:
    return any(event.type == DELETED for event in events if _is_own(event))
