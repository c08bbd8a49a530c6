"""What copies for the capture service cost callers, beside Envoy's `ext_proc` in its observability mode.

    python -m bench.archive.gateway_capture

Writes bench/out/gateway_capture.json. Real Envoys in front of a stand-in for a server that answers at once, one for
each way of taking copies, and one caller who asks them in turns with images of 2 MB, so that whatever else the machine
does concerns all of them. The services behind are dead (nobody listens), deaf (they take connections and read nothing)
or take all. Every request is copied by `ext_proc`, which has no rate; the mirror copies as many as the gateway allows.
`memory_mib` is how much larger Envoy has become.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import grpc
import psutil

from bench.archive.gateway_guards import Caller, standing_server
from bench.archive.gateway_mirror import processor_s, publish, summary
from bench.platform import ROOT
from bench.ports import free_ports
from segserve_builder.capture.rule import CaptureFolder, CaptureRule
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_clusters import TYPES
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

OUT: Final = ROOT / "bench/out/gateway_capture.json"
ROUNDS: Final = 10
CALLS: Final = 20
BODY: Final = bytes(2_000_000)
RULE: Final = CaptureRule(
    group="main", revision="coins-a", share=1.0, per_minute=600, sink="s3://x/y", retention_s=60, max_pixels=1
)
SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
STATES: Final = ("dead", "deaf", "takes all")
WAYS: Final = ("no copies", *(f"{mechanism}, {state}" for mechanism in ("mirror", "ext_proc") for state in STATES))
_ENDED: Final = threading.Event()


def _answer(folder: CaptureFolder) -> None:
    """Take copies at the socket, as the service does: read whole, and answered at once."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder.copies))
    listener.listen(64)

    def take(connection: socket.socket) -> None:
        held = b""
        while part := connection.recv(2**20):
            held += part
            _, found, body = held.partition(b"\r\n\r\n")
            if found and len(body) >= len(BODY):
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                held = b""

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=take, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _process(reads: bool) -> int:
    """Serve `ext_proc`, and return the port: it reads all and answers nothing, or does not read at all."""

    def process(requests: Iterator[bytes], _: Any) -> Iterator[bytes]:
        if reads:
            for _request in requests:
                pass
        else:
            _ENDED.wait()
        yield from ()

    method = {"Process": grpc.stream_stream_rpc_method_handler(process)}
    server = grpc.server(ThreadPoolExecutor(200))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, method),))
    port: int = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return port


def _add_processor(bootstrap: Path, port: int) -> None:
    """Add the filter before the router of the public listener, and its cluster."""
    document = json.loads(bootstrap.read_text())
    manager = document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    filter_ = {
        "name": "envoy.filters.http.ext_proc",
        "typed_config": {
            "@type": f"{TYPES}.extensions.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": "processor"}, "timeout": "1s"},
            "observability_mode": True,
            "failure_mode_allow": True,
            "processing_mode": {"request_body_mode": "STREAMED", "response_body_mode": "STREAMED"},
        },
    }
    manager["http_filters"].insert(-1, filter_)
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    options = {
        "@type": f"{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    document["static_resources"]["clusters"].append(
        {
            "name": "processor",
            "type": "STATIC",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
            "load_assignment": {
                "cluster_name": "processor",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }
    )
    bootstrap.write_text(json.dumps(document))


def _start(folder: Path, way: str, server: Endpoint, stack: ExitStack) -> tuple[EnvoyTraffic, int]:
    (port,) = free_ports(1)
    traffic = EnvoyTraffic(folder, EnvoySettings(port=port, max_request_bytes=2**23, capture=True))
    mechanism, _, state = way.partition(", ")
    rule = RULE if mechanism == "mirror" else None
    traffic.prepare(
        TrafficPlan((Route("coins", (Share("main", "coins-a", 100, (server,)),), capture=rule),), (server,))
    )
    command = traffic.command()
    files = EnvoyFiles(folder)
    if mechanism == "mirror" and state == "takes all":
        _answer(files.capture)
    elif mechanism == "mirror" and state == "deaf":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(files.capture.copies))
        listener.listen(64)
        stack.callback(listener.close)
    elif mechanism == "ext_proc":
        _add_processor(files.bootstrap, free_ports(1)[0] if state == "dead" else _process(state == "takes all"))
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return traffic, process.pid


async def measure() -> dict[str, dict[str, float]]:
    """Return, by way, the medians of the rounds, Envoy's time for a request, what failed, and Envoy's growth."""
    took: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    used_s, failed = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0)
    growth: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as parent, standing_server(0) as server, ExitStack() as stack:
        callers: dict[str, tuple[Caller, psutil.Process]] = {}
        for number, name in enumerate(WAYS):
            traffic, pid = _start(Path(parent) / str(number), name, server, stack)
            while (await traffic.observe()).plan is None:
                await asyncio.sleep(0.05)
            callers[name] = Caller(int(traffic.url.rpartition(":")[2])), psutil.Process(pid)
        for turn in range(ROUNDS + 1):
            for name, (caller, envoy) in callers.items():
                before_s = processor_s(envoy)
                outcomes = [await asyncio.wait_for(caller.call(BODY), 60) for _ in range(CALLS)]
                failed[name] += sum(status != 200 for status, _ in outcomes)
                if not turn:  # it warms up
                    growth[name] = envoy.memory_info().rss
                    continue
                used_s[name] += processor_s(envoy) - before_s
                took[name].append([1e3 * spent_s for _, spent_s in outcomes])
        for name, (_, envoy) in callers.items():
            growth[name] = round((envoy.memory_info().rss - growth[name]) / 2**20, 1)
    return {
        name: {**summary(rounds, used_s[name] / (ROUNDS * CALLS)), "failed": failed[name], "memory_mib": growth[name]}
        for name, rounds in took.items()
    }


if __name__ == "__main__":
    publish(measure, OUT)
