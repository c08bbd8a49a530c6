"""Fetching over HTTP from real servers on the loopback: redirects, errors, resumed and refused files, certificates."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
import trustme

from fakes.flaky_server import Behaviour, flaky_server
from segserve_builder.errors import (
    ArtifactMissingError,
    ArtifactTooLargeError,
    DigestMismatchError,
    SourceDeniedError,
    SourceUnauthorizedError,
    SourceUnavailableError,
)
from segserve_builder.sources import Access, RetryPolicy, cache, fetch
from segserve_builder.sources.access import LOCAL, Credential

CONTENT = random.Random(1).randbytes(3_500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(tries=4, first_s=0.001)


@pytest.fixture
def server() -> Iterator[Behaviour]:
    with flaky_server(Behaviour(CONTENT)) as served:
        yield served


def got(server: Behaviour, cache: Path, path: str = "/net", access: Access = LOCAL) -> bytes:
    return fetch(server.url + path, SHA256, cache, access, retry_policy=QUICK).read_bytes()


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def within(max_bytes: int) -> Access:
    return LOCAL.model_copy(update={"max_bytes": max_bytes})


@pytest.mark.parametrize("hops", [1, 5])
def test_a_file_is_fetched_through_at_most_five_redirects(server: Behaviour, hops: int, tmp_path: Path) -> None:
    server.redirects = {f"/{n}": f"/{n - 1}" if n > 1 else "/net" for n in range(1, 7)}

    assert got(server, tmp_path, f"/{hops}") == CONTENT
    with pytest.raises(ArtifactMissingError, match="redirects more than 5 times"):
        got(server, tmp_path / "other", "/6")


def test_what_passes_is_tried_again(server: Behaviour, tmp_path: Path) -> None:
    server.busy = [(503, {}), (429, {"Retry-After": "0"}), (500, {})]

    assert got(server, tmp_path) == CONTENT
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("status", "headers", "error", "asked"),
    [
        pytest.param(404, {}, ArtifactMissingError, 1, id="not there"),
        pytest.param(401, {}, SourceUnauthorizedError, 1, id="unauthorized"),
        pytest.param(403, {}, SourceUnauthorizedError, 1, id="forbidden"),
        pytest.param(503, {}, ArtifactMissingError, 4, id="always busy"),
        pytest.param(429, {"Retry-After": "3600"}, ArtifactMissingError, 1, id="busy for an hour"),
    ],
)
def test_what_does_not_pass_is_said_and_leaves_nothing(
    server: Behaviour, status: int, headers: dict[str, str], error: type[Exception], asked: int, tmp_path: Path
) -> None:
    server.busy = [(status, headers)] * 9

    with pytest.raises(error, match=str(status)):
        got(server, tmp_path)

    assert len(server.seen) == asked
    assert files_in(tmp_path) == []


def test_what_breaks_off_is_gone_on_with(server: Behaviour, tmp_path: Path) -> None:
    server.cuts = [2_000_000, 900_000, 100]

    assert got(server, tmp_path) == CONTENT
    assert server.ranges_asked()[0] is None
    assert [int(each[6:-1]) for each in server.ranges_asked()[1:]] == [2_000_000, 2_900_000, 2_900_100]
    assert files_in(tmp_path) == [f"sha256/{SHA256}"]


def test_a_server_that_knows_no_ranges_starts_again(server: Behaviour, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [2_000_000]

    assert got(server, tmp_path) == CONTENT


def test_bytes_that_changed_meanwhile_start_again(server: Behaviour, tmp_path: Path) -> None:
    server.content, server.etag, server.cuts = CONTENT[::-1], '"old"', [2_000_000]
    with pytest.raises(ArtifactMissingError, match="broke off"):
        fetch(f"{server.url}/net", SHA256, tmp_path, LOCAL, retry_policy=RetryPolicy(tries=1))
    assert [path.endswith(".part") for path in files_in(tmp_path)] == [False, True]

    server.content, server.etag = CONTENT, '"new"'

    assert got(server, tmp_path) == CONTENT


def test_a_server_that_does_not_say_that_its_bytes_changed_starts_again(server: Behaviour, tmp_path: Path) -> None:
    server.content, server.cuts = CONTENT[::-1], [2_000_000]
    with pytest.raises(ArtifactMissingError):
        fetch(f"{server.url}/net", SHA256, tmp_path, LOCAL, retry_policy=RetryPolicy(tries=1))

    server.content = CONTENT

    assert got(server, tmp_path) == CONTENT


def test_what_a_killed_process_left_is_gone_on_with(server: Behaviour, tmp_path: Path) -> None:
    server.cuts = [2_000_000]
    line = (
        "import sys, pathlib; from segserve_builder.sources import fetch, RetryPolicy;"
        "from segserve_builder.sources.access import LOCAL;"
        "policy = RetryPolicy(first_s=60, longest_s=60);"
        "fetch(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), LOCAL, retry_policy=policy)"
    )
    process = subprocess.Popen([sys.executable, "-c", line, f"{server.url}/net", SHA256, str(tmp_path)])
    part = tmp_path / "partial" / f"{SHA256}.part"
    while not (part.exists() and part.stat().st_size >= 1_900_000):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = part.stat().st_size

    assert got(server, tmp_path) == CONTENT
    assert server.ranges_asked() == [None, f"bytes={left}-"]


def test_what_had_all_arrived_needs_its_server_no_more(tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / f"{SHA256}.part").write_bytes(CONTENT)
    (partial / f"{SHA256}.identity").write_text('"1"')

    assert fetch("http://127.0.0.1:1/net", SHA256, tmp_path, LOCAL).read_bytes() == CONTENT
    assert files_in(tmp_path) == [f"sha256/{SHA256}"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_more_than_is_allowed_is_refused_and_removed(server: Behaviour, is_chunked: bool, tmp_path: Path) -> None:
    server.is_chunked = is_chunked

    with pytest.raises(ArtifactTooLargeError, match="3000000 bytes"):
        got(server, tmp_path, access=within(3_000_000))

    assert files_in(tmp_path) == []


def test_a_length_that_lies_gives_other_bytes(server: Behaviour, tmp_path: Path) -> None:
    server.headers = {"Content-Length": "1000"}

    with pytest.raises((DigestMismatchError, ArtifactMissingError)):
        got(server, tmp_path, access=within(1000))

    assert files_in(tmp_path) == []


def test_a_compressed_answer_is_refused_and_never_unpacked(server: Behaviour, tmp_path: Path) -> None:
    server.content, server.headers = gzip.compress(CONTENT), {"Content-Encoding": "gzip"}

    with pytest.raises(ArtifactMissingError, match="'gzip'; expected identity"):
        got(server, tmp_path)

    assert {headers["Accept-Encoding"] for _, headers in server.seen} == {"identity"}


def test_other_bytes_are_refused_and_removed(server: Behaviour, tmp_path: Path) -> None:
    server.content = CONTENT[::-1]

    with pytest.raises(DigestMismatchError, match=SHA256):
        got(server, tmp_path)

    assert files_in(tmp_path) == []


def test_a_body_that_only_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drip:
        def read(self, _size: int, /) -> bytes:
            return b"."

    clock = count(0.0, 25.0)
    monkeypatch.setattr(cache.time, "monotonic", lambda: next(clock))

    with pytest.raises(SourceUnavailableError, match="gave 3 bytes in 60 s"):
        list(cache.chunks(Drip(), "http://host/net"))


def test_progress_counts_every_byte_once(server: Behaviour, tmp_path: Path) -> None:
    server.cuts = [2_000_000]
    told: list[tuple[int, int | None]] = []

    fetch(f"{server.url}/net", SHA256, tmp_path, LOCAL, retry_policy=QUICK, progress=lambda *at: told.append(at))

    assert told == sorted(told)
    assert told[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/x", "http:///x", "http://[::1/x", "http://nobody.invalid/x"])
def test_a_server_that_is_not_there_is_missing(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        fetch(uri, SHA256, tmp_path, LOCAL, retry_policy=QUICK)


def secret(folder: Path, **keys: str) -> Access:
    folder.mkdir()
    for key, value in keys.items():
        (folder / key).write_text(value + "\n")
    return LOCAL.model_copy(update={"credentials": (Credential(scheme="http", host="127.0.0.1", folder=folder),)})


@pytest.mark.parametrize(
    ("keys", "sent"),
    [({"token": "t0ken"}, "Bearer t0ken"), ({"username": "u", "password": "p"}, "Basic dTpw")],
)
def test_a_credential_goes_to_its_host_alone(
    server: Behaviour, keys: dict[str, str], sent: str, tmp_path: Path
) -> None:
    with flaky_server(Behaviour(CONTENT), "127.0.0.2") as other:
        server.redirects = {"/here": "/moved", "/moved": f"{other.url}/net"}

        assert got(server, tmp_path / "cache", "/here", secret(tmp_path / "secret", **keys)) == CONTENT

        assert [headers["Authorization"] for _, headers in server.seen] == [sent, sent]
        assert [headers["Authorization"] for _, headers in other.seen] == [None]


def test_a_secret_with_a_line_break_is_never_shown(server: Behaviour, tmp_path: Path) -> None:
    access = secret(tmp_path / "secret", token="s3cr3t\r\nX-Evil: 1")

    with pytest.raises(SourceUnauthorizedError) as caught:
        got(server, tmp_path / "cache", access=access)

    assert "s3cr3t" not in str(caught.value)
    assert server.seen == []


def test_no_proxy_of_the_environment_is_asked(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert got(server, tmp_path) == CONTENT


def test_a_host_that_is_not_allowed_gets_no_packet(server: Behaviour, tmp_path: Path) -> None:
    for access in (LOCAL.model_copy(update={"hosts": ("models.example",)}), Access(schemes=("https",)), Access()):
        with pytest.raises(SourceDeniedError):
            got(server, tmp_path, access=access)
    assert server.seen == []


def test_of_many_processes_one_downloads_and_all_get_it(server: Behaviour, tmp_path: Path) -> None:
    line = (
        "import sys, pathlib; from segserve_builder.sources import fetch;"
        "from segserve_builder.sources.access import LOCAL;"
        "print('ready', flush=True); sys.stdin.readline();"
        "fetch(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), LOCAL)"
    )
    command = [sys.executable, "-c", line, f"{server.url}/net", SHA256, str(tmp_path)]
    with ExitStack() as stack:
        opened = (subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3))
        processes = [stack.enter_context(process) for process in opened]
        assert [process.stdout.readline() for process in processes if process.stdout] == [b"ready\n"] * 3
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(server.seen) == 1
    assert files_in(tmp_path) == [f"sha256/{SHA256}"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[Behaviour]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with flaky_server(Behaviour(CONTENT), context=context) as served:
        served.url = served.url.replace("127.0.0.1", "localhost")
        yield served


def trusting(folder: Path, pem: bytes) -> Access:
    folder.mkdir()
    (folder / "ca.crt").write_bytes(pem)
    return LOCAL.model_copy(update={"credentials": (Credential(scheme="https", folder=folder),)})


def got_by_tls(url: str, cache: Path, access: Access) -> bytes:
    return fetch(f"{url}/net", SHA256, cache, access, retry_policy=RetryPolicy(tries=1)).read_bytes()


def test_the_authority_of_a_credential_is_trusted(tls_server: Behaviour, authority: trustme.CA, tmp_path: Path) -> None:
    assert got_by_tls(tls_server.url, tmp_path, trusting(tmp_path / "secret", authority.cert_pem.bytes())) == CONTENT
    assert tls_server.seen[0][1]["Host"] == tls_server.url.removeprefix("https://")


def test_no_other_certificate_is(tls_server: Behaviour, authority: trustme.CA, tmp_path: Path) -> None:
    own = trusting(tmp_path / "secret", authority.cert_pem.bytes())
    other = trusting(tmp_path / "other", trustme.CA().cert_pem.bytes())

    for url, access in (
        (tls_server.url, LOCAL),
        (tls_server.url, other),
        (tls_server.url.replace("localhost", "127.0.0.1"), own),
    ):
        with pytest.raises(ArtifactMissingError, match="certificate is refused"):
            got_by_tls(url, tmp_path / "cache", access)
    with pytest.raises(SourceUnauthorizedError, match=r"ca\.crt .* not a PEM"):
        got_by_tls(tls_server.url, tmp_path / "cache", trusting(tmp_path / "broken", b"no certificate"))
    assert tls_server.seen == []


def test_a_redirect_from_https_to_http_is_not_followed(
    tls_server: Behaviour, authority: trustme.CA, tmp_path: Path
) -> None:
    with flaky_server(Behaviour(CONTENT)) as plain:
        tls_server.redirects = {"/net": f"{plain.url}/net"}

        with pytest.raises(SourceDeniedError, match="from https to http"):
            got_by_tls(tls_server.url, tmp_path / "cache", trusting(tmp_path / "secret", authority.cert_pem.bytes()))

        assert plain.seen == []
