"""What a URI cannot be made to reach: each attack is denied, and a socket that really listens saw nobody come."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from fakes.flaky_server import Behaviour, came, flaky_server, silent_listener
from segserve_builder.errors import ArtifactMissingError, BuilderError, SourceDeniedError
from segserve_builder.sources import Access, RetryPolicy, fetch, fetch_folder, fetch_unpinned
from segserve_builder.sources.access import LOCAL

SHA256 = "0" * 64
ONCE = RetryPolicy(tries=1)
PUBLIC = "93.184.215.14"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with silent_listener() as opened:
        yield opened


def denied(uri: str, access: Access, cache: Path, error: type[BuilderError] = SourceDeniedError) -> str:
    with pytest.raises(error) as caught:
        fetch(uri, SHA256, cache, access, retry_policy=ONCE)
    with pytest.raises(error):
        fetch_unpinned(uri, access, 1000, retry_policy=ONCE)
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    return str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("127.0.0.1", id="loopback"),
        pytest.param("localhost", id="its name"),
        pytest.param("[::1]", id="IPv6"),
        pytest.param("[::ffff:127.0.0.1]", id="IPv4 mapped to IPv6"),
        pytest.param("[::ffff:7f00:1]", id="mapped in hexadecimal"),
        pytest.param("[64:ff9b::7f00:1]", id="translated to IPv6"),
        pytest.param("[::127.0.0.1]", id="IPv4 within IPv6"),
        pytest.param("[2002:7f00:1::]", id="6to4"),
        pytest.param("2130706433", id="decimal"),
        pytest.param("0x7f000001", id="hexadecimal"),
        pytest.param("017700000001", id="octal"),
        pytest.param("0177.0.0.1", id="octal part"),
        pytest.param("0x7f.1", id="hexadecimal part"),
        pytest.param("127.1", id="short"),
        pytest.param("0", id="zero"),
        pytest.param("0.0.0.0", id="unspecified"),
        pytest.param("[::]", id="unspecified IPv6"),
    ],
)
def test_no_spelling_of_this_machine_is_reached(host: str, listener: socket.socket, tmp_path: Path) -> None:
    denied(f"http://{host}:{listener.getsockname()[1]}/x", Access(), tmp_path)

    assert not came(listener)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "168.63.129.16",
    ],
)
@pytest.mark.parametrize("access", [Access(), LOCAL, Access(private=("0.0.0.0/0", "::/0"))])
def test_metadata_services_are_reached_by_nobody(
    host: str, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = watched(monkeypatch)

    assert "metadata" in denied(f"http://{host}/latest/meta-data/", access, tmp_path)
    assert connected == []


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "172.31.0.1", "192.168.1.1", "100.64.0.1", "[fd12::1]", "[64:ff9b:1::1]", "224.0.0.1"]
)
def test_private_nets_are_not_for_a_cluster(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connected = watched(monkeypatch)

    denied(f"https://{address}/x", Access(), tmp_path)
    assert connected == []


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("http://user:pass@127.0.0.1:{port}/x", id="user"),
        pytest.param("http://public.example@127.0.0.1:{port}/x", id="host as a user"),
        pytest.param("http://127.0.0.1:{port}\\@public.example/x", id="backslash"),
        pytest.param("http://①②⑦.⓪.⓪.①:{port}/x", id="digits that are folded"),
        pytest.param("http://lоcalhost:{port}/x", id="Cyrillic host"),
        pytest.param("http://127.0.0.1:{port}/x\r\nX-Evil: 1", id="line break"),
        pytest.param("http://127.0.0.1:{port}/x HTTP/1.1\n\nGET /", id="second request"),
        pytest.param("http://127.0.0.1\t:{port}/x", id="tab in the host"),
    ],
)
def test_a_uri_that_readers_could_read_differently_is_denied_even_where_all_is_allowed(
    uri: str, listener: socket.socket, tmp_path: Path
) -> None:
    said = denied(uri.format(port=listener.getsockname()[1]), LOCAL, tmp_path)

    assert not came(listener)
    assert "pass@" not in said


def answering(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Let the resolver give a name another address at each look, the last one from then on. An address is itself."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        address = host
        if not is_address(host):
            asked.append(host)
            address = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note what is connected to, and connect to nothing: these addresses are not of this machine."""
    connected: list[Any] = []

    class Watched(socket.socket):
        def connect(self, address: Any) -> None:
            connected.append(address)
            raise ConnectionRefusedError

    monkeypatch.setattr(socket, "socket", Watched)
    return connected


def test_a_name_that_means_this_machine_at_the_second_look_is_looked_up_once(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, PUBLIC, "127.0.0.1")
    connected = watched(monkeypatch)
    port = listener.getsockname()[1]

    with pytest.raises(ArtifactMissingError):
        fetch(f"http://rebinding.example:{port}/x", SHA256, tmp_path, Access(), retry_policy=ONCE)

    assert asked == ["rebinding.example"]
    assert connected == [(PUBLIC, port)]
    assert not came(listener)


