"""Shows a rollout: a version that errs only on dark images is stopped before any caller, and a good one gets through.

    python examples/coins/rollout_demo.py [FOLDER]

Everything runs on a platform of its own, which is gone at the end; the clock of its decisions runs `SPEED` times as
fast. The pictures on which both versions differ most are written to FOLDER, `out/rollout-sheet` where none is named.
"""

from __future__ import annotations

import copy
import hashlib
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from segserve import Client, Result, SegserveError, Tls
from segserve.platform import Local
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.triton import free_port
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.local_platform.shutdown import end
from segserve_platform.cli import lifecycle
from segserve_platform.cli.picture_pages import PAGE, write_sheet
from segserve_platform.cli.signals import ends_on_signals
from segserve_platform.evaluation.sheets import fetch_sheet
from segserve_platform.platforms.local import LocalPlatform
from segserve_platform.platforms.manifests import read_files
from segserve_platform.platforms.rollouts.rollout_view import RolloutView, watch_rollout
from segserve_platform.platforms.rollouts.words import why
from segserve_platform.platforms.waiting import wait_serving

Json = dict[str, Any]

HERE: Final = Path(__file__).parent
MODEL: Final = "coins"
SPEED: Final = 20.0
"""Much faster, a caller that pauses for seconds leaves Shadow without copies for what is a minute there."""
RATE: Final = 10.0
"""Requests per second, of at most `CALLERS` at once: a busy machine answers fewer, and refuses none."""
CALLERS: Final = 8
LEAD_S: Final = 12.0
START_S: Final = 120.0
SIDE_PX: Final = 96
DARK: Final = 0.3
"""Share of the light that is left in every second image."""
MEAN_OF_DARK: Final = 60.0
NOTHING: Final = -1e4
"""A logit below which no coin is seen."""
ROLLOUT: Final[Json] = {
    "steps": [{"weight": 50}],
    "bakeTime": "100s",
    "tolerance": {"errorPercent": 20},
    "gates": [{"gate": "errorRate"}, {"gate": "maskAgreement", "minimum": 0.9, "onBreach": "Rollback"}],
    "shadow": {"percent": 100, "maxRequestsPerSecond": 20, "minRequests": 60, "maxDuration": "10h"},
}


