"""`make bench`: complete requests beside the bare network and a hand-written model, with the coins U-Net.

    python -m bench.request [--calls 480]

Prints ratios and writes bench/out/request.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.closed_loop import Latencies, measure
from bench.coins import variant, write
from bench.monolith_server import MODEL as MONOLITH
from bench.monolith_server import monolith
from bench.platform import MODELS, Running, platform
from bench.smoke import output, sized

COINS = MODELS.parent
sys.path.insert(0, str(COINS))  # the example's modules are scripts in one folder, not a package

from score import photograph  # noqa: E402
from step_times import Counters, StepTimes  # noqa: E402
from transform import unet_input  # noqa: E402

WHOLE, WHOLE_AT_TRITON = "whole request (JPEG), gateway", "whole request (JPEG), Triton"
WHOLE_APART = "whole request (JPEG), gateway, three steps"
WHOLE_PNG = "whole request (PNG), gateway"
APART = "coins-apart"
"""The model whose network is public, and which is therefore three steps."""
BARE, BARE_AT_TRITON = "bare network, gateway", "bare network, Triton"
BY_HAND = "one hand-written model, Triton"
OUTPUTS = ("SIZE", "MASKS", "CLASSES")
CONCURRENCIES = (1, 8)
PAIRS = (
    (WHOLE, BARE_AT_TRITON),
    (WHOLE_PNG, BARE_AT_TRITON),
    (WHOLE, BARE),
    (WHOLE, WHOLE_APART),
    (WHOLE_AT_TRITON, BARE_AT_TRITON),
    (WHOLE, WHOLE_AT_TRITON),
    (WHOLE_AT_TRITON, BY_HAND),
)
COMPARED: Mapping[str, Callable[[Latencies, Latencies], float]] = {
    "p50": lambda one, other: one.median_ratio(other),
    "p95": lambda one, other: one.percentile(95) / other.percentile(95),
    "requests/s": lambda one, other: one.per_second / other.per_second,
}


def as_jpeg() -> bytes:
    """Return the photograph as a JPEG, as a camera would send it."""
    buffer = BytesIO()
    Image.open(COINS / "coins.png").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def image_call(address: str, model: str, encoded: bytes, names: Sequence[str] = OUTPUTS) -> Callable[[], Any]:
    """Return a call that sends an encoded image and receives outputs, their masks as RLE."""
    image = triton.InferInput("IMAGE", [1], "BYTES")
    image.set_data_from_numpy(np.array([encoded], np.object_))
    outputs = [triton.InferRequestedOutput(name) for name in names]
    parameters = {} if model == MONOLITH else {"encoding": "rle", "outputs": ",".join(names)}
    client = triton.InferenceServerClient(address)
    return partial(client.infer, model, [image], outputs=outputs, parameters=parameters)


def tensor_call(address: str) -> Callable[[], Any]:
    """Return a call that sends the network's input and receives its logits."""
    tensor = unet_input(photograph())
    image = triton.InferInput("image", tensor.shape, "UINT8")
    image.set_data_from_numpy(tensor)
    client = triton.InferenceServerClient(address)
    return partial(client.infer, f"{APART}.network", [image])


def addresses(running: Running) -> tuple[str, str, str]:
    """Return the gateway's address, and the gRPC address and the URL of the Triton that serves the models."""
    ports = json.loads((running.state / "groups/main/ports.json").read_text())
    gateway = running.url.removeprefix("http://")
    return gateway, f"127.0.0.1:{ports['grpc']}", f"http://127.0.0.1:{ports['http']}"


def step_times(http_url: str, call: Callable[[], Any], calls: int) -> StepTimes:
    """Return the time of each of the three steps while requests are sent one after the other."""
    with httpx.Client(base_url=http_url, trust_env=False) as http:
        before = Counters.read(http, APART)
        for _ in range(calls):
            call()
        return before.until(Counters.read(http, APART))