def test_the_connection_goes_to_the_address_that_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with flaky_server(Behaviour(b"net")) as server:
        answering(monkeypatch, "127.0.0.1", "127.0.0.2")
        port = server.url.rpartition(":")[2]

        got = fetch_unpinned(f"http://rebinding.example:{port}/x", LOCAL, 10, retry_policy=ONCE)

        assert got == b"net"
        assert server.seen[0][1]["Host"] == f"rebinding.example:{port}"


def test_a_name_with_one_address_of_this_machine_is_denied_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in (PUBLIC, "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    connected = watched(monkeypatch)

    denied("http://both.example/x", Access(), tmp_path)
    assert connected == []


def outside() -> Access:
    """Return what reaches the test's own server, and nothing else of this machine."""
    return Access(private=("127.0.0.1/32",))


@pytest.mark.parametrize(
    ("location", "seen"),
    [
        pytest.param("http://169.254.169.254/latest", "metadata", id="metadata"),
        pytest.param("http://127.0.0.2:{port}/x", "this machine", id="another address of this machine"),
        pytest.param("//0x7f.0.0.2:{port}/x", "this machine", id="without a scheme"),
        pytest.param("file:///etc/passwd", "'file' is not allowed", id="file"),
        pytest.param("gopher://127.0.0.2:{port}/x", "'gopher' is not allowed", id="gopher"),
        pytest.param("ftp://127.0.0.2:{port}/x", "'ftp' is not allowed", id="ftp"),
        pytest.param("http://u:p@127.0.0.2:{port}/x", "user or a password", id="user"),
        pytest.param("http://127.0.0.2:{port}/x y", "' '", id="space"),
    ],
)
def test_a_redirect_is_checked_as_the_uri_was(
    location: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flaky_server(Behaviour()) as server, socket.create_server(("127.0.0.2", 0)) as listener:
        listener.settimeout(0.05)
        server.redirects = {"/x": location.format(port=listener.getsockname()[1])}

        assert seen in denied(f"{server.url}/x", outside(), tmp_path)

        assert not came(listener)


def test_a_redirect_to_a_host_that_is_not_allowed_is_not_followed(listener: socket.socket, tmp_path: Path) -> None:
    with flaky_server(Behaviour()) as server:
        server.redirects = {"/x": f"http://localhost:{listener.getsockname()[1]}/x"}
        access = LOCAL.model_copy(update={"hosts": ("127.0.0.1",)})

        assert "'localhost' is not allowed; allowed: 127.0.0.1" in denied(f"{server.url}/x", access, tmp_path)

    assert not came(listener)


def test_a_redirect_does_not_show_what_its_query_is_signed_with(tmp_path: Path) -> None:
    with flaky_server(Behaviour()) as server:
        server.redirects = {"/x": f"{server.url}/y?signature=s3cr3t", "/y?signature=s3cr3t": "http://169.254.1.1/"}

        assert "s3cr3t" not in denied(f"{server.url}/x", LOCAL, tmp_path)


@pytest.mark.parametrize("scheme", ["az", "file", "gs", "hf", "http", "https", "models", "oci", "pvc", "s3"])
def test_a_scheme_that_is_not_allowed_is_denied_whatever_it_is(scheme: str, tmp_path: Path) -> None:
    assert f"'{scheme}' is not allowed; allowed: none" in denied(f"{scheme}://x/y", Access(schemes=()), tmp_path)


@pytest.mark.parametrize(
    "path", ["secret", "missing", "nets/../secret", "nets/link", "nets", "nets/up/secret"], ids=lambda path: path
)
def test_a_file_outside_its_folders_is_denied_whether_it_is_there_or_not(path: str, tmp_path: Path) -> None:
    allowed = tmp_path / "root" / "allowed"
    (tmp_path / "nets").mkdir()
    allowed.mkdir(parents=True)
    (tmp_path / "secret").write_text("key")
    (tmp_path / "nets/link").symlink_to("../secret")
    (tmp_path / "nets/up").symlink_to("..")
    (allowed / "out").symlink_to(tmp_path)
    access = Access(folders=(allowed,))

    for uri in (f"{tmp_path}/{path}", (tmp_path / path).as_uri(), f"{allowed}/out/{path}"):
        assert "not below a folder that is allowed" in denied(uri, access, tmp_path / "cache")
        with pytest.raises(SourceDeniedError):
            fetch_folder(uri, SHA256, tmp_path / "cache", access)


def test_a_file_below_an_allowed_folder_is_read_even_by_a_link_within(tmp_path: Path) -> None:
    (tmp_path / "v1.onnx").write_bytes(b"net")
    (tmp_path / "latest.onnx").symlink_to("v1.onnx")

    assert fetch_unpinned(f"{tmp_path}/latest.onnx", Access(folders=(tmp_path,)), 10) == b"net"
