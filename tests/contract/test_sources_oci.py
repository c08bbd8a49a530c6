"""Artifacts and images of a real registry: Debian's docker-registry, open, with accounts, and with tokens."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fakes.cutting_relay import cutting_relay
from fakes.registry import (
    INDEX,
    PASSWORD,
    TAR,
    USER,
    Registry,
    registry,
    registry_with_accounts,
    registry_with_tokens,
    tar,
)
from segserve_builder.errors import (
    ArtifactMissingError,
    ArtifactTooLargeError,
    BuilderError,
    DigestMismatchError,
    SourceDeniedError,
    SourceUnauthorizedError,
    UnsafeArtifactError,
)
from segserve_builder.sources import Access, RetryPolicy, fetch, fetch_folder, folder_digest
from segserve_builder.sources.access import LOCAL, Credential

NET = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(NET).hexdigest()
ONCE = RetryPolicy(tries=1)
REACHING = LOCAL.model_copy(update={"ambient": False})
pytestmark = pytest.mark.needs("docker-registry")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def got(uri: str, cache: Path, access: Access = REACHING) -> bytes:
    return fetch(uri, SHA256, cache, access, retry_policy=ONCE).read_bytes()


def refused(uri: str, cache: Path, error: type[BuilderError], seen: str, access: Access = REACHING) -> None:
    with pytest.raises(error, match=seen):
        fetch(uri, SHA256, cache, access, retry_policy=ONCE)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_file_of_an_artifact_is_named_by_its_title(server: Registry, tmp_path: Path) -> None:
    digest = server.artifact("nets/coins", {"model.onnx": NET, "deep/a b.json": b"{}"})
    place = f"oci://{server.host}/nets/coins"

    for number, uri in enumerate((":1#model.onnx", f"@{digest}#model.onnx", f":gone@{digest}", ":1")):
        assert got(place + uri, tmp_path / str(number)) == NET
    found = fetch(f"{place}:1#deep/a%20b.json", hashlib.sha256(b"{}").hexdigest(), tmp_path, REACHING)
    assert found.read_bytes() == b"{}"


def test_one_layer_without_a_title_is_the_file(server: Registry, tmp_path: Path) -> None:
    server.push("nets/plain", [server.layer("nets/plain", NET)], "latest")

    assert got(f"oci://{server.host}/nets/plain", tmp_path) == NET


def test_which_file_is_meant_is_asked_where_there_are_several(server: Registry, tmp_path: Path) -> None:
    server.artifact("nets/two", {"a.onnx": NET, "b.onnx": NET[1:]})
    place = f"oci://{server.host}/nets/two:1"

    refused(place, tmp_path, ArtifactMissingError, "a.onnx, b.onnx; name one of them")
    refused(f"{place}#c.onnx", tmp_path, ArtifactMissingError, "a.onnx, b.onnx")


def modelcar(server: Registry, name: str, *layers: bytes, kind: str = TAR, tag: str = "1") -> str:
    server.push(name, [server.layer(name, layer, kind) for layer in layers], tag)
    return f"oci://{server.host}/{name}:{tag}"


BASE = tar({"bin/sh": b"#!", "etc/link": None, "usr/Foo::Bar": b"", "models/model.onnx": b"the first"})


@pytest.mark.parametrize(("mode", "kind"), [("w", TAR), ("w:gz", f"{TAR}+gzip")])
def test_the_uppermost_file_of_a_modelcar_is_read(server: Registry, mode: str, kind: str, tmp_path: Path) -> None:
    uppermost = tar({"./models/readme.md": b"hi", "./models/model.onnx": NET}, mode=mode)
    server.push("cars/two", [server.layer("cars/two", BASE, TAR), server.layer("cars/two", uppermost, kind)])
    place = f"oci://{server.host}/cars/two:1"

    assert got(f"{place}#models/model.onnx", tmp_path / "named") == NET
    assert got(f"{place}#/models/model.onnx", tmp_path / "rooted") == NET
    assert got(place, tmp_path / "only") == NET


@pytest.mark.parametrize("after", [100_000, 900_000], ids=["while it is looked for", "while it arrives"])
@pytest.mark.parametrize(("mode", "kind"), [("w", TAR), ("w:gz", f"{TAR}+gzip")])
def test_a_modelcar_that_breaks_off_is_read_again(
    server: Registry, mode: str, kind: str, after: int, tmp_path: Path
) -> None:
    noise = random.Random(3)
    net = noise.randbytes(1_000_000)
    layer = tar({"models/filler": noise.randbytes(700_000), "models/model.onnx": net}, mode=mode)
    place = modelcar(server, "cars/broken", layer, kind=kind)
    with cutting_relay(server.host, after) as relay:
        relay.cuts = 2
        uri = place.replace(server.host, relay.address) + "#models/model.onnx"
        digest = hashlib.sha256(net).hexdigest()

        found = fetch(uri, digest, tmp_path, REACHING, retry_policy=RetryPolicy(first_s=0.001))

        assert found.read_bytes() == net
        assert relay.cuts == 0


@pytest.mark.parametrize("gone", ["models/.wh.model.onnx", ".wh.models", "models/.wh..wh..opq"])
def test_what_an_upper_layer_removed_is_gone(server: Registry, gone: str, tmp_path: Path) -> None:
    lower = tar({"models/model.onnx": NET})
    place = modelcar(server, "cars/whiteout", lower, tar({gone: b"", "models/other.txt": b""}))

    refused(f"{place}#models/model.onnx", tmp_path, ArtifactMissingError, "has no file 'models/model.onnx'")
    refused(place, tmp_path, ArtifactMissingError, "no .onnx file below /models")


@pytest.mark.parametrize("order", [("models/.wh..wh..opq", "models/model.onnx"), ("models/model.onnx", ".wh.models")])
def test_a_layer_removes_nothing_of_its_own(server: Registry, order: tuple[str, str], tmp_path: Path) -> None:
    layer = tar({name: NET if name.endswith("onnx") else b"" for name in order})
    place = modelcar(server, "cars/own", BASE, layer)

    assert got(f"{place}#models/model.onnx", tmp_path / "named") == NET
    assert got(place, tmp_path / "only") == NET


@pytest.mark.parametrize(
    ("layer", "kind", "error", "seen"),
    [
        pytest.param(tar({"models/model.onnx": None}), TAR, UnsafeArtifactError, "is a link", id="symbolic link"),
        pytest.param(tar({"../models/model.onnx": NET}), TAR, ArtifactMissingError, "has no file", id="escape"),
        pytest.param(b"no tar at all" * 99, TAR, ArtifactMissingError, "cannot be unpacked", id="no tar"),
        pytest.param(b"no gzip" * 99, f"{TAR}+gzip", ArtifactMissingError, "unpacked|broke off", id="no gzip"),
        pytest.param(tar({"a": b""}, mode="w:gz")[:40], f"{TAR}+gzip", ArtifactMissingError, "unpacked", id="cut off"),
        pytest.param(BASE, f"{TAR}+zstd", ArtifactMissingError, "compression that is not supported", id="zstd"),
    ],
)
def test_a_layer_that_cannot_be_trusted_is_refused(
    server: Registry, layer: bytes, kind: str, error: type[BuilderError], seen: str, tmp_path: Path
) -> None:
    place = modelcar(server, "cars/odd", layer, kind=kind)

    refused(f"{place}#models/model.onnx", tmp_path, error, seen)


def test_a_layer_that_unpacks_to_more_than_is_allowed_is_refused(server: Registry, tmp_path: Path) -> None:
    bomb = tar({"filler": bytes(20_000_000), "models/model.onnx": NET}, mode="w:gz")
    place = modelcar(server, "cars/bomb", bomb, kind=f"{TAR}+gzip")
    access = REACHING.model_copy(update={"max_bytes": 5_000_000})

    assert len(bomb) < 200_000
    refused(f"{place}#models/model.onnx", tmp_path, ArtifactTooLargeError, "5000000 bytes", access)


def index(server: Registry, name: str, platforms: dict[str, str]) -> str:
    listed = [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1}
        | {"platform": {"os": "linux", "architecture": architecture}}
        for architecture, digest in platforms.items()
    ]
    return server.manifest(name, "all", {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})


def test_of_an_index_the_image_of_this_machine_is_read(
    server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    name = "nets/index"
    other = server.artifact(name, {"model.onnx": NET[1:]}, "arm")
    digest = index(server, name, {"arm64": other, "amd64": server.artifact(name, {"model.onnx": NET}, "amd")})

    assert got(f"oci://{server.host}/{name}@{digest}", tmp_path) == NET
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    refused(f"oci://{server.host}/{name}:all", tmp_path / "2", ArtifactMissingError, "linux/amd64; needed: linux/riscv")


def test_a_golden_set_is_an_artifact_of_files_or_an_archive_in_it(server: Registry, tmp_path: Path) -> None:
    files = {"golden.json": b"{}", "images/a b.png": b"pixels"}
    for path, content in files.items():
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).write_bytes(content)
    digest, packed = folder_digest(tmp_path / "set"), tar(files, mode="w:gz")
    server.artifact("golden/coins", files)
    server.artifact("golden/packed", {"set.tar.gz": packed})
    place = f"oci://{server.host}/golden"

    loose = fetch_folder(f"{place}/coins:1", digest, tmp_path / "cache", REACHING)
    packed_digest = hashlib.sha256(packed).hexdigest()
    unpacked = fetch_folder(f"{place}/packed:1#set.tar.gz", packed_digest, tmp_path / "cache", REACHING)

    assert folder_digest(loose) == folder_digest(unpacked) == digest


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        ("nets/nobody:1", "404"),
        ("nets/coins:7", "404"),
        ("nets/coins@sha256:" + "0" * 64, "404"),
        ("Nets/Coins:1", "allowed: oci://registry"),
        ("nets/coins@sha256:12", "allowed: oci://registry"),
        ("nets/../../v2/x:1", "allowed: oci://registry"),
    ],
)
def test_what_is_not_there_is_missing(server: Registry, uri: str, seen: str, tmp_path: Path) -> None:
    refused(f"oci://{server.host}/{uri}", tmp_path, ArtifactMissingError, seen)


def test_a_manifest_of_another_digest_is_refused(server: Registry, tmp_path: Path) -> None:
    digest = server.artifact("nets/swapped", {"model.onnx": NET})
    # The registry's own files: what somebody who broke into it would change.
    blobs = Path(server.folder) / "data/docker/registry/v2/blobs/sha256"
    blob = blobs / digest[7:9] / digest[7:] / "data"
    blob.write_text(json.dumps(json.loads(blob.read_text()) | {"annotations": {"x": "y"}}))

    refused(f"oci://{server.host}/nets/swapped@{digest}", tmp_path, BuilderError, "sha256|404|500")


def secret(folder: Path, keys: dict[str, str]) -> Access:
    folder.mkdir(parents=True)
    for key, value in keys.items():
        (folder / key).write_text(value)
    return REACHING.model_copy(update={"credentials": (Credential(scheme="oci", folder=folder),)})


ACCOUNT = {"username": USER, "password": PASSWORD}
Running = Callable[[Path], AbstractContextManager[Registry]]


@pytest.mark.parametrize("running", [registry_with_accounts, registry_with_tokens])
def test_a_registry_that_wants_to_know_who_asks_is_told(running: Running, tmp_path: Path) -> None:
    with running(tmp_path / "registry") as server:
        server.artifact("nets/coins", {"model.onnx": NET})
        uri = f"oci://{server.host}/nets/coins:1"
        docker = json.dumps({"auths": {server.host: ACCOUNT}})

        assert got(uri, tmp_path / "1", secret(tmp_path / "account", ACCOUNT)) == NET
        assert got(uri, tmp_path / "2", secret(tmp_path / "docker", {".dockerconfigjson": docker})) == NET
        refused(uri, tmp_path / "3", SourceUnauthorizedError, "no credential matches it")
        wrong = secret(tmp_path / "wrong", ACCOUNT | {"password": "guessed"})
        refused(uri, tmp_path / "4", SourceUnauthorizedError, "the credential does not grant access", wrong)


def test_a_password_is_sent_to_no_host_that_is_not_allowed(tmp_path: Path) -> None:
    with registry_with_tokens(tmp_path / "registry") as server:
        server.artifact("nets/coins", {"model.onnx": NET})
        place = f"oci://{server.host.replace('127.0.0.1', 'localhost')}/nets/coins:1"
        access = secret(tmp_path / "account", ACCOUNT).model_copy(update={"hosts": ("localhost",)})

        refused(place, tmp_path / "cache", SourceDeniedError, "'127.0.0.1' is not allowed; allowed: localhost", access)


def test_the_account_of_docker_login_counts_where_the_users_own_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry_with_accounts(tmp_path / "registry") as server:
        server.artifact("nets/coins", {"model.onnx": NET})
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: ACCOUNT}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

        assert got(f"oci://{server.host}/nets/coins:1", tmp_path / "cache", LOCAL) == NET
        refused(f"oci://{server.host}/nets/coins:1", tmp_path / "other", SourceUnauthorizedError, "no credential")


def test_a_digest_mismatch_names_what_came(server: Registry, tmp_path: Path) -> None:
    server.artifact("nets/other", {"model.onnx": NET[1:]})

    refused(f"oci://{server.host}/nets/other:1", tmp_path, DigestMismatchError, SHA256)
