#!/usr/bin/env python3
"""A small cluster DNS, for no Debian release packages CoreDNS.

It answers A questions for SERVICE.NAMESPACE.svc.cluster.local (the ClusterIP, or the ready endpoints of a headless
Service), POD-NAME.SERVICE... for endpoints with a hostname, and ExternalName Services by CNAME. Each question asks the
API, so that no answer is stale. Names outside the cluster do not exist.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socketserver
import ssl
import struct
import threading
import urllib.parse
from pathlib import Path
from typing import Any, Final

DOMAIN: Final = ["cluster", "local"]
TTL_S: Final = 1
A, CNAME, ANY = 1, 5, 255
SERVER_FAILED, NO_SUCH_NAME = 2, 3


class Api:
    """The Kubernetes API, asked with a connection per thread that is kept."""

    def __init__(self, server: str, pki: Path) -> None:
        url = urllib.parse.urlsplit(server)
        self._host, self._port = url.hostname or "", url.port
        self._context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._local = threading.local()

    def get(self, path: str) -> Any:
        """Return the JSON at `path`, None where there is none."""
        try:
            return self._ask(path)
        except (OSError, http.client.HTTPException):  # a kept connection may have been closed
            self._local.connection = None
            return self._ask(path)

    def _ask(self, path: str) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=3)
            self._local.connection = connection
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return json.loads(body) if answer.status == 200 else None


def resolve(api: Api, name: str) -> tuple[list[str], str | None] | None:
    """Return addresses and alias of a name, None where it does not exist."""
    labels = name.lower().rstrip(".").split(".")
    if labels[-2:] != DOMAIN or len(labels) not in (5, 6) or labels[-3] != "svc":
        return None
    host = labels[0] if len(labels) == 6 else None
    namespace, service = (urllib.parse.quote(label) for label in (labels[-4], labels[-5]))
    found = api.get(f"/api/v1/namespaces/{namespace}/services/{service}")
    if not found:
        return None
    spec = found["spec"]
    if spec.get("type") == "ExternalName":
        return [], spec["externalName"]
    if spec.get("clusterIP") not in (None, "None") and host is None:
        return [spec["clusterIP"]], None
    endpoints = api.get(f"/api/v1/namespaces/{namespace}/endpoints/{service}") or {}
    addresses = _addresses(endpoints, host, unready=bool(spec.get("publishNotReadyAddresses")))
    return (addresses, None) if addresses or host is None else None


def _addresses(endpoints: Any, host: str | None, *, unready: bool) -> list[str]:
    kinds = ("addresses", "notReadyAddresses") if unready else ("addresses",)
    items = [item for subset in endpoints.get("subsets") or [] for kind in kinds for item in subset.get(kind) or []]
    return [item["ip"] for item in items if host is None or item.get("hostname") == host]


def reply(api: Api, query: bytes) -> bytes:
    """Return the answer to a DNS query of one question."""
    number, flags = struct.unpack(">HH", query[:4])
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
        at += query[at] + 1
    (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
    code, records = _records(api, ".".join(labels), kind)
    head = struct.pack(">HHHHHH", number, 0x8480 | (flags & 0x0100) | code, 1, len(records), 0, 0)
    return head + query[12 : at + 5] + b"".join(records)


def _records(api: Api, name: str, kind: int) -> tuple[int, list[bytes]]:
    try:
        found = resolve(api, name)
    except (OSError, http.client.HTTPException, ValueError):
        return SERVER_FAILED, []  # the caller asks again
    if found is None:
        return NO_SUCH_NAME, []
    addresses, alias = found
    if alias:
        return 0, [_record(CNAME, b"".join(bytes([len(part)]) + part.encode() for part in alias.split(".")) + b"\0")]
    # AAAA gets an empty answer
    return 0, [_record(A, bytes(map(int, ip.split(".")))) for ip in addresses if kind in (A, ANY)]


def _record(kind: int, data: bytes) -> bytes:
    return b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, TTL_S, len(data)) + data


class _Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class _Udp(socketserver.ThreadingUDPServer):
    daemon_threads = True


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--port", type=int, default=53)
    parser.add_argument("--server", required=True)
    parser.add_argument("--pki", required=True, type=Path, help="folder with ca.crt, admin.crt and admin.key")
    arguments = parser.parse_args()
    api = Api(arguments.server, arguments.pki)

    class OverUdp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(reply(api, data), self.client_address)

    class OverTcp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            size = self.request.recv(2)
            if len(size) == 2:
                answer = reply(api, self.request.recv(*struct.unpack(">H", size)))
                self.request.sendall(struct.pack(">H", len(answer)) + answer)

    at = (arguments.listen, arguments.port)
    threading.Thread(target=_Tcp(at, OverTcp).serve_forever, daemon=True).start()
    _Udp(at, OverUdp).serve_forever()


if __name__ == "__main__":
    main()