def same_masks(targets: Mapping[str, Callable[[], Any]]) -> list[bytes]:
    """Return the masks that all targets answer; exits if they differ, for targets would not do the same work."""
    by_target = {name: call().as_numpy("MASKS").tolist() for name, call in targets.items()}
    (first, masks), *others = by_target.items()
    for name, found in others:
        if found != masks:
            raise SystemExit(f"the masks of {name!r} differ from those of {first!r}")
    return list(masks)


def ratios(at: Mapping[int, Mapping[str, Latencies]]) -> dict[str, dict[str, float]]:
    """Return the ratios by pair of targets, then by figure and concurrency."""
    return {
        f"{one} / {other}": {
            f"{title} at {concurrency}": round(value(of[one], of[other]), 3)
            for concurrency, of in at.items()
            for title, value in COMPARED.items()
        }
        for one, other in PAIRS
    }


def report(at: Mapping[int, Mapping[str, Latencies]], steps: StepTimes) -> dict[str, Any]:
    """Return all results as JSON."""
    return {
        "machine": {"cpus": os.cpu_count()},
        "ratios": ratios(at),
        "concurrency": {str(n): {name: one.to_json() for name, one in of.items()} for n, of in at.items()},
        "steps_ms": {
            **{name: round(ms, 3) for name, ms in steps.compute_ms.items()},
            "Triton around them": round(steps.around_ms, 3),
            "of that, waiting": round(steps.queue_ms, 3),
        },
    }


def show(results: Mapping[str, Any]) -> None:
    """Print what `report` returned."""
    console = Console()
    for concurrency, of in results["concurrency"].items():
        table = Table(title=f"concurrency {concurrency}", title_justify="left")
        table.add_column("target")
        for heading in ("p50 ms", "p95 ms", "requests/s"):
            table.add_column(heading, justify="right")
        for name, one in of.items():
            table.add_row(name, *(f"{one[key]:.2f}" for key in ("p50_ms", "p95_ms", "requests_per_s")))
        console.print(table)
    table = Table(title="milliseconds by step, one request after the other", title_justify="left")
    table.add_column("where")
    table.add_column("ms", justify="right")
    for name, ms in results["steps_ms"].items():
        table.add_row(name, f"{ms:.2f}")
    console.print(table)
    console.print("ratios at concurrency 1 and 8")
    for name, of in results["ratios"].items():
        console.print(f"  {name}: " + ", ".join(f"{what} {ratio:.2f}" for what, ratio in of.items()), soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=sized(480, 64), help="calls of each target at each concurrency")
    calls = parser.parse_args().calls
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        apart = write(folder / "apart.yaml", variant(name=APART, expose=["network"]))
        running = stack.enter_context(platform(MODELS, apart))
        by_hand = stack.enter_context(monolith(COINS / "coins-unet.onnx"))
        gateway, grpc, http = addresses(running)
        jpeg = as_jpeg()
        targets = {
            WHOLE: image_call(gateway, "coins", jpeg),
            WHOLE_APART: image_call(gateway, APART, jpeg),
            WHOLE_PNG: image_call(gateway, "coins", (COINS / "coins.png").read_bytes()),
            WHOLE_AT_TRITON: image_call(grpc, "coins", jpeg),
            BARE: tensor_call(gateway),
            BARE_AT_TRITON: tensor_call(grpc),
            BY_HAND: image_call(by_hand, MONOLITH, jpeg),
        }
        same_masks({name: targets[name] for name in (WHOLE, WHOLE_AT_TRITON, WHOLE_APART, BY_HAND)})
        measure(targets, concurrency=max(CONCURRENCIES), rounds=1, calls=3 * max(CONCURRENCIES))
        # Short rounds, because the speed of a shared machine changes from second to second.
        at = {n: measure(targets, concurrency=n, rounds=calls // (8 * n), calls=8 * n) for n in CONCURRENCIES}
        results = report(at, step_times(http, image_call(grpc, APART, jpeg), sized(200, 5)))
    show(results)
    output("bench/out/request.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
