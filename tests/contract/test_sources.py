"""What every source of artifacts does, each read from the real server, or a real folder, behind it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fakes.artifact_server import artifact_server
from fakes.cutting_relay import CuttingRelay, cutting_relay
from fakes.hub import Hub, hub
from fakes.mlflow_server import MlflowServer
from fakes.object_servers import SERVERS, needed
from fakes.registry import registry
from segserve_builder.errors import ArtifactMissingError, ArtifactTooLargeError, SourceDeniedError
from segserve_builder.sources import Access, RetryPolicy, fetch, fetch_folder, folder_digest, source_of
from segserve_builder.sources.base import FolderSource

NET = random.Random(2).randbytes(2_500_000)
SHA256 = hashlib.sha256(NET).hexdigest()
FILES = {"net.onnx": NET, "set/golden.json": b"{}", "set/images/a b.png": b"pixels"}
CUT_AFTER = 700_000
QUICK = RetryPolicy(tries=5, first_s=0.001)
ONCE = RetryPolicy(tries=1)


@dataclass(frozen=True)
class Place:
    """Where `FILES` are: each at `base` with its path appended. Servers are reached through a relay."""

    base: str
    access: Access
    relay: CuttingRelay | None = None
    resumes: bool = True

    def uri(self, path: str) -> str:
        return self.base + path.replace(" ", "%20")


def written(folder: Path) -> Path:
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@contextmanager
def files(folder: Path) -> Iterator[Place]:
    yield Place(f"{written(folder / 'files').as_uri()}/", Access(folders=(folder,)))


@contextmanager
def claims(folder: Path) -> Iterator[Place]:
    written(folder / "claims" / "nets")
    yield Place("pvc://nets/", Access(claims=folder / "claims"))


@contextmanager
def web(folder: Path) -> Iterator[Place]:
    names = ("golden.json", "images/a b.png")
    lines = (f"{hashlib.sha256(FILES[f'set/{name}']).hexdigest()}  {name}\n" for name in names)
    (written(folder / "web") / "set.sha256").write_text("".join(lines))
    with artifact_server("127.0.0.1", folder / "web") as server, relayed(server.url) as relay:
        yield Place(f"http://{relay.address}/", Access(private=("127.0.0.1",)), relay, resumes=False)


@contextmanager
def objects(folder: Path, scheme: str) -> Iterator[Place]:
    with SERVERS[scheme]() as server, relayed(server.endpoint) as relay:
        for path, content in FILES.items():
            server.put(path, content)
        through = replace(server, endpoint=server.endpoint.replace(address(server.endpoint), relay.address))
        yield Place(f"{scheme}://models/", through.access(folder / "secret"), relay)


@contextmanager
def hub_files(folder: Path) -> Iterator[Place]:
    repositories = {"coins/net": {(path, "main"): content for path, content in FILES.items()}}
    with hub(Hub(repositories, large=10**9)) as served, relayed(served.url) as relay:
        yield Place("hf://coins/net/", Access(endpoints={"hf": f"http://{relay.address}"}), relay)


@contextmanager
def artifacts(folder: Path) -> Iterator[Place]:
    with registry(folder / "registry") as server, relayed(f"http://{server.host}") as relay:
        server.artifact("nets/coins", FILES)
        yield Place(f"oci://{relay.address}/nets/coins:1#", Access(private=("127.0.0.1",)), relay)


@contextmanager
def registered(server: MlflowServer) -> Iterator[Place]:
    with relayed(server.url) as relay:
        version = server.register("contract", FILES)
        access = Access(endpoints={"models": f"http://{relay.address}"})
        yield Place(f"models:/contract/{version}/", access, relay)


def address(url: str) -> str:
    return url.split("/")[2]


def relayed(url: str) -> AbstractContextManager[CuttingRelay]:
    return cutting_relay(address(url), CUT_AFTER)


PLACES: Mapping[str, Callable[[Path], AbstractContextManager[Place]]] = {
    "file": files,
    "pvc": claims,
    "http": web,
    "s3": lambda folder: objects(folder, "s3"),
    "gs": lambda folder: objects(folder, "gs"),
    "az": lambda folder: objects(folder, "az"),
    "hf": hub_files,
    "oci": artifacts,
}


NEEDS = {
    **{name: needed(name) for name in SERVERS},
    "oci": pytest.mark.needs("docker-registry"),
    "models": pytest.mark.needs("peers"),
}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=NEEDS.get(name, ())) for name in (*PLACES, "models")])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if request.param == "models":
        opened = registered(request.getfixturevalue("mlflow"))
    else:
        opened = PLACES[request.param](tmp_path_factory.mktemp(request.param))
    with opened as found:
        yield found


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def changed(place: Place, **what: Any) -> Access:
    return place.access.model_copy(update=what)


def test_a_file_is_fetched_whole(place: Place, tmp_path: Path) -> None:
    assert fetch(place.uri("net.onnx"), SHA256, tmp_path, place.access, retry_policy=ONCE).read_bytes() == NET
    small = fetch(place.uri("set/images/a b.png"), hashlib.sha256(b"pixels").hexdigest(), tmp_path, place.access)
    assert small.read_bytes() == b"pixels"


def test_what_is_not_there_is_missing(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        fetch(place.uri("none.onnx"), SHA256, tmp_path, place.access, retry_policy=ONCE)

    assert files_in(tmp_path) == []


def test_a_stream_starts_where_it_is_asked_to_or_says_that_it_does_not(place: Place) -> None:
    uri = place.uri("net.onnx")

    with source_of(uri).open(uri, place.access, 1000) as stream:
        content = b"".join(iter(lambda: stream.read(65536), b""))

        assert stream.start == (1000 if place.resumes else 0)
        assert content == NET[stream.start :]
        assert stream.size == len(NET)


def test_what_lies_behind_the_end_is_given_from_the_start(place: Place) -> None:
    uri = place.uri("set/golden.json")

    with source_of(uri).open(uri, place.access, 99) as stream:
        assert (stream.start, stream.read(100)) == (0, b"{}")


def test_what_breaks_off_arrives_in_the_end(place: Place, tmp_path: Path) -> None:
    if place.relay is not None:
        place.relay.cuts = 2

    assert fetch(place.uri("net.onnx"), SHA256, tmp_path, place.access, retry_policy=QUICK).read_bytes() == NET
    assert files_in(tmp_path) == [f"sha256/{SHA256}"]
    assert place.relay is None or place.relay.cuts == 0


def test_more_than_is_allowed_is_refused_and_removed(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ArtifactTooLargeError, match="100000 bytes"):
        fetch(place.uri("net.onnx"), SHA256, tmp_path, changed(place, max_bytes=100_000), retry_policy=ONCE)

    assert files_in(tmp_path) == []


def test_a_scheme_that_is_not_allowed_is_denied_though_its_bytes_are_in_the_cache(place: Place, tmp_path: Path) -> None:
    fetch(place.uri("net.onnx"), SHA256, tmp_path, place.access)

    with pytest.raises(SourceDeniedError):
        fetch(place.uri("net.onnx"), SHA256, tmp_path, changed(place, schemes=("gopher",)))


def test_a_folder_is_fetched_with_all_that_is_in_it(place: Place, tmp_path: Path) -> None:
    digest = folder_digest(written(tmp_path / "own") / "set")

    found = fetch_folder(place.uri("set"), digest, tmp_path / "cache", place.access, retry_policy=QUICK)

    assert folder_digest(found) == digest


def test_a_source_that_lists_names_each_file_of_a_folder(place: Place) -> None:
    uri = place.uri("set")
    source = source_of(uri)

    if isinstance(source, FolderSource):
        assert sorted(source.files(uri, place.access)) == ["golden.json", "images/a b.png"]
