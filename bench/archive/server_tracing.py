"""What spans of Triton and of its steps cost: processor time of servers and latencies, in turns.

    python -m bench.archive.server_tracing [--rounds 30]

Four embedded Tritons serve the example's semantic model: one without tracing, one whose requests have no trace context,
one that sends its spans, and one whose network's step sends the span `batch` too. Each gets the same small image over
HTTP, as what a span costs does not depend on the network; a request with the whole photograph is measured for
comparison. Processor time is all that a server and its steps use in a round, so that what they send later is in it;
intervals (95 %) are of the bootstrap over rounds. Writes bench/out/server_tracing.json, with the load average.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import psutil
import tritonclient.http as triton
from PIL import Image

from bench.closed_loop import measure
from bench.coins import variant, write
from bench.archive.gateway_mirror import processor_s
from bench.archive.gateway_tracing import collecting
from bench.monolith_server import embedded_triton
from bench.platform import ROOT, platform
from bench.request import OUTPUTS, as_jpeg
from segserve_builder.spec.names import TRACES_VARIABLE

OUT: Final = ROOT / "bench/out/server_tracing.json"
MODEL: Final = "coins"
CONTEXT: Final = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
OFF, UNTRACED, SPANS, BATCHES = SETTINGS = ("off", "not traced", "Triton's spans", "Triton's spans and batch")
CONCURRENCIES: Final = (1, 8)
CALLS: Final = 200
SIDE: Final = 64
"""Of the small image, in pixels."""
EXPORTED_S: Final = 15.0
RESAMPLES: Final = 10_000


def image_call(url: str, encoded: bytes, context: Mapping[str, str]) -> Callable[[], None]:
    """Return a call that sends an image with a trace context, and receives RLE masks."""
    image = triton.InferInput("IMAGE", [1], "BYTES")
    image.set_data_from_numpy(np.array([encoded], np.object_))
    outputs = [triton.InferRequestedOutput(name) for name in OUTPUTS]
    parameters = {"encoding": "rle", "outputs": ",".join(OUTPUTS)}
    body, length = triton.InferenceServerClient.generate_request_body([image], outputs=outputs, parameters=parameters)
    headers = {"inference-header-content-length": str(length), **context}
    client = httpx.Client(base_url=url, trust_env=False, timeout=60)

    def call() -> None:
        client.post(f"/v2/models/{MODEL}/infer", content=body, headers=headers).raise_for_status()

    return call


def server_s(pid: int) -> float:
    """Return the processor time that a Triton and its steps have used."""
    server = psutil.Process(pid)
    return sum(processor_s(each) for each in (server, *server.children(recursive=True)))


def check(targets: Mapping[str, Callable[[], None]], collectors: Mapping[str, str]) -> None:
    """Exit unless exactly those settings have spans that shall have them."""
    expected = {UNTRACED: set(), SPANS: {"InferRequest"}, BATCHES: {"InferRequest", "batch"}}
    for name in expected:
        targets[name]()
    time.sleep(EXPORTED_S)
    for name, url in collectors.items():
        sent = set(httpx.get(url, trust_env=False).json())
        if sent != expected[name]:
            raise SystemExit(f"{name}: the collector got {sorted(sent)}, not {sorted(expected[name])}")


def intervals(ms: np.ndarray, off_ms: np.ndarray) -> dict[str, list[float]]:
    """Return the ratio and the difference of two settings over rounds, each with its 95 % interval."""
    picks = np.random.default_rng(0).integers(len(ms), size=(RESAMPLES, len(ms)))
    means, off_means = (np.append(each.mean(), each[picks].mean(axis=1)) for each in (ms, off_ms))
    found = {"cpu_ratio": means / off_means, "cpu_more_us": 1000 * (means - off_means)}
    return {
        name: [round(float(each), 4) for each in (values[0], *np.quantile(values[1:], (0.025, 0.975)))]
        for name, values in found.items()
    }


def compare(targets: Mapping[str, Callable[[], None]], pids: Mapping[str, int], rounds: int) -> dict[str, Any]:
    """Return processor time by request, its ratio to that without tracing, and latencies, by concurrency."""
    found: dict[str, Any] = {}
    for concurrency in CONCURRENCIES:
        used_ms: dict[str, list[float]] = {name: [] for name in targets}
        latencies: dict[str, list[float]] = {name: [] for name in targets}
        for turn in range(rounds + 1):
            before_s = {name: server_s(pid) for name, pid in pids.items()}
            turns = {name: targets[name] for name in np.roll(list(targets), turn).tolist()}
            of = measure(turns, concurrency=concurrency, rounds=1, calls=CALLS)
            if turn:  # the first one warms up
                for name, pid in pids.items():
                    used_ms[name].append(1000 * (server_s(pid) - before_s[name]) / CALLS)
                    latencies[name].append(of[name].medians_ms[0])
        cpu = {name: np.array(each) for name, each in used_ms.items()}
        found[str(concurrency)] = {
            name: {
                "cpu_ms": round(float(cpu[name].mean()), 3),
                **intervals(cpu[name], cpu[OFF]),
                "p50_ms": round(float(np.median(latencies[name])), 2),
                "p50_ratio": round(float(np.median(np.divide(latencies[name], latencies[OFF]))), 3),
            }
            for name in targets
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help=f"turns of {CALLS} calls of each setting")
    rounds = parser.parse_args().rounds
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as parent, ExitStack() as stack:
        folder = Path(parent)
        with platform(write(folder / "models.yaml", variant(model=MODEL))) as running:
            repository = running.state / "groups/main/repository"
            # Paths of Python steps must not have blanks.
            copies = {name: Path(shutil.copytree(repository, folder / str(at))) for at, name in enumerate(SETTINGS)}
        collectors = {name: stack.enter_context(collecting()) for name in (UNTRACED, SPANS, BATCHES)}
        servers = {}
        for name, copy in copies.items():
            url = f"{collectors[name]}/v1/traces" if name in collectors else None
            without = (TRACES_VARIABLE,) if name == SPANS else ()
            servers[name] = stack.enter_context(embedded_triton(copy, MODEL, traces_url=url, without=without))
        file = io.BytesIO()
        Image.open(io.BytesIO(as_jpeg())).crop((0, 0, SIDE, SIDE)).save(file, "PNG")
        targets = {
            name: image_call(server.url, file.getvalue(), CONTEXT if name in (SPANS, BATCHES) else {})
            for name, server in servers.items()
        }
        check(targets, collectors)
        pids = {name: server.pid for name, server in servers.items()}
        found = compare(targets, pids, rounds)
        whole = image_call(servers[OFF].url, as_jpeg(), {})
        before_s = server_s(pids[OFF])
        measure({OFF: whole}, concurrency=1, rounds=1, calls=CALLS)
        photograph_ms = 1000 * (server_s(pids[OFF]) - before_s) / CALLS
    loads.append(os.getloadavg()[0])
    results = {
        "load_average": [round(each, 1) for each in loads],
        "rounds": rounds,
        "photograph_cpu_ms": round(photograph_ms, 2),
        "concurrency": found,
    }
    print(json.dumps(results, indent=2))
    OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
