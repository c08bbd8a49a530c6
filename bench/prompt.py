"""Clicks on several servers of a cluster, some of which are killed, beside ways without embeddings or affinity.

    PYTHONPATH=tests python -m bench.prompt

A pool of four servers has the model of examples/prompt. Twenty images are clicked on, ten times a second in all, one
click after the other on each. `segserve` sends the id of an image's embedding, and the image if the server does not
have it; `without affinity` does so without a session's id; `image each time` sends the image with each click, whose
embedding a server still knows by the image's content. Encoder and decoder also run alone in this process, with one
thread. Writes bench/out/prompt.json.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import cv2
import httpx
import numpy as np
import yaml
from rich.console import Console

from bench.platform import ROOT
from bench.smoke import output, sized
from fakes.artifact_server import artifact_server
from fakes.cluster import Cluster, running_cluster
from fakes.cluster_models import default_pool
from fakes.installed_operator import installed
from fakes.served_namespace import ServedNamespace
from raw_inference import RawRequest, RawTensor, http_body, image
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.inference import decoder_io, network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.prompts import LOST, PromptDecoder, PromptInputs
from segserve_common.kserve import HEADER_LENGTH, decode_http
from segserve_common.kube.names import COMPONENT_LABEL, SERVER
from segserve_operator.api.loading import load
from segserve_operator.api.segmentation_model import SegmentationModel

Json = dict[str, Any]

OUT: Final = output("bench/out/prompt.json")
EXAMPLE: Final = ROOT / "examples/prompt"
MODEL: Final = "coins-prompt"
SERVERS, IMAGES, RATE = sized(4, 2), 20, 10.0
FIRST_S, REST_S, KILLS_S, KILL_EVERY_S = sized((10.0, 60.0, 180.0, 30.0), (2.0, 5.0, 30.0, 5.0))
TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class Clicked:
    """An image, with what the last answer said of its embedding and its server."""

    session: str
    content: bytes
    embedding: bytes = b""
    server: str = ""
    turn: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Click:
    """One click: when it began, its milliseconds, the image's former server, and how it went."""

    began_s: float
    ms: float
    former: str
    server: str
    is_lost: bool = False
    is_foreign: bool = False
    error: str = ""


class Callers:
    """People who click on images, each waiting for an answer before the next click."""

    def __init__(self, url: str, *, affinity: bool = True, by_id: bool = True) -> None:
        self._url, self._affinity, self._by_id = url, affinity, by_id
        self._images = [Clicked(f"image-{number}", content) for number, content in enumerate(pictures())]
        self._random = random.Random(0)
        self.clicks: list[Click] = []

    def click(self, limit_s: float) -> list[Click]:
        """Click for some seconds, and return what came of it."""
        self.clicks = []
        with httpx.Client(timeout=TIMEOUT_S) as http, ThreadPoolExecutor(IMAGES) as pool:
            began_s = time.monotonic()
            for number in range(int(limit_s * RATE)):
                time.sleep(max(0.0, began_s + number / RATE - time.monotonic()))
                at = self._random.randrange(IMAGES)
                place = self._random.uniform(20, 280), self._random.uniform(20, 280)
                pool.submit(self._clicked, http, self._images[at], place)
        return self.clicks

    def _clicked(self, http: httpx.Client, shown: Clicked, place: tuple[float, float]) -> None:
        with shown.turn:
            began_s, former, used = time.monotonic(), shown.server, shown.embedding
            is_lost, error, revision = False, "", ""
            try:
                answer = self._asked(http, shown, place, by_id=self._by_id and bool(used))
                if answer.status_code == 400 and LOST in answer.text:
                    is_lost = True
                    answer = self._asked(http, shown, place, by_id=False)
                if answer.status_code == 200:
                    outputs = decode_http(answer.content, answer.headers.get(HEADER_LENGTH)).outputs
                    shown.embedding = bytes(outputs["EMBEDDING_ID"].to_items()[0])
                    shown.server = answer.headers.get("x-segserve-server", "")
                    revision = answer.headers["x-segserve-revision"]
                else:
                    error = f"{answer.status_code}: {answer.text[:200]}"
            except httpx.HTTPError as raised:
                error = repr(raised)
            # Of the revision that the gateway names, which answered a prompt about the id of another.
            is_foreign = bool(used and revision and not is_lost) and not used.decode().startswith(f"{revision}.")
            ms = 1000 * (time.monotonic() - began_s)
            self.clicks.append(Click(began_s, ms, former, shown.server, is_lost, is_foreign, error))

    def _asked(self, http: httpx.Client, shown: Clicked, place: tuple[float, float], *, by_id: bool) -> httpx.Response:
        point = np.array([place], np.float32)
        given = image(shown.embedding, name="EMBEDDING") if by_id else image(shown.content)
        request = RawRequest([given, RawTensor("POINTS", "FP32", point.shape, point.tobytes())], model=MODEL)
        header, tensors = http_body(request)
        headers = {HEADER_LENGTH: str(len(header))}
        if self._affinity:
            headers["x-sequence-id"] = shown.session
        return http.post(f"{self._url}/v2/models/{MODEL}/infer", content=header + tensors, headers=headers)