def main() -> None:
    """Roll out a bad version and a good one, and say what happens."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/rollout-sheet")
    with tempfile.TemporaryDirectory(prefix="segserve-demo-") as root, ends_on_signals():
        state = StateFolder(Path(root).resolve() / "state")
        try:
            play(state, Path(root), folder)
        finally:
            end(state)


def play(state: StateFolder, folder: Path, sheet_folder: Path) -> None:
    """Serve the coins to callers, and roll out both versions."""
    images = folder / "images"
    images.mkdir()
    for number, image in enumerate(parts_of_photograph()):
        Image.fromarray(image).save(images / f"{number:03}.png")
    stable, bad, good = (
        version(150),
        version(150, blind_in_the_dark(HERE / "coins-unet.onnx", folder / "blind.onnx")),
        version(160),
    )
    platform = LocalPlatform(Local(state.root))
    apply(platform, folder, stable)
    platform.store.set_gateway_port(free_port())
    lifecycle.install_runtime()
    print("1. A platform serves the stable version of the coins to callers; half of their images are dark.", flush=True)
    lifecycle.launch(state, SPEED)
    wait_serving(platform, MODEL, time.monotonic() + START_S, f"{START_S:g} s")
    with platform.gateway(MODEL) as url:
        assert url is not None, "it serves"
        with Callers(url, platform.ca_file(), sorted(images.iterdir())) as callers:
            time.sleep(LEAD_S)
            print("2. A new version comes. Its golden image is bright, and answered well; in the dark it is blind.")
            view = rolled_out(platform, folder, bad)
            print(f"   {view.standing.phase.label}: {why(view)}.")
            print(f"   Callers who had its answers: {callers.answers_of(view.standing.revision)}.")
            print("3. The images on which it differs most from stable, from the memory of the gateway:")
            sheet, classes = fetch_sheet(platform, MODEL)
            for line in write_sheet(sheet, classes, sheet_folder):
                print(f"   {line}")
            print("4. A good version comes.")
            view = rolled_out(platform, folder, good)
            answers = callers.answers_of(view.standing.revision)
            print(f"   {view.standing.phase.label}: callers who had its answers: {answers}.")
    print(f"The sheet: {sheet_folder / PAGE}")
    if view.standing.phase is not Phase.SUCCEEDED:
        raise SystemExit(f"The good version was not promoted: {why(view)}.")


def rolled_out(platform: LocalPlatform, folder: Path, manifest: Json) -> RolloutView:
    """Apply a version, say through which phases its rollout goes, and return it at its end."""
    before = (platform.model(MODEL).get("status") or {}).get("rollout") or {}
    apply(platform, folder, manifest)
    said = ""
    for view in watch_rollout(platform, MODEL):
        if view is None or view.standing.rollout == before.get("name"):
            continue
        now = f"{view.standing.phase.label}, {view.standing.weight} % of callers"
        if now != said and not view.over:
            print(f"   {now}", flush=True)
            said = now
        if view.over and view.record is not None and view.record.sequence >= view.standing.sequence:
            return view
    raise AssertionError("watch_rollout has no end")


class Callers:
    """Ask the model for images again and again while the block runs."""

    def __init__(self, url: str, ca_file: str | None, images: Sequence[Path]) -> None:
        # No request is tried again: each one that fails is counted.
        self._client = Client(url, retries=0, tls=None if ca_file is None else Tls(ca_file=ca_file))
        self._images, self._ended = images, threading.Event()
        self._threads = ThreadPoolExecutor(CALLERS + 1)
        self._requests: list[Future[Result]] = []

    def __enter__(self) -> Self:
        self._threads.submit(self._send)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._threads.shutdown()
        self._client.close()

    def _send(self) -> None:
        for image in cycle(self._images):
            if sum(not request.done() for request in self._requests[-CALLERS:]) < CALLERS:
                self._requests.append(self._threads.submit(self._client.segment, image, model=MODEL))
            if self._ended.wait(1 / RATE):
                return

    def answers_of(self, revision: str) -> int:
        """Return how many requests a revision has answered, with a result or an error."""
        done = [request for request in tuple(self._requests) if request.done()]
        errors = [request.exception() for request in done]
        answers = [error or request.result() for error, request in zip(errors, done, strict=True)]
        return sum(isinstance(each, Result | SegserveError) and each.revision == revision for each in answers)


def apply(platform: LocalPlatform, folder: Path, manifest: Json) -> None:
    """Apply a version of the model."""
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(manifest))
    platform.apply(read_files([path]))


def version(smallest: int, network: Path = HERE / "coins-unet.onnx") -> Json:
    """Return the example's model with another network, or another smallest area of a coin."""
    first = next(yaml.safe_load_all((HERE / "model.yaml").read_text()))
    changed: Json = copy.deepcopy(first)
    digest = hashlib.sha256(network.read_bytes()).hexdigest()
    changed["spec"] |= {
        "artifact": {"uri": network.resolve().as_uri(), "sha256": digest},
        "golden": first["spec"]["golden"] | {"uri": (HERE / first["spec"]["golden"]["uri"]).resolve().as_uri()},
        "postprocess": [{"argmax": {}}, {"removeSmallRegions": {"minArea": smallest}}],
        "slo": {"errorPercent": 1},
        "rollout": ROLLOUT,
        "progressDeadline": "10h",
    }
    return changed


def blind_in_the_dark(source: Path, target: Path) -> Path:
    """Write a network that finds nothing in images whose mean is below `MEAN_OF_DARK`."""
    network = onnx.load(source)
    graph = network.graph
    image, logits = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.output[:] = ["seen" if output == logits else output for output in node.output]
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("mean-of-dark", MEAN_OF_DARK), ("nothing", NOTHING))
    )
    graph.node.extend(
        (
            helper.make_node("Cast", [image], ["light"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["light"], ["mean"], axes=[1, 2, 3]),
            helper.make_node("Less", ["mean", "mean-of-dark"], ["is-dark"]),
            helper.make_node("Where", ["is-dark", "nothing", "seen"], [logits]),
        )
    )
    onnx.checker.check_model(network)
    onnx.save(network, target)
    return target


def parts_of_photograph() -> list[NDArray[np.uint8]]:
    """Return parts of the photograph, every second one in the dark."""
    with Image.open(HERE / "coins.png") as photograph:
        pixels = np.asarray(photograph.convert("L"))
    height, width = pixels.shape
    corners = [(y, x) for y in range(0, height - SIDE_PX, 48) for x in range(0, width - SIDE_PX, 48)]
    parts = (pixels[y : y + SIDE_PX, x : x + SIDE_PX] for y, x in corners)
    return [(part * (DARK if number % 2 else 1.0)).astype(np.uint8) for number, part in enumerate(parts)]


if __name__ == "__main__":
    main()
