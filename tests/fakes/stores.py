"""The stores that keep resources: in memory, in files, on a cluster; with users' writes on each, and new processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes.cluster_world import DEFAULTS, KEY, NAMESPACE, model_manifest
from fakes.kube import FakeKube
from fakes.kube_faults import Crash, Faulty, crash_at
from fakes.platform import InMemoryStore, assigned
from segserve_common.kube.kinds import CHILDREN, CONFIG_MAPS, MODELS, POOLS, ROLLOUTS, Kind
from segserve_common.kube.names import ROLLOUT_LABEL
from segserve_operator.adapters.kube.contexts import PoolContexts
from segserve_operator.adapters.kube.store import ClusterStore, StoreCache
from segserve_operator.adapters.kube.view import ModelInterner, View
from segserve_operator.adapters.kube.write_through import WriteThroughApi
from segserve_operator.adapters.local import rollouts as rollout_files
from segserve_operator.adapters.local.files import StateFolder, read_yaml, write_yaml
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.api.loading import parse

NETWORKS = {"one": "1" * 64, "two": "2" * 64}
NOW_S = 1_800_000_000.0


class MemoryHarness:
    """Users' writes on the store in memory."""

    def __init__(self) -> None:
        self.store = InMemoryStore()

    def apply(self, name: str, network: str) -> None:
        self.store.apply(assigned(name, network))

    def delete(self, name: str) -> None:
        self.store.delete(name)

    def annotate(self, name: str, verb: str, value: str) -> None:
        self.store.annotate(name, **{verb: value})

    def restart(self) -> None:
        """Go on in a new process."""

    def rollout_names(self) -> set[str]:
        return set(self.store.rollout_records)


class FileHarness:
    """Users' writes on the store in files, as the command line makes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LocalStore(StateFolder(folder))

    def apply(self, name: str, network: str, *, spec: dict[str, Any] | None = None, **annotations: str) -> None:
        manifest = {
            "apiVersion": "segserve.dev/v1alpha1",
            "kind": "SegmentationModel",
            "metadata": {"name": name} | ({"annotations": annotations} if annotations else {}),
            "spec": {
                "artifact": {"uri": "file:///network.onnx", "sha256": NETWORKS[network]},
                "family": "semantic-logits",
                "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}],
                "preprocess": [{"decode": {}}],
                "postprocess": [{"argmax": {}}],
                **(spec or {}),
            },
        }
        self.store.apply(parse(manifest, name), manifest)

    def delete(self, name: str) -> None:
        self.store.delete("SegmentationModel", name)

    def annotate(self, name: str, verb: str, value: str) -> None:
        self.store.annotate("SegmentationModel", name, {f"segserve.dev/{verb}": value})

    def restart(self) -> None:
        """Go on in a new process."""
        self.store = LocalStore(StateFolder(self.folder))

    def rollout_names(self) -> set[str]:
        return set(self.store.names("SegmentationRollout"))

    def rollout(self, name: str) -> dict[str, Any]:
        """Return a record as `segserve get` shows it."""
        return self.store.get("SegmentationRollout", name)

    def spoil(self, name: str, **status: Any) -> None:
        """Edit a record by hand."""
        path = self.folder / "objects/SegmentationRollout" / name / "status.yaml"
        write_yaml(path, {**read_yaml(path), **status})

    def chunk_versions(self, name: str) -> list[str]:
        """Return a text for each chunk of a record that is another whenever it was written."""
        folder = self.folder / "objects/SegmentationRollout" / name
        return [f"{path.stat().st_mtime_ns} {path.stat().st_ino}" for path in sorted(folder.glob("rows-*"))]

    def lose_chunk(self, name: str, number: int) -> None:
        (self.folder / "objects/SegmentationRollout" / name / f"rows-{number}").unlink()

    def dies_at(self, write: int, monkeypatch: Any) -> None:
        """Let the process die before its n-th write of a record."""
        count = 0
        for function in ("write_private", "write_yaml"):
            real = getattr(rollout_files, function)

            def counted(*arguments: Any, real: Any = real) -> None:
                nonlocal count
                count += 1
                if count == write:
                    raise Crash
                real(*arguments)

            monkeypatch.setattr(rollout_files, function, counted)


class ClusterHarness:
    """Users' writes on the store of a cluster in memory."""

    def __init__(self) -> None:
        self.kube = FakeKube(lambda: NOW_S)
        metadata = {"name": KEY.pool, "namespace": NAMESPACE}
        pool = {"apiVersion": POOLS.api_version, "kind": POOLS.name, "metadata": metadata, "spec": {}}
        self.kube.put(POOLS, pool)
        self.restart()

    def apply(self, name: str, network: str, *, spec: dict[str, Any] | None = None) -> None:
        manifest = model_manifest(name, {"one": "1", "two": "2"}[network], **(spec or {}))
        live = self.kube.peek(MODELS, NAMESPACE, name)
        if live is None:
            self.kube.put(MODELS, manifest)
        else:
            self.kube.edit(MODELS, NAMESPACE, name, {"spec": manifest["spec"]})
        self.kube.deliver()

    def delete(self, name: str) -> None:
        self.kube.remove(MODELS, NAMESPACE, name)
        self.kube.deliver()

    def annotate(self, name: str, verb: str, value: str) -> None:
        self.kube.edit(MODELS, NAMESPACE, name, {"metadata": {"annotations": {f"segserve.dev/{verb}": value}}})
        self.kube.deliver()

    def restart(self) -> None:
        """Go on in a new process."""
        for watch in list(self.kube.watches):
            watch.close()
        view = View((MODELS, POOLS, *CHILDREN))
        for kind, found in self.kube.everything():
            if kind in (MODELS, POOLS):
                view.take(kind, found)
        self.api = Faulty(self.kube)
        api = WriteThroughApi(self.api, view)
        contexts = PoolContexts(view, DEFAULTS)
        self.store = ClusterStore(api, view, contexts, KEY, StoreCache(), ModelInterner(), lambda: NOW_S)

        def feed(event: str, kind: Kind, found: dict[str, Any]) -> None:
            _ = view.drop(kind, found) if event == "DELETED" else view.take(kind, found)

        self.kube.subscribe(feed, (MODELS, POOLS))
        self.view = view

    def rollout_names(self) -> set[str]:
        return {found["metadata"]["name"] for found in self.kube.all(ROLLOUTS, NAMESPACE)}

    def rollout(self, name: str) -> dict[str, Any]:
        """Return a record as `kubectl get` shows it."""
        found = self.kube.peek(ROLLOUTS, NAMESPACE, name)
        assert found is not None
        return found

    def spoil(self, name: str, **status: Any) -> None:
        """Edit a record by hand."""
        self.kube.edit_status(ROLLOUTS, NAMESPACE, name, {"status": status})

    def chunks(self, name: str) -> list[dict[str, Any]]:
        return self.kube.all(CONFIG_MAPS, NAMESPACE, {ROLLOUT_LABEL: name})

    def chunk_versions(self, name: str) -> list[str]:
        """Return a text for each chunk of a record that is another whenever it was written."""
        return [chunk["metadata"]["resourceVersion"] for chunk in self.chunks(name)]

    def lose_chunk(self, name: str, number: int) -> None:
        self.kube.remove(CONFIG_MAPS, NAMESPACE, f"{name}-{number}")

    def dies_at(self, write: int, monkeypatch: Any) -> None:
        """Let the process die before its n-th write of a record."""
        self.api.add(crash_at(write))
