"""Clients that do not know of segserve, used as their own documentation says, against the gateway."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import queue
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from PIL import Image

from bench.platform import ROOT, Running
from fakes.waiting import HANG_S
from perf_analyzer import PerfAnalyzer, perf_analyzer
from segserve.results.masks import EncodedMask
from segserve_common.kserve import pack_bytes

pytestmark = [pytest.mark.platform, pytest.mark.core]

MODELS = ("coins", "coins-instances")
LIBRARIES = {"http": tritonclient.http, "grpc": tritonclient.grpc}
COIN_PIXELS = range(39_000, 40_000)
"""Of the photograph; 39,461 are coin."""


def authority(running: Running) -> str:
    return running.url.removeprefix("http://")


def encoded_image(library: Any, photo: bytes) -> list[Any]:
    tensor = library.InferInput("IMAGE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([photo], dtype=np.object_))
    return [tensor]


def outputs(library: Any, *names: str) -> list[Any]:
    return [library.InferRequestedOutput(name) for name in names]


def check_answer(result: Any) -> None:
    """Check an answer of the model coins."""
    assert result.as_numpy("SIZE").tolist() == [303, 384]
    assert int(result.as_numpy("AREAS")[1]) in COIN_PIXELS
    assert result.as_numpy("REVISION")[0].startswith(b"coins-")
    assert result.as_numpy("LABELS")[0].startswith(b"\x89PNG")
    assert 0.9 < result.as_numpy("CONFIDENCE")[1] <= 1


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_tritonclient_gets_every_output(coins: Running, photo: bytes, library: Any) -> None:
    with library.InferenceServerClient(authority(coins)) as client:
        check_answer(client.infer("coins", encoded_image(library, photo)))
        some = client.infer(
            "coins-instances",
            encoded_image(library, photo),
            outputs=outputs(library, "SCORES", "MASKS"),
            parameters={"max_detections": 7, "encoding": "rle"},
        )

    assert len(some.as_numpy("SCORES")) == len(some.as_numpy("MASKS")) == 7
    assert some.as_numpy("BOXES") is None


def test_tritonclient_gets_answers_by_callback_over_grpc(coins: Running, photo: bytes) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def keep(result: Any, error: Any) -> None:
        answers.put((result, error))

    with tritonclient.grpc.InferenceServerClient(authority(coins)) as client:
        for _ in range(4):
            client.async_infer("coins", encoded_image(tritonclient.grpc, photo), keep)
        received = [answers.get(timeout=HANG_S) for _ in range(4)]

    for result, error in received:
        assert error is None
        check_answer(result)


def test_tritonclient_gets_answers_later_over_http(coins: Running, photo: bytes) -> None:
    with tritonclient.http.InferenceServerClient(authority(coins), concurrency=2) as client:
        asked = [client.async_infer("coins", encoded_image(tritonclient.http, photo)) for _ in range(4)]
        for one in asked:
            check_answer(one.get_result())


@pytest.mark.parametrize("library", [tritonclient.http.aio, tritonclient.grpc.aio], ids=LIBRARIES)
async def test_tritonclient_for_asyncio_gets_the_same(coins: Running, photo: bytes, library: Any) -> None:
    plain = {tritonclient.http.aio: tritonclient.http, tritonclient.grpc.aio: tritonclient.grpc}[library]
    async with library.InferenceServerClient(authority(coins)) as client:
        asked = (client.infer("coins", encoded_image(plain, photo)) for _ in range(4))
        for result in await asyncio.gather(*asked):
            check_answer(result)


@pytest.mark.parametrize("protocol", LIBRARIES)
def test_tritonclient_is_told_of_server_models_and_statistics(coins: Running, protocol: str) -> None:
    as_json = {"as_json": True} if protocol == "grpc" else {}
    with LIBRARIES[protocol].InferenceServerClient(authority(coins)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.get_server_metadata(**as_json)["name"] == "triton"
        for model in MODELS:
            assert client.is_model_ready(model)
            told = client.get_model_metadata(model, **as_json)
            assert [tensor["name"] for tensor in told["inputs"]] == ["IMAGE", "PIXELS"]
            assert {"REVISION", "SIZE", "MASKS"} <= {tensor["name"] for tensor in told["outputs"]}
            config = client.get_model_config(model, **as_json)
            config = config.get("config", config)
            assert config["parameters"]["revision"]["string_value"].startswith(f"{model}-")
            steps = [step["model_name"] for step in config["ensemble_scheduling"]["step"]]
            assert steps
            assert all(client.get_model_config(step, **as_json) is not None for step in steps)
            counted = client.get_inference_statistics(model, **as_json)["model_stats"]
            assert [one["name"] for one in counted] == [model]
        every = client.get_inference_statistics(**as_json)["model_stats"]

    assert set(MODELS) <= {one["name"] for one in every}


@pytest.mark.needs("curl")
def test_curl_as_documented_gets_an_answer(coins: Running, photo: bytes, tmp_path: Path) -> None:
    """The recipe of docs/reference/wire.md, as it stands there but for the port."""
    guide = (ROOT / "docs/reference/wire.md").read_text()
    found = re.search(r"## With curl\n.*?```sh\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    (tmp_path / "photo.jpg").write_bytes(photo)

    done = subprocess.run(
        ["sh", "-e", "-c", found[1].replace("127.0.0.1:8080", authority(coins))],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=HANG_S,
    )

    answer = {output["name"]: output["data"] for output in json.loads(done.stdout)["outputs"]}
    mask = EncodedMask(answer["MASKS"][1].encode(), *answer["SIZE"])
    assert mask.area == answer["AREAS"][1]
    assert mask.area in COIN_PIXELS


@pytest.mark.needs("curl")
def test_curl_sees_what_is_served(coins: Running) -> None:
    def curl(path: str) -> str:
        url = f"{coins.url}{path}"
        done = subprocess.run(["curl", "--silent", "--fail", url], capture_output=True, text=True, check=True)
        return done.stdout

    assert curl("/v2/health/ready") == curl("/v2/models/coins/ready") == ""
    assert json.loads(curl("/v2/models/coins"))["name"] == "coins"


def test_command_and_python_of_the_readme_do_what_they_say(
    coins: Running, photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"^segserve (predict .*)$", readme, re.MULTILINE)
    python = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert command is not None
    assert python is not None
    (tmp_path / "photos").mkdir()
    for path in ("photo.jpg", "photos/photo.jpg"):
        (tmp_path / path).write_bytes(photo)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSERVE_URL", coins.url)

    table = coins.segserve(*shlex.split(command[1]))
    exec(compile(python[1], "README.md", "exec"), {})

    assert "coin" in table
    assert (tmp_path / "overlays/photo.png").stat().st_size > 10_000
    drawn, saved = (Image.open(tmp_path / path) for path in ("overlays/photo.png", "overlay.png"))
    assert drawn.tobytes() == saved.tobytes()


@pytest.fixture(scope="module")
def analyzer() -> PerfAnalyzer:
    return perf_analyzer()


@pytest.mark.needs("libb64")
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer_measures_one_and_two_callers(
    coins: Running, photo: bytes, analyzer: PerfAnalyzer, tmp_path: Path, protocol: str
) -> None:
    data, report = tmp_path / "input.json", tmp_path / "report.csv"
    data.write_text(json.dumps({"data": [{"IMAGE": {"b64": base64.b64encode(pack_bytes([photo])).decode()}}]}))

    done = analyzer.run(
        *("-m", "coins-instances", "-u", authority(coins), "-i", protocol),
        *(f"--input-data={data}", "--shape=IMAGE:1", "--concurrency-range=1:2", "-f", str(report)),
        # As short as it goes: whether it runs is the question here, not what it measures.
        *("--measurement-mode=count_windows", "--measurement-request-count=10", "--stability-percentage=999"),
        timeout_s=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(report.read_text().splitlines()))
    assert sorted(row["Concurrency"] for row in rows) == ["1", "2"]
    assert all(float(row["Inferences/Second"]) > 0 for row in rows)
    assert "Composing models" in done.stdout