def pictures() -> list[bytes]:
    """Return the photograph with twenty different tones, as PNG."""
    photo = cv2.imread(str(ROOT / "examples/coins/coins.png"), cv2.IMREAD_GRAYSCALE)
    tones = [np.clip(photo.astype(np.int16) + shift, 0, 255).astype(np.uint8) for shift in range(IMAGES)]
    return [cv2.imencode(".png", tone)[1].tobytes() for tone in tones]


def percentiles(ms: Sequence[float]) -> Json:
    """Return p50, p95 and p99 in milliseconds."""
    return {f"p{rank}_ms": round(float(np.percentile(ms, rank)), 1) for rank in (50, 95, 99)}


def summary(clicks: Sequence[Click]) -> Json:
    """Return what came of some clicks; a server lives on if it answered a later one."""
    last_s: dict[str, float] = {}
    for each in clicks:
        last_s[each.server] = max(last_s.get(each.server, 0.0), each.began_s)
    of_living = [each for each in clicks if each.former and last_s.get(each.former, 0.0) > each.began_s]
    return {
        "clicks": len(clicks),
        "failed": sum(bool(each.error) for each in clicks),
        "errors": sorted({each.error for each in clicks if each.error})[:5],
        "decoded_by_another_revision": sum(each.is_foreign for each in clicks),
        "lost": sum(each.is_lost for each in clicks),
        "of_living_servers": len(of_living),
        "found_of_these": round(sum(not each.is_lost for each in of_living) / max(len(of_living), 1), 4),
        **percentiles([each.ms for each in clicks if not each.error]),
    }


@contextmanager
def killing(served: ServedNamespace, every_s: float) -> Iterator[list[str]]:
    """Kill a server's pod at times without a chance to end, and name them."""
    killed, over, chance = list[str](), threading.Event(), random.Random(1)

    def kill() -> None:
        while not over.wait(every_s):
            name = chance.choice(servers(served))
            served.cluster.kubectl("-n", served.name, "delete", "pod", name, "--grace-period=0", "--force")
            killed.append(name)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def servers(served: ServedNamespace) -> list[str]:
    """Return the names of the pods of servers that are Ready."""
    return [
        pod["metadata"]["name"]
        for pod in served.cluster.pods(served.name, f"{COMPONENT_LABEL}={SERVER}")
        if any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))
    ]


def is_whole(served: ServedNamespace) -> bool:
    """Return whether all servers are Ready."""
    return len(servers(served)) == SERVERS


