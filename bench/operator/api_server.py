"""A Kubernetes API server for one measurement: etcd in memory, nothing that would run pods, and an audit log."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from bench.platform import ROOT
from bench.ports import free_port
from cluster.node import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator

OPERATOR: Final = "operator"
OTHERS: Final = "others"
_START_S: Final = 600
_PROGRAMS: Final = CACHE / "built"
"""Where the tests' cluster keeps its programs."""
_AUDIT: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}],
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the operator: what for, of what, and when it was answered (Unix seconds)."""

    verb: str
    resource: str
    name: str
    ended_s: float


@dataclass(frozen=True, slots=True)
class ApiServer:
    """A running server and its files."""

    url: str
    folder: Path
    store: str

    def stored_mib(self) -> float:
        """Return how much etcd holds: all objects, and what they were in the last minutes."""
        with urllib.request.urlopen(f"{self.store}/metrics", timeout=30) as answer:
            metrics = answer.read().decode()
        found = re.search(r"^etcd_mvcc_db_total_size_in_use_in_bytes (\S+)$", metrics, re.MULTILINE)
        assert found is not None, "etcd tells it since 3.4"
        return float(found[1]) / 2**20

    def kubeconfig(self, user: str) -> Path:
        """Return the way in for `OPERATOR`, whose requests are counted, or for `OTHERS`."""
        path = self.folder / f"{user}.conf"
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "apiserver.crt")}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bench", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": user}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": user}}],
            "current-context": "bench",
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def requests(self, since_s: float = 0.0) -> list[Request]:
        """Return the operator's requests that ended since then; a watch counts when it begins."""
        found = []
        log = self.folder / "audit.log"  # the first request makes it
        for line in log.read_text().splitlines() if log.exists() else ():
            event = json.loads(line)
            watch = event["verb"] == "watch"
            if event["stage"] != ("ResponseStarted" if watch else "ResponseComplete"):
                continue
            about = event.get("objectRef") or {}
            resource = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
            ended_s = _seconds(event["stageTimestamp"])
            if ended_s >= since_s:
                found.append(Request(event["verb"], resource or "discovery", about.get("name", ""), ended_s))
        return found

    def counted(self, since_s: float = 0.0) -> dict[str, int]:
        """Return how many requests there were since then by verb and resource."""
        time.sleep(0.5)  # the log is written behind the answers
        counts = Counter(f"{request.verb} {request.resource}" for request in self.requests(since_s))
        return dict(sorted(counts.items()))


@contextmanager
def api_server(kept: Path | None = None) -> Iterator[ApiServer]:
    """Run a server that knows segserve's resources for the time of the block.

    Its objects stay in `kept`, if given, and a later server there continues with them.
    """
    if not _PROGRAMS.is_dir():
        raise SystemExit("there is no kube-apiserver: run `tests/cluster/build.sh programs` first")
    # In memory: it is the operator that is measured, not a disk.
    folder = kept or Path(tempfile.mkdtemp(prefix="segserve-bench-", dir="/dev/shm"))
    folder.mkdir(exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        store, port = f"http://127.0.0.1:{free_port()}", free_port()
        processes.append(_logged(folder / "etcd.log", _etcd(folder, store)))
        processes.append(_logged(folder / "apiserver.log", _kube_apiserver(folder, store, port)))
        server = ApiServer(f"https://127.0.0.1:{port}", folder, store)
        _wait_until_ready(server, processes)
        _install(server)
        yield server
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


def _etcd(folder: Path, store: str) -> list[str]:
    peers = f"http://127.0.0.1:{free_port()}"
    return [
        str(_PROGRAMS / "etcd"),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={store}",
        f"--advertise-client-urls={store}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--quota-backend-bytes=8000000000",
        "--logger=zap",
        "--log-level=warn",
    ]


def _kube_apiserver(folder: Path, store: str, port: int) -> list[str]:
    key, users, policy = folder / "accounts.key", folder / "users.csv", folder / "policy.json"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    users.write_text("".join(f'{user},{user},{user},"system:masters"\n' for user in (OPERATOR, OTHERS)))
    policy.write_text(json.dumps(_AUDIT))
    return [
        str(_PROGRAMS / "kube-apiserver"),
        f"--etcd-servers={store}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder}",
        f"--token-auth-file={users}",
        "--authorization-mode=AlwaysAllow",
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.97.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        # No controller makes the accounts' tokens here.
        "--disable-admission-plugins=ServiceAccount",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={folder / 'audit.log'}",
        "--audit-log-mode=batch",
        "--audit-log-batch-max-wait=200ms",
        "--audit-log-maxsize=4000",
    ]


def _logged(path: Path, command: list[str]) -> subprocess.Popen[bytes]:
    with path.open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait_until_ready(server: ApiServer, processes: list[subprocess.Popen[bytes]]) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s and all(process.poll() is None for process in processes):
        with contextlib.suppress(OSError):
            call(server, "GET", "/readyz")
            return
        time.sleep(0.2)
    raise RuntimeError((server.folder / "apiserver.log").read_text()[-2000:])


def _install(server: ApiServer) -> None:
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        for definition in yaml.safe_load_all(path.read_text()):
            with contextlib.suppress(FileExistsError):
                call(server, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
            group, version = definition["spec"]["group"], definition["spec"]["versions"][0]["name"]
            served = f"/apis/{group}/{version}/{definition['spec']['names']['plural']}"
            for _ in range(200):
                with contextlib.suppress(OSError):
                    call(server, "GET", served)
                    break
                time.sleep(0.1)


def call(server: ApiServer, method: str, path: str, body: dict[str, Any] | None = None) -> str:
    """Make one call and return what was answered; FileExistsError for a conflict, OSError for any other failure."""
    request = urllib.request.Request(
        server.url + path,
        method=method,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Authorization": f"Bearer {OTHERS}", "Content-Type": "application/json"},
    )
    trusted = ssl.create_default_context(cafile=server.folder / "apiserver.crt")
    try:
        with urllib.request.urlopen(request, context=trusted, timeout=30) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        refused = FileExistsError if error.code == HTTPStatus.CONFLICT else OSError
        raise refused(f"{method} {path}: {error.code} {error.read().decode()[:500]}") from error


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
