"""A cluster as a platform: resources through the API server, everything else left to the operator there."""

from __future__ import annotations

import base64
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from segserve.platforms.cluster import logs
from segserve.platforms.cluster.config import context_of
from segserve.platforms.cluster.context_client import ContextClient
from segserve.platforms.cluster.gateway import gateway
from segserve.platforms.cluster.watcher import Watcher
from segserve.platforms.errors import ConflictError, ControlError, InvalidResourceError, NotFoundError
from segserve.platforms.port import MODEL, POOL, DoctorCheck, Json, LogRequest
from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, POOLS, ROLLOUTS, Kind
from segserve_common.kube.names import BUNDLE_KEY, bundle_name, chunk_name
from segserve_common.kube.requests import Selector
from segserve_common.kube.shards import content_of
from segserve_operator.api.checks import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from segserve.platforms.port import Cluster, ParsedResource

KINDS: Final[Mapping[str, Kind]] = {MODEL: MODELS, POOL: POOLS}
LOOK_S: Final = 1.0
WRITTEN: Final = ("name", "labels", "annotations")


class ClusterPlatform:
    """Implements `Platform` for one namespace of a cluster."""

    def __init__(self, client: ContextClient, place: Cluster) -> None:
        self.client, self._place = client, place

    @classmethod
    def connect(cls, place: Cluster) -> ClusterPlatform:
        """Return the platform of the context that is meant; nothing is asked of it yet."""
        return cls(ContextClient.connect(context_of(place)), place)

    def apply(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[str]:
        """Let the server try all of them first, so that one that it refuses leaves the others as they were."""
        placed = [(written.title, self._placed(written)) for written in resources]
        for title, manifest in placed:
            self._apply(title, manifest, force=force, dry_run=True)
        return [self._apply(title, manifest, force=force) for title, manifest in placed]

    def check_namespace(self, resources: Iterable[ParsedResource]) -> None:
        """Refuse resources of other namespaces: what has the same name in this one is not theirs."""
        for written in resources:
            if (other := self._placed(written)["metadata"]["namespace"]) != self.client.namespace:
                raise ControlError(
                    f"{written.source}: {written.title} says namespace {other!r}; add --namespace {other} "
                    f"(in Python Cluster(namespace={other!r}))"
                )

    def delete(self, kind: str, name: str) -> str:
        """Ask the server; its words are the same whether or not an operator is there to carry it out."""
        self._found(kind, name)
        self.client.delete(KINDS[kind], name)
        return "deleted"

    def runs(self) -> bool:
        """Return True: who does not want to wait says so."""
        return True

    def models(self) -> list[Json]:
        """List them."""
        return self.client.list(MODELS)[0]

    def model(self, name: str) -> Json:
        """Read one."""
        return self._found(MODEL, name)

    def find(self, kind: str, name: str) -> Json | None:
        """Read one."""
        try:
            return self.client.get(KINDS[kind], name)
        except NotFoundError:
            return None

    def pools(self) -> list[Json]:
        """List them."""
        return self.client.list(POOLS)[0]

    def pool(self, name: str) -> Json:
        """Read one."""
        return self._found(POOL, name)

    def rollouts(self) -> list[Json]:
        """List them."""
        return self.client.list(ROLLOUTS)[0]

    def rollout(self, name: str) -> Json | None:
        """Read one."""
        try:
            return self.client.get(ROLLOUTS, name)
        except NotFoundError:
            return None

    def chunks(self, rollout: str, count: int) -> list[str]:
        """Read the ConfigMaps beside the record."""
        try:
            found = [self.client.get(CONFIG_MAPS, chunk_name(rollout, number)) for number in range(count)]
        except NotFoundError:
            return []
        return [content_of(each) or "" for each in found]

    def bundle(self, rollout: str) -> bytes | None:
        """Read the ConfigMap that the operator keeps it in."""
        try:
            found = self.client.get(CONFIG_MAPS, bundle_name(rollout))
        except NotFoundError:
            return None
        return base64.b64decode(found["binaryData"][BUNDLE_KEY])

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Merge them into what the object has; the operator and other tools keep theirs."""
        self._found(kind, name)
        self.client.patch(KINDS[kind], name, {"metadata": {"annotations": dict(annotations)}})

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        """Follow the server's events."""
        with Watcher(self.client, [Selector(KINDS[kind], fields=f"metadata.name={name}")]) as watcher:
            seen = -1
            while True:
                seen = watcher.wait(seen, LOOK_S)
                yield next(iter(watcher.all(KINDS[kind])), None)

    def logs(self, request: LogRequest) -> Iterator[str]:
        """Read logs through the API server: of the groups that hold the model's revisions in a role."""
        groups = None if request.name is None else self._groups(request.name)
        if request.follow and request.previous:
            raise ControlError("--previous is over and cannot be followed; leave out one of both")
        return (logs.followed if request.follow else logs.printed)(self.client, request, groups)

    @contextmanager
    def gateway(self, model: str) -> Iterator[str | None]:
        """Find the gateway of the model's pool."""
        pool = self._found(MODEL, model)["spec"].get("pool", "default")
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
        """Check what segserve needs of a cluster and a user."""
        # It reads all definitions of the API, which no other command needs.
        from segserve.platforms.cluster import doctor

        return doctor.checks(self.client)

    def _kubectl_options(self) -> list[str]:
        options = ["--context", self.client.context, "--namespace", self.client.namespace]
        return options + ([] if self._place.kubeconfig is None else ["--kubeconfig", str(self._place.kubeconfig)])

    def _groups(self, name: str) -> list[str]:
        roles = (self._found(MODEL, name).get("status") or {}).get("roles") or {}
        groups = [holder["group"] for holder in roles.values() if holder.get("group")]
        if not groups:
            raise ControlError(f"no server holds {name} yet; `segserve describe {name}` says why")
        return groups

    def _found(self, kind: str, name: str) -> Json:
        try:
            return self.client.get(KINDS[kind], name)
        except NotFoundError:
            known = [item["metadata"]["name"] for item in self.client.list(KINDS[kind])[0]]
            seen = f"no {kind} {name!r}{did_you_mean(name, known)} in namespace {self.client.namespace!r}"
            raise NotFoundError(f"{seen}; there are: {', '.join(known) or 'none'}") from None

    def _placed(self, written: ParsedResource) -> Json:
        """Return what a user wrote, without what the server adds, in its namespace; its addresses stay as they are."""
        value, metadata = written.value, written.value["metadata"]
        namespace = metadata.get("namespace") or self.client.namespace
        if self._place.namespace not in (None, namespace):
            raise ControlError(
                f"{written.source}: {written.title} says namespace {namespace!r}, --namespace says "
                f"{self._place.namespace!r}"
            )
        kept = {key: metadata[key] for key in WRITTEN if metadata.get(key)}
        spec = {"spec": value["spec"]} if "spec" in value else {}
        return {"apiVersion": value["apiVersion"], "kind": value["kind"],
                "metadata": kept | {"namespace": namespace}, **spec}  # fmt: skip

    def _apply(self, title: str, manifest: Json, *, force: bool, dry_run: bool = False) -> str:
        kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
        try:
            former: Json | None = self.client.get(kind, metadata["name"], namespace=metadata["namespace"])
        except NotFoundError:
            former = None
        try:
            now = self.client.apply(kind, manifest, namespace=metadata["namespace"], force=force, dry_run=dry_run)
        except (InvalidResourceError, ConflictError) as error:
            raise type(error)(f"{title}: {error}") from error
        if former is None:
            return "created"
        # Not the resourceVersion: the operator writes the status meanwhile.
        return "unchanged" if _given(former) == _given(now) else "configured"


def _given(manifest: Json) -> tuple[Json | None, ...]:
    metadata = manifest["metadata"]
    return manifest.get("spec"), metadata.get("labels"), metadata.get("annotations")
