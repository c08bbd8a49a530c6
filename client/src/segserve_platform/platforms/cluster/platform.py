"""The cluster as a `Platform`: resources in its API server, which an operator there carries out."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from segserve_common.kube.kinds import CONFIG_MAPS, EVENTS, MODELS, PODS, POOLS, ROLLOUTS, SELF_REVIEWS, Kind
from segserve_common.kube.names import (
    COMPONENT_LABEL,
    ENVOY_CONTAINER,
    FIELD_MANAGER,
    GATEWAY,
    GROUP_LABEL,
    MANAGED_LABELS,
    POOL_LABEL,
    chunk_name,
)
from segserve_common.kube.requests import Selector
from segserve_common.kube.shards import content_of
from segserve_operator.api.checks import did_you_mean
from segserve_platform.platforms.cluster.config import context_of
from segserve_platform.platforms.cluster.context_client import ContextClient
from segserve_platform.platforms.cluster.gateway import gateway
from segserve_platform.platforms.cluster.watcher import Watcher
from segserve_platform.platforms.errors import ConflictError, ControlError, InvalidResourceError, NotFoundError
from segserve_platform.platforms.port import (
    MODEL,
    POOL,
    Change,
    DoctorCheck,
    Json,
    PlatformEvent,
    PlatformVersion,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from segserve.platform import Cluster
    from segserve_platform.platforms.port import ParsedResource

KINDS: Final[Mapping[str, Kind]] = {MODEL: MODELS, POOL: POOLS}
POLL_S: Final = 1.0
APPLIED_METADATA: Final = ("name", "labels", "annotations")


def past_of_model(client: ContextClient, model: Json, pool: Json | None) -> list[PlatformEvent]:
    """Return events, edits and pods of a model and its pool, in no order; `pool` is None if there is no such pool."""
    resources = [("model", MODELS, model), *([("pool", POOLS, pool)] if pool is not None else [])]
    found: list[PlatformEvent] = []
    for word, kind, resource in resources:
        name = resource["metadata"]["name"]
        found += events_of(client, f"{word} {name}", resource)
        found += _edits(f"{word} {name}", client.managed_fields(kind, name))
    labels = MANAGED_LABELS if pool is None else {**MANAGED_LABELS, POOL_LABEL: pool["metadata"]["name"]}
    roles = (model.get("status") or {}).get("roles") or {}
    groups = {holder.get("group") for holder in roles.values()}
    for pod in client.list(PODS, labels=labels)[0]:
        own = pod["metadata"]["labels"]
        if own.get(COMPONENT_LABEL) == GATEWAY:
            found += _pod(f"gateway {short_name(pod)}", pod)
        elif own.get(GROUP_LABEL) in groups:
            found += _pod(f"server {own[GROUP_LABEL]}/{short_name(pod)}", pod)
    return found


def events_of(client: ContextClient, about: str, resource: Json) -> Iterator[PlatformEvent]:
    """Yield the events of a resource that the cluster still has; raises as `ContextClient.list` does."""
    metadata = resource["metadata"]
    fields = f"involvedObject.name={metadata['name']},involvedObject.uid={metadata['uid']}"
    for event in client.list(EVENTS, fields=fields)[0]:
        at = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
        yield PlatformEvent(
            unix_s(at),
            about,
            event.get("type") == "Warning",
            str(event.get("reason") or ""),
            str(event.get("message") or ""),
            int(event.get("count") or 1),
        )


def _edits(about: str, owners: Iterable[Json]) -> Iterator[PlatformEvent]:
    """Yield the last edit of each tool that owns fields of the specification."""
    for owner in owners:
        specified = (owner.get("fieldsV1") or {}).get("f:spec")
        if specified and not owner.get("subresource") and owner.get("manager") != FIELD_MANAGER:
            fields = ", ".join(sorted(name.removeprefix("f:") for name in specified if name != "."))
            message = f"by {owner['manager']}, which owns {fields}"
            yield PlatformEvent(unix_s(owner.get("time")), about, False, "Edited", message)


def _pod(about: str, pod: Json) -> Iterator[PlatformEvent]:
    status = pod.get("status") or {}
    if started := status.get("startTime"):
        yield PlatformEvent(unix_s(started), about, False, "Started", "the pod was started")
    for container in status.get("containerStatuses") or ():
        ended = (container.get("lastState") or {}).get("terminated")
        if ended:
            message = f"{container['name']} ended: {ended.get('reason', '')} (exit code {ended.get('exitCode')})"
            restarts = int(container.get("restartCount", 0))
            yield PlatformEvent(unix_s(ended.get("finishedAt")), about, True, "Restarted", message, restarts)


def short_name(pod: Mapping[str, Any]) -> str:
    """Return the part of a pod's name after its Deployment's name."""
    name, template = str(pod["metadata"]["name"]), (pod["metadata"].get("labels") or {}).get("pod-template-hash")
    return name[name.rindex(template) :] if template and template in name else name


def unix_s(time_text: str | None) -> float:
    """Return the Unix time in seconds of an RFC 3339 time; now without one."""
    return time.time() if time_text is None else datetime.fromisoformat(time_text).timestamp()


class ClusterPlatform:
    """Implements `Platform` for one namespace of a cluster."""

    def __init__(self, client: ContextClient, place: Cluster) -> None:
        self.client, self._place = client, place

    @classmethod
    def connect(cls, place: Cluster) -> ClusterPlatform:
        """Return the platform of the chosen context; no request is sent yet."""
        return cls(ContextClient.connect(context_of(place)), place)

    def apply(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[str]:
        """Apply resources after a dry run of all of them, so that an invalid one leaves the others unchanged."""
        self.preview(resources, force=force)
        return [self._apply(resource, force=force).outcome for resource in resources]

    def preview(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[Change]:
        """Let the API server validate and complete the resources without storing them."""
        return [self._apply(resource, force=force, dry_run=True) for resource in resources]

    def check_namespace(self, resources: Iterable[ParsedResource]) -> None:
        """Raise `ControlError` for resources of other namespaces, which would be compared with the wrong objects."""
        for resource in resources:
            if (other := self._manifest(resource)["metadata"]["namespace"]) != self.client.namespace:
                raise ControlError(
                    f"{resource.source}: {resource.title} says namespace {other!r}; add --namespace {other} "
                    f"(in Python Cluster(namespace={other!r}))"
                )

    def delete(self, kind: str, name: str) -> str:
        """Request the deletion of a resource; the outcome is the same whether or not an operator runs."""
        self._get(kind, name)
        self.client.delete(KINDS[kind], name)
        return "deleted"

    def runs(self) -> bool:
        """Return True, as the operator runs independently of this process."""
        return True

    def version(self) -> PlatformVersion | None:
        """Return the version of the operator of this namespace."""
        from segserve_platform.platforms.cluster import doctor

        place = f"context {self.client.context}, namespace {self.client.namespace}"
        return PlatformVersion(place, self.client.server, doctor.operator_version(self.client))

    def models(self) -> list[Json]:
        """List the models."""
        return self.client.list(MODELS)[0]

    def model(self, name: str) -> Json:
        """Read a model."""
        return self._get(MODEL, name)

    def find(self, kind: str, name: str) -> Json | None:
        """Read a resource, or return None."""
        try:
            return self.client.get(KINDS[kind], name)
        except NotFoundError:
            return None

    def pools(self) -> list[Json]:
        """List the pools."""
        return self.client.list(POOLS)[0]

    def pool(self, name: str) -> Json:
        """Read a pool."""
        return self._get(POOL, name)

    def rollouts(self) -> list[Json]:
        """List the records of rollouts."""
        return self.client.list(ROLLOUTS)[0]

    def rollout(self, name: str) -> Json | None:
        """Read the record of a rollout, or return None."""
        try:
            return self.client.get(ROLLOUTS, name)
        except NotFoundError:
            return None

    def chunks(self, rollout: str, count: int) -> list[str]:
        """Read the ConfigMaps of the record's oldest evidence; none if any is lost."""
        try:
            config_maps = [self.client.get(CONFIG_MAPS, chunk_name(rollout, number)) for number in range(count)]
        except NotFoundError:
            return []
        return [content_of(config_map) or "" for config_map in config_maps]

    def sheet(self, model: str) -> bytes | None:
        """Ask the comparators of the pool's gateways, through ports that `kubectl port-forward` forwards."""
        from segserve_platform.platforms.cluster.sheets import fetch_sheet  # needs what reads images

        pool = self._get(MODEL, model)["spec"].get("pool", "default")
        return fetch_sheet(self.client, pool, model, self._kubectl_options())

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Merge annotations into an object's annotations."""
        self._get(kind, name)
        self.client.patch(KINDS[kind], name, {"metadata": {"annotations": dict(annotations)}})

    def user(self) -> str:
        """Return the user's name at the API server; empty if it does not say."""
        review = {"apiVersion": SELF_REVIEWS.api_version, "kind": SELF_REVIEWS.name}
        try:
            status = self.client.create(SELF_REVIEWS, review).get("status") or {}
        except ControlError:
            return ""  # an administrator has forbidden it
        return str((status.get("userInfo") or {}).get("username") or "")

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        """Yield the resource after each change, and at least once per `POLL_S`; None while it does not exist."""
        with Watcher(self.client, [Selector(KINDS[kind], fields=f"metadata.name={name}")]) as watcher:
            changes = -1
            while True:
                changes = watcher.wait(changes, POLL_S)
                yield next(iter(watcher.all(KINDS[kind])), None)

    def last_words(self, model: str) -> str:
        """Return nothing: conditions have what pods say."""
        return ""

    def events(self, model: str) -> list[PlatformEvent]:
        """Read the events that the cluster still has, the owners of fields, and the states of pods."""
        manifest = self._get(MODEL, model)
        pool = self.find(POOL, manifest["spec"].get("pool", "default"))
        return past_of_model(self.client, manifest, pool)

    def access_log(self, since_s: float) -> Iterator[str] | None:
        """Read the logs of the gateways' pods, which begin with the start of their containers."""
        if not any("accessLog" in (pool["spec"].get("gateway") or {}) for pool in self.pools()):
            return None
        return self._access_log(since_s)

    def _access_log(self, since_s: float) -> Iterator[str]:
        since = f"{datetime.fromtimestamp(since_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
        for pod in self.client.list(PODS, labels={**MANAGED_LABELS, COMPONENT_LABEL: GATEWAY})[0]:
            path = self.client.path(PODS, pod["metadata"]["name"], None, "log")
            # A container that has not started has no log.
            with (
                suppress(InvalidResourceError),
                self.client.lines(path, {"container": ENVOY_CONTAINER, "sinceTime": since}) as lines,
            ):
                yield from lines

    @contextmanager
    def gateway(self, model: str) -> Iterator[str | None]:
        """Make the gateway of the model's pool reachable, and yield its URL."""
        pool = self._get(MODEL, model)["spec"].get("pool", "default")
        try:
            with gateway(self.client, pool, self._kubectl_options()) as url:
                yield url
        except NotFoundError as error:
            raise ControlError(
                f"pool {pool!r} has no gateway yet ({error}); `segserve get -w` shows it come"
            ) from error

    def close(self) -> None:
        """Close the connections to the API server."""
        self.client.close()

    def checks(self) -> Iterator[DoctorCheck]:
        """Check the requirements of segserve on a cluster and on the user's rights."""
        # This import builds all definitions of the API, which no other command needs.
        from segserve_platform.platforms.cluster import doctor

        return doctor.checks(self.client)

    def _kubectl_options(self) -> list[str]:
        options = ["--context", self.client.context, "--namespace", self.client.namespace]
        return options + ([] if self._place.kubeconfig is None else ["--kubeconfig", str(self._place.kubeconfig)])

    def _get(self, kind: str, name: str) -> Json:
        try:
            return self.client.get(KINDS[kind], name)
        except NotFoundError:
            names = [item["metadata"]["name"] for item in self.client.list(KINDS[kind])[0]]
            message = f"no {kind} {name!r}{did_you_mean(name, names)} in namespace {self.client.namespace!r}"
            raise NotFoundError(f"{message}; there are: {', '.join(names) or 'none'}") from None

    def _manifest(self, resource: ParsedResource) -> Json:
        """Return the manifest to apply: in its namespace, without status and metadata that the server adds."""
        value, metadata = resource.value, resource.value["metadata"]
        namespace = metadata.get("namespace") or self.client.namespace
        if self._place.namespace not in (None, namespace):
            raise ControlError(
                f"{resource.source}: {resource.title} says namespace {namespace!r}, --namespace says "
                f"{self._place.namespace!r}"
            )
        applied = {key: metadata[key] for key in APPLIED_METADATA if metadata.get(key)}
        spec = {"spec": value["spec"]} if "spec" in value else {}
        return {"apiVersion": value["apiVersion"], "kind": value["kind"],
                "metadata": applied | {"namespace": namespace}, **spec}  # fmt: skip

    def _apply(self, resource: ParsedResource, *, force: bool, dry_run: bool = False) -> Change:
        manifest = self._manifest(resource)
        kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
        try:
            former: Json | None = self.client.get(kind, metadata["name"], namespace=metadata["namespace"])
        except NotFoundError:
            former = None
        try:
            now = self.client.apply(kind, manifest, namespace=metadata["namespace"], force=force, dry_run=dry_run)
        except (InvalidResourceError, ConflictError) as error:
            raise type(error)(f"{resource.title}: {error}") from error
        # The resourceVersion cannot be compared, as the operator writes the status meanwhile.
        return Change(former, now)