def memory_mib(served: ServedNamespace) -> list[int]:
    """Return the resident memory of each server's Triton with its steps."""
    found = []
    for name in servers(served):
        processes = served.cluster.processes(served.name, name, "triton")
        lines = [served.cluster.node.run(f"grep VmRSS /proc/{each.pid}/status") for each in processes]
        found.append(sum(int(line.split()[1]) for line in lines) // 1024)
    return found


def alone() -> Json:
    """Return how long encoder and decoder take in this process, one after the other and at the rate of the clicks."""
    (resource,) = load((EXAMPLE / "model.yaml").read_text(), "model.yaml")
    assert isinstance(resource, SegmentationModel)
    pipeline = resource.spec.pipeline(MODEL)
    encoder, decoder = EXAMPLE / "encoder.onnx", EXAMPLE / "decoder.onnx"
    model = InProcessModel(pipeline, encoder, decoder=decoder)
    given = model.network_input(pictures()[0])
    raw = model.raw(given)
    io = decoder_io(pipeline, read_signature(decoder), network_io(pipeline, read_signature(encoder)))
    decode = PromptDecoder(decoder, io, 1)
    prompt = PromptInputs.of({"POINTS": np.array([[107, 45]], np.float32)})

    def took(run: Callable[[], object], pause_s: float) -> Json:
        found = []
        for _ in range(sized(120, 25)):
            time.sleep(pause_s)
            began_s = time.perf_counter()
            run()
            found.append(1000 * (time.perf_counter() - began_s))
        return percentiles(found[20:])

    pause_s = 1 / RATE
    return {
        "decoder alone": took(lambda: decode(raw, prompt, given.transform), 0),
        "decoder alone, at the rate": took(lambda: decode(raw, prompt, given.transform), pause_s),
        "encoder alone, at the rate": took(lambda: model.raw(given), pause_s),
    }


def resources(cluster: Cluster, url: str) -> list[Json]:
    """Return the pool and the model, whose files are at a URL."""
    (model,) = yaml.safe_load_all((EXAMPLE / "model.yaml").read_text())
    for file in (model["spec"]["artifact"], model["spec"]["decoder"]["artifact"]):
        file["uri"] = f"{url}/{file['uri']}"
    del model["spec"]["golden"]
    pool = default_pool(
        replicas=SERVERS,
        gateway={"replicas": 1, "sessionAffinity": {}},
        artifacts={"privateHosts": [cluster.host]},
        server={"drainSeconds": 3},
    )
    return [pool, model]


WAYS: Final[Mapping[str, Mapping[str, bool]]] = {
    "segserve": {},
    "without affinity": {"affinity": False},
    "image each time": {"by_id": False},
}


def main() -> None:
    """Measure at rest, and with kills."""
    found = alone()
    Console().print(found)
    with ExitStack() as stack:
        cluster = stack.enter_context(running_cluster())
        namespace = stack.enter_context(cluster.namespace("clicks"))
        artifacts = stack.enter_context(artifact_server("0.0.0.0", EXAMPLE, advertised=cluster.host))
        operator = stack.enter_context(installed(cluster, [namespace]))
        served = ServedNamespace(cluster, operator, namespace)
        served.apply(*resources(cluster, artifacts.url))
        served.wait_ready(MODEL)
        all_ready = partial(is_whole, served)
        cluster.wait("all servers are Ready", all_ready)
        for name, way in WAYS.items():
            callers = Callers(served.url(), **way)
            callers.click(FIRST_S)
            found[f"{name}, at rest"] = summary(callers.click(REST_S)) | {"memory_mib": memory_mib(served)}
            Console().print(name, found[f"{name}, at rest"])
        for name, way in WAYS.items():
            cluster.wait("all servers are Ready", all_ready)
            callers = Callers(served.url(), **way)
            callers.click(FIRST_S)
            with killing(served, KILL_EVERY_S) as killed:
                clicks = callers.click(KILLS_S if name == "segserve" else KILLS_S / 3)
            found[f"{name}, with kills"] = summary(clicks) | {"killed": len(killed)}
            Console().print(name, found[f"{name}, with kills"])
        OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
