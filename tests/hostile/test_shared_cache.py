"""An artifact cache that others may write into: nobody gets other bytes under a digest, and nobody waits for ever."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.cluster_world import DEFAULTS, NAMESPACE, ClusterWorld, model_manifest
from segserve_builder.sources import Access, cache, fetch, fetch_folder, folder_digest
from segserve_builder.sources.cache import FileLocks, folder_path, object_path
from segserve_common.kube.kinds import DEPLOYMENTS

NETWORK = b"the reviewed network"
SHA256 = hashlib.sha256(NETWORK).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source/net.onnx"
    path.parent.mkdir()
    path.write_bytes(NETWORK)
    return path


def poison(path: Path, content: bytes = b"another network") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_other_bytes_under_a_reviewed_digest_are_not_taken_from_the_cache(source: Path, tmp_path: Path) -> None:
    shared = tmp_path / "cache"
    poison(object_path(shared, SHA256))

    assert fetch(source.as_uri(), SHA256, shared).read_bytes() == NETWORK

    poison(object_path(shared, SHA256))  # and not later, either
    assert fetch(source.as_uri(), SHA256, shared).read_bytes() == NETWORK


def test_a_link_in_the_cache_is_no_file_of_it(source: Path, tmp_path: Path) -> None:
    shared = tmp_path / "cache"
    object_path(shared, SHA256).parent.mkdir(parents=True)
    object_path(shared, SHA256).symlink_to(source)

    assert not fetch(source.as_uri(), SHA256, shared).is_symlink()


@pytest.mark.parametrize("is_archive", [False, True], ids=["a folder", "an archive"])
def test_a_file_put_into_a_golden_set_in_the_cache_is_not_replayed(tmp_path: Path, is_archive: bool) -> None:
    images, shared = tmp_path / "golden", tmp_path / "cache"
    images.mkdir()
    (images / "a.png").write_bytes(b"image")
    uri, sha256 = images.as_uri(), folder_digest(images)
    if is_archive:
        with tarfile.open(tmp_path / "golden.tar.gz", "w:gz") as archive:
            archive.add(images / "a.png", "a.png")
        uri = (tmp_path / "golden.tar.gz").as_uri()
        sha256 = hashlib.sha256((tmp_path / "golden.tar.gz").read_bytes()).hexdigest()
    target = folder_path(shared, sha256)
    shutil.copytree(images, target)
    poison(target / "b.png")

    found = fetch_folder(uri, sha256, shared)

    assert sorted(path.name for path in found.iterdir()) == ["a.png"]


def test_what_is_intact_is_not_fetched_again(source: Path, tmp_path: Path) -> None:
    shared = tmp_path / "cache"
    poison(object_path(shared, SHA256), NETWORK)

    assert fetch("https://does-not-exist.invalid/net.onnx", SHA256, shared).read_bytes() == NETWORK
    with pytest.raises(Exception, match="scheme"):
        fetch("https://does-not-exist.invalid/net.onnx", SHA256, shared, Access(schemes=("s3",)))


def test_a_lock_that_is_held_and_not_used_holds_nobody_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "STALLED_S", 0.05)
    shared = tmp_path / "cache"
    part = shared / "partial" / f"{SHA256}.part"
    part.parent.mkdir(parents=True)
    with part.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        assert fetch(source.as_uri(), SHA256, shared).read_bytes() == NETWORK

    assert [path.name for path in part.parent.iterdir()] == [part.name]


def test_who_waited_for_a_file_goes_on_when_it_is_complete_and_in_use(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, waits = tmp_path / "cache", threading.Event()
    part, target = shared / "partial" / f"{SHA256}.part", object_path(shared, SHA256)
    part.parent.mkdir(parents=True)
    target.parent.mkdir(parents=True)
    monkeypatch.setattr(cache.time, "sleep", lambda _: waits.set())
    with part.open("wb") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        fetched = pool.submit(fetch, source.as_uri(), SHA256, shared)
        assert waits.wait(60)
        held.write(NETWORK)
        held.flush()
        part.replace(target)
        fcntl.flock(held, fcntl.LOCK_SH)  # as an agent does while it serves the network

        assert fetched.result(60).read_bytes() == NETWORK


def test_an_object_that_another_process_locks_for_itself_holds_nobody_up(source: Path, tmp_path: Path) -> None:
    path = fetch(source.as_uri(), SHA256, tmp_path / "cache")
    locks = FileLocks()
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        locks.keep([path])

    locks.keep([path])
    locks.close()


@pytest.mark.parametrize("is_allowed", [False, True])
async def test_a_folder_of_the_node_is_no_cache_unless_the_chart_allows_it(is_allowed: bool) -> None:
    world = ClusterWorld(defaults=replace(DEFAULTS, allow_host_path=is_allowed))
    world.apply_pool(server={"cache": {"hostPath": "/var/lib/kubelet"}})
    world.apply(model_manifest("coins"))
    await world.turns(6)

    (server,) = (found for found in world.kube.all(DEPLOYMENTS, NAMESPACE) if "main" in found["metadata"]["name"])
    volumes = server["spec"]["template"]["spec"]["volumes"]
    assert any("hostPath" in volume for volume in volumes) is is_allowed
    mounts = [each for found in server["spec"]["template"]["spec"]["containers"] for each in found["volumeMounts"]]
    # Of a folder of the node, servers see what is of their namespace, and neither read nor write the others'.
    assert {each.get("subPath") for each in mounts if each["name"] == "cache"} == {NAMESPACE if is_allowed else None}
    assert (world.pool_condition("Degraded") == ("True", "HostPathRefused")) is not is_allowed
    assert world.condition("coins", "Ready")[0] == "True"
