"""A cluster as a platform: resources through the API server, everything else left to the operator there."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from segserve.cli.cluster import doctor, logs
from segserve.cli.cluster.calls import Calls
from segserve.cli.cluster.config import config_of
from segserve.cli.cluster.errors import ClusterError, ConflictError, RefusedError, UnknownError
from segserve.cli.cluster.gateway import gateway
from segserve.cli.cluster.story import story
from segserve.cli.cluster.tree import Picture, Snapshot
from segserve.cli.cluster.watching import Look, Watching
from segserve.cli.describing import record_of_latest
from segserve.cli.failures import CommandError
from segserve.cli.files import read_written
from segserve.cli.platform import MODEL, POOL, Check, Json, LogRequest
from segserve_builder.cluster.names import MANAGED_LABELS
from segserve_builder.cluster.shards import content_of
from segserve_operator.adapters.kube.api import CONFIG_MAPS, DEPLOYMENTS, MODELS, PODS, POOLS, ROLLOUTS, Kind
from segserve_operator.adapters.kube.objects.rollout import chunk_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from segserve.cli.where import Where

KINDS: Final[Mapping[str, Kind]] = {MODEL: MODELS, POOL: POOLS}
REFRESH_S: Final = 0.25
LOOK_S: Final = 1.0
WRITTEN: Final = ("name", "labels", "annotations")


class ClusterPlatform:
    """Implements `Platform` for one namespace of a cluster."""

    def __init__(self, calls: Calls, where: Where) -> None:
        self.calls, self._where = calls, where

    @classmethod
    def connect(cls, where: Where) -> ClusterPlatform:
        """Return the platform of the context that is meant; nothing is asked of it yet."""
        return cls(Calls(config_of(where)), where)

    def apply(self, files: Iterable[Path], *, force: bool = False) -> list[tuple[str, str]]:
        """Let the server try all of them first, so that one that it refuses leaves the others as they were."""
        written = [self._placed(value, source) for value, source in read_written(files)]
        for manifest in written:
            self._apply(manifest, force=force, dry_run=True)
        return [(_title(manifest), self._apply(manifest, force=force)) for manifest in written]

    def named(self, files: Iterable[Path]) -> list[tuple[str, str]]:
        """Refuse resources of other namespaces: what has the same name in this one is not theirs."""
        found = []
        for value, source in read_written(files):
            manifest = self._placed(value, source)
            if (other := manifest["metadata"]["namespace"]) != self.calls.namespace:
                raise CommandError(f"{source}: {_title(manifest)} says namespace {other!r}; add --namespace {other}")
            found.append((manifest["kind"], manifest["metadata"]["name"]))
        return found

    def delete(self, kind: str, name: str) -> str:
        """Ask the server; its words are the same whether or not an operator is there to carry it out."""
        self._found(kind, name)
        self.calls.delete(KINDS[kind], name)
        return "deleted"

    def deletes(self) -> bool:
        """Return True: who does not want to wait says so."""
        return True

    def models(self) -> list[Json]:
        """List them."""
        return self.calls.list(MODELS)[0]

    def model(self, name: str) -> Json:
        """Read one."""
        return self._found(MODEL, name)

    def pools(self) -> list[Json]:
        """List them."""
        return self.calls.list(POOLS)[0]

    def rollouts(self) -> list[Json]:
        """List them."""
        return self.calls.list(ROLLOUTS)[0]

    def rollout(self, name: str) -> Json | None:
        """Read one."""
        try:
            return self.calls.get(ROLLOUTS, name)
        except UnknownError:
            return None

    def chunks(self, rollout: str, count: int) -> list[str]:
        """Read the ConfigMaps beside the record."""
        try:
            found = [self.calls.get(CONFIG_MAPS, chunk_name(rollout, number)) for number in range(count)]
        except UnknownError:
            return []
        return [content_of(each) or "" for each in found]

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Merge them into what the object has; the operator and other tools keep theirs."""
        self._found(kind, name)
        self.calls.merge(KINDS[kind], name, {"metadata": {"annotations": dict(annotations)}})

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        """Follow the server's events."""
        with Watching(self.calls, [Look(KINDS[kind], fields=f"metadata.name={name}")]) as watching:
            seen = -1
            while True:
                seen = watching.wait(seen, LOOK_S)
                yield next(iter(watching.all(KINDS[kind])), None)

    def pictures(self, name: str | None, *, wide: bool) -> Iterator[Picture]:
        """Follow the server's events; the caller's pace is the picture's."""
        looks = (Look(MODELS), Look(POOLS), Look(PODS, MANAGED_LABELS), Look(DEPLOYMENTS, MANAGED_LABELS))
        if name is not None:
            self._found(MODEL, name)
        title = f"namespace {self.calls.namespace}, context {self.calls.context}"
        with Watching(self.calls, looks) as watching:
            seen = -1
            while True:
                seen = watching.wait(seen, LOOK_S)
                models, pools, pods, deployments = (watching.all(look.kind) for look in looks)
                yield Picture(Snapshot(title, models, pools, pods, deployments, watching.trouble, name, wide))

    def description(self, name: str) -> str:
        """Tell what the server knows: the model, its events, its pods."""
        model = self._found(MODEL, name)
        return story(self.calls, model, record_of_latest(self, model))

    def logs(self, request: LogRequest) -> Iterator[str]:
        """Read logs through the API server: of the groups that hold the model's revisions in a role."""
        groups = None if request.name is None else self._groups(request.name)
        if request.follow and request.previous:
            raise CommandError("--previous is over and cannot be followed; leave out one of both")
        return (logs.followed if request.follow else logs.printed)(self.calls, request, groups)

    @contextmanager
    def gateway(self, model: str) -> Iterator[str | None]:
        """Find the gateway of the model's pool."""
        pool = self._found(MODEL, model)["spec"].get("pool", "default")
        try:
            with gateway(self.calls, pool, self._kubectl_options()) as url:
                yield url
        except UnknownError as error:
            raise ClusterError(
                f"pool {pool!r} has no gateway yet ({error}); `segserve get -w` shows it come"
            ) from error

    def checks(self) -> Iterator[Check]:
        """Examine what segserve needs of a cluster and a user."""
        return doctor.checks(self.calls)

    def _kubectl_options(self) -> list[str]:
        options = ["--context", self.calls.context, "--namespace", self.calls.namespace]
        return options + ([] if self._where.kubeconfig is None else ["--kubeconfig", str(self._where.kubeconfig)])

    def _groups(self, name: str) -> list[str]:
        roles = (self._found(MODEL, name).get("status") or {}).get("roles") or {}
        groups = [holder["group"] for holder in roles.values() if holder.get("group")]
        if not groups:
            raise CommandError(f"no server holds {name} yet; `segserve describe {name}` says why")
        return groups

    def _found(self, kind: str, name: str) -> Json:
        try:
            return self.calls.get(KINDS[kind], name)
        except UnknownError:
            known = ", ".join(item["metadata"]["name"] for item in self.calls.list(KINDS[kind])[0])
            raise UnknownError(
                f"no {kind} {name!r} in namespace {self.calls.namespace!r}; there are: {known or 'none'}"
            ) from None

    def _placed(self, value: Json, source: Path) -> Json:
        """Return what a user wrote, without what the server adds, in its namespace; its addresses stay as they are."""
        metadata = value["metadata"]
        namespace = metadata.get("namespace") or self.calls.namespace
        if self._where.namespace not in (None, namespace):
            raise CommandError(
                f"{source}: {_title(value)} says namespace {namespace!r}, --namespace says {self._where.namespace!r}"
            )
        kept = {key: metadata[key] for key in WRITTEN if metadata.get(key)}
        spec = {"spec": value["spec"]} if "spec" in value else {}
        return {"apiVersion": value["apiVersion"], "kind": value["kind"],
                "metadata": kept | {"namespace": namespace}, **spec}  # fmt: skip

    def _apply(self, manifest: Json, *, force: bool, dry_run: bool = False) -> str:
        kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
        try:
            former: Json | None = self.calls.get(kind, metadata["name"], namespace=metadata["namespace"])
        except UnknownError:
            former = None
        try:
            now = self.calls.apply(kind, manifest, metadata["namespace"], force=force, dry_run=dry_run)
        except (RefusedError, ConflictError) as error:
            raise ClusterError(f"{_title(manifest)}: {error}") from error
        if former is None:
            return "created"
        # Not the resourceVersion: the operator writes the status meanwhile.
        return "unchanged" if _given(former) == _given(now) else "configured"


def _given(manifest: Json) -> tuple[Json | None, ...]:
    metadata = manifest["metadata"]
    return manifest.get("spec"), metadata.get("labels"), metadata.get("annotations")


def _title(manifest: Json) -> str:
    return f"{manifest['kind'].lower()}/{manifest['metadata']['name']}"
