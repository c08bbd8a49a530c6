"""Object stores, against real servers: bytes and places, listings, credentials, refusals."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest

from fakes.object_servers import BUCKET, SERVERS, ObjectServer, needed, s3_server
from fakes.waiting import HANG_S
from segserve_builder.errors import (
    ArtifactMissingError,
    ArtifactTooLargeError,
    SourceDeniedError,
    SourceUnauthorizedError,
)
from segserve_builder.sources import fetch, object_store, resolved
from segserve_builder.sources.access import Access
from segserve_builder.sources.object_store import ObjectStoreSource

CONTENT = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WRONG_KEYS = {
    "az": {"account-key": base64.b64encode(b"another key").decode()},
    "gs": {"service-account.json": '{"type": "service_account"}'},
}


def started(*schemes: str) -> list[Any]:
    """Return schemes as parameters, each with the mark of what its server needs."""
    return [pytest.param(scheme, marks=needed(scheme)) for scheme in schemes]


@pytest.fixture(scope="module", params=started(*sorted(SERVERS)))
def server(request: pytest.FixtureRequest) -> Iterator[ObjectServer]:
    with SERVERS[request.param]() as found:
        found.put("folder/model.onnx", CONTENT)
        found.put("folder/sub/b.txt", b"b")
        found.put("folder-2/other.txt", b"other")
        found.put("odd/100%41 #1?+ä.bin", b"odd")
        yield found


@pytest.fixture
def access(server: ObjectServer, tmp_path: Path) -> Access:
    return server.access(tmp_path / "model-reader")


def uri(server: ObjectServer, path: str) -> str:
    return f"{server.source.scheme}://{BUCKET}/{path}"


def read(source: ObjectStoreSource, uri: str, access: Access, start: int = 0) -> bytes:
    with source.open(uri, access, start) as stream:
        chunks = list(iter(lambda: stream.read(100_000), b""))
    assert max(map(len, chunks)) <= 100_000
    return b"".join(chunks)


def test_bytes_are_given_from_a_place_on_and_the_identity_stays(server: ObjectServer, access: Access) -> None:
    whole, rest = (server.source.open(uri(server, "folder/model.onnx"), access, start) for start in (0, 2_000_000))
    with whole as first, rest as second:
        assert (second.start, second.size, second.identity) == (2_000_000, len(CONTENT), first.identity)
        assert second.read(1000) == CONTENT[2_000_000:2_001_000]


@pytest.mark.parametrize("end", ["", "/"])
def test_what_is_relative_to_a_bucket_is_below_it(
    server: ObjectServer, access: Access, tmp_path: Path, end: str
) -> None:
    address = resolved("folder/model.onnx", f"{server.source.scheme}://{BUCKET}{end}")

    assert fetch(address, SHA256, tmp_path, access).read_bytes() == CONTENT


def test_the_identity_changes_with_the_bytes(server: ObjectServer, access: Access) -> None:
    found = []
    for content in (b"one", b"two"):
        with server.source.open(server.put("changing", content), access) as stream:
            found.append(stream.identity)

    assert found[0] != found[1]


def test_a_key_may_hold_what_uris_encode(server: ObjectServer, access: Access) -> None:
    assert read(server.source, uri(server, "odd/100%2541%20%231%3F%2B%C3%A4.bin"), access) == b"odd"


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_lists_what_is_below_it_alone(server: ObjectServer, access: Access, end: str) -> None:
    assert list(server.source.files(uri(server, "folder") + end, access)) == ["model.onnx", "sub/b.txt"]
    assert list(server.source.files(uri(server, "odd"), access)) == ["100%41 #1?+ä.bin"]


def test_a_folder_of_too_many_objects_is_refused(
    server: ObjectServer, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "MOST_FILES", 1)

    with pytest.raises(ArtifactTooLargeError, match="more than the 1 objects"):
        list(server.source.files(uri(server, "folder"), access))


@pytest.mark.parametrize("path", ["gone.onnx", "folder/gone/", "", "folder/../x", "folder//x"])
def test_what_is_not_there_is_missing(server: ObjectServer, access: Access, path: str) -> None:
    with pytest.raises(ArtifactMissingError):
        read(server.source, uri(server, path), access)


def test_an_empty_folder_and_a_bucket_that_is_not_there_are_missing(server: ObjectServer, access: Access) -> None:
    for address in (uri(server, "nothing"), f"{server.source.scheme}://elsewhere/folder"):
        with pytest.raises((ArtifactMissingError, SourceUnauthorizedError)):
            list(server.source.files(address, access))


def test_without_credentials_a_private_object_is_not_given(server: ObjectServer, access: Access) -> None:
    with pytest.raises(SourceUnauthorizedError, match="callers without credentials"):
        read(server.source, uri(server, "folder/model.onnx"), access.model_copy(update={"credentials": ()}))


def test_a_renewed_secret_counts_for_the_next_try(server: ObjectServer, access: Access, tmp_path: Path) -> None:
    folder = tmp_path / "model-reader"
    for name in server.keys:
        (folder / name).unlink()
    with pytest.raises(SourceUnauthorizedError, match="'model-reader' does not exist"):
        read(server.source, uri(server, "folder/model.onnx"), access)

    server.access(folder)

    assert read(server.source, uri(server, "folder/model.onnx"), access) == CONTENT


def test_a_secret_without_the_needed_keys_says_which(server: ObjectServer, tmp_path: Path) -> None:
    access = server.access(tmp_path / "model-reader", {"password": "hidden"})

    with pytest.raises(SourceUnauthorizedError, match=f"has password; needed: .*{next(iter(server.keys))}") as raised:
        read(server.source, uri(server, "folder/model.onnx"), access)

    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("server", started(*sorted(WRONG_KEYS)), indirect=True)
def test_a_wrong_key_is_refused_and_told_without_it(server: ObjectServer, tmp_path: Path) -> None:
    wrong = WRONG_KEYS[server.source.scheme]
    with pytest.raises(SourceUnauthorizedError) as raised:
        read(server.source, uri(server, "folder/model.onnx"), server.access(tmp_path / "wrong", wrong))

    assert not any(value in str(raised.value) for value in wrong.values())


@pytest.mark.parametrize("server", started("az"), indirect=True)
def test_a_shared_access_signature_opens_a_container_and_is_never_told(server: ObjectServer, tmp_path: Path) -> None:
    store = server.store(tmp_path / "owner")
    token = obstore.sign(store, "GET", "folder/model.onnx", timedelta(hours=1)).partition("?")[2]
    access = server.access(tmp_path / "reader", {"sas-token": f"?{token}"})

    assert read(server.source, uri(server, "folder/model.onnx"), access) == CONTENT
    with pytest.raises(SourceUnauthorizedError) as raised:
        read(server.source, uri(server, "folder/sub/b.txt"), access)
    assert "sig=" not in str(raised.value)


def test_buckets_and_schemes_are_allowed_by_name(server: ObjectServer, access: Access) -> None:
    elsewhere = access.model_copy(update={"hosts": ("other-*",)})
    for denied, said in ((elsewhere, BUCKET), (access.model_copy(update={"schemes": ("oci",)}), "oci")):
        with pytest.raises(SourceDeniedError, match=said):
            read(server.source, uri(server, "folder/model.onnx"), denied)
        with pytest.raises(SourceDeniedError, match=said):
            list(server.source.files(uri(server, "folder"), denied))


def test_a_machine_without_authorities_reads_buckets_too(server: ObjectServer, tmp_path: Path) -> None:
    """As an image that has no ca-certificates: the library finds them once, when its first store is made."""
    access = server.access(tmp_path / "keys").model_dump_json()
    code = (
        "import sys; from segserve_builder.sources import SOURCES, Access\n"
        "uri, access = sys.argv[1], Access.model_validate_json(sys.argv[2])\n"
        "with SOURCES[uri[:2]].open(uri, access) as stream: print(stream.size)"
    )
    nowhere = dict.fromkeys(("SSL_CERT_FILE", "SSL_CERT_DIR"), str(tmp_path / "nowhere"))
    done = subprocess.run(
        [sys.executable, "-c", code, uri(server, "folder/model.onnx"), access],
        env={**os.environ, **nowhere},
        check=True,
        capture_output=True,
        text=True,
    )

    assert int(done.stdout) == len(CONTENT)


@needed("s3")
def test_marks_of_folders_are_no_files(tmp_path: Path) -> None:
    with s3_server() as server:
        for key in ("folder/", "folder/sub/", "folder/empty.txt", "folder/sub/a"):
            request = urllib.request.Request(f"{server.endpoint}/{BUCKET}/{key}", b"" if key[-1] != "a" else b"a")
            request.method = "PUT"
            urllib.request.urlopen(request, timeout=HANG_S).close()

        found = list(server.source.files(f"s3://{BUCKET}/folder", server.access(tmp_path / "keys")))

    assert found == ["empty.txt", "sub/a"]
