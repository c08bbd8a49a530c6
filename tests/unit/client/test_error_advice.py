"""Errors say what helps: the size of an image, the tiled way, the models there are, how to start a platform."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import certifi
import numpy as np
import pytest
from PIL import Image

from fakes.kserve import Fault
from segserve import (
    AsyncClient,
    BadRequestError,
    Client,
    Cluster,
    DeadlineExceededError,
    GatewayUnreachableError,
    ImageTooLargeError,
    ModelNotFoundError,
    PoolTimeoutError,
    RequestTimeoutError,
    RequestTooLargeError,
    SegserveError,
    Tls,
)
from segserve.calls.session import _explain_size
from segserve.platform import Local
from segserve.results.images import image_size, image_tensor
from segserve_common.kserve import Tensor
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local.files import write_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fakes.kserve import Gateway

    from .conftest import Served

TILES = "segment it in tiles (client.segment_tiled(image, model='coins'), `segserve batch coins IMAGE -o tiled`)"


def encoded(kind: str, width: int = 3000, height: int = 2000) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_of_a_file_is_read_from_its_header(kind: str) -> None:
    assert image_size(image_tensor(encoded(kind))) == (2000, 3000)


def test_the_size_of_an_array_is_its_shape_and_that_of_anything_else_is_unknown() -> None:
    assert image_size(image_tensor(np.zeros((5, 7, 3), np.uint8))) == (5, 7)
    assert [
        image_size(Tensor.of_items("IMAGE", [data])) for data in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"II*\0")
    ] == [None] * 4


def test_a_timeout_says_the_size_of_the_image_and_what_helps(served: Served) -> None:
    served.gateway.faults.append(Fault(hold=(answers := threading.Event())))
    with Client(served.url, transport=served.transport) as client:
        client.model_info("coins")
        with pytest.raises(DeadlineExceededError, match=r"timed out after \d+ ms; ") as caught:
            client.segment(encoded("PNG"), model="coins", timeout_s=0.5)
    answers.set()

    end = f"; the image is 3000 x 2000 (6 megapixels): allow more time (timeout_s, `--timeout`), or {TILES}"
    assert caught.value.message.endswith(end)
    assert caught.value.args == (caught.value.message,)


LARGE, SMALL = (image_tensor(np.zeros(size, np.uint8)) for size in ((2000, 3000), (300, 400)))
TIME = "allow more time (timeout_s, `--timeout`)"
SEEN = "; the image is 3000 x 2000 (6 megapixels)"


@pytest.mark.parametrize(
    ("error", "image", "added"),
    [
        pytest.param(
            DeadlineExceededError("late"),
            SMALL,
            f"; the image is 400 x 300 (0.12 megapixels): {TIME}",
            id="a small image is not worth tiles",
        ),
        pytest.param(
            RequestTimeoutError("late"), LARGE, f"{SEEN}: {TILES}", id="the gateway's timeout is not the caller's"
        ),
        pytest.param(RequestTooLargeError("big"), LARGE, f"{SEEN}: {TILES}", id="a request beyond the gateway's limit"),
        pytest.param(RequestTooLargeError("big"), SMALL, "", id="nothing helps a small image"),
        pytest.param(ImageTooLargeError("big"), LARGE, f": {TILES}", id="the server has said the size"),
        pytest.param(PoolTimeoutError("busy"), LARGE, "", id="requests are too many, not too large"),
        pytest.param(BadRequestError("no"), LARGE, "", id="another error"),
    ],
)
def test_advice_fits_the_error_and_the_image(error: SegserveError, image: Tensor, added: str) -> None:
    before = error.message

    _explain_size(error, image, "coins")

    assert error.message == before + added


@pytest.mark.parametrize(
    "text",
    [
        "image of 2000 x 3000 = 6000000 pixels; allowed are 1 to 4000000 (input.maxPixels)",
        "the network's input of 2000 x 3000 pixels needs more memory than the 1.5 GB that it may have: send a smaller "
        "image, or segment this one in tiles (`segserve batch`, `Client.segment_tiled`)",
    ],
)
def test_the_refusal_of_a_large_image_has_a_type_of_its_own_and_names_the_tiled_way(served: Served, text: str) -> None:
    served.gateway.faults.append(Fault(http=400, grpc="INVALID_ARGUMENT", message=text))
    with Client(served.url, transport=served.transport) as client, pytest.raises(ImageTooLargeError) as caught:
        client.segment(encoded("PNG"), model="coins")

    assert isinstance(caught.value, BadRequestError)
    assert caught.value.message.startswith(text.partition("segment this")[0])
    assert caught.value.message.count("segment_tiled") == 1


OPTIONS: list[dict[str, Any]] = [
    {"score_threshold": "a"},
    {"score_threshold": float("nan")},
    {"score_threshold": [0.5]},
    {"max_detections": "7"},
    {"max_detections": 2.5},
    {"encoding": "bmp"},
    {"encoding": ["rle"]},
    {"timeout_s": "5"},
    {"timeout_s": -1},
    {"request_id": 7},
    {"expect": 7},
    {"confidence": 0.4},
    {"confidence": 1},
]


@pytest.mark.parametrize("option", OPTIONS, ids=repr)
def test_a_wrong_option_of_a_call_is_a_bad_request_that_names_it(served: Served, photo: bytes, option: Any) -> None:
    (name,) = option
    with (
        Client(served.url, transport=served.transport) as client,
        pytest.raises(BadRequestError, match=name),
    ):
        client.segment(photo, model="coins", **option)
    assert served.gateway.inferences == 0


@pytest.mark.parametrize(
    ("word", "meant"),
    [("conf", "score_threshold"), ("threshold", "score_threshold"), ("max_det", "max_detections"),
     ("timeout", "timeout_s"), ("score_treshold", "score_threshold")],
)  # fmt: skip
def test_a_word_of_another_library_is_refused_with_the_option_that_is_meant(word: str, meant: str) -> None:
    async def in_tasks() -> None:
        await AsyncClient("h").segment(b"", model="coins", **option)

    image, option = np.zeros((8, 8), np.uint8), cast(Any, {word: 0.4})
    client = Client("h")
    for call in (
        lambda: client.segment(image, model="coins", **option),
        lambda: client.segment_many([image], model="coins", **option),
        lambda: client.segment_stream([image], model="coins", **option),
        lambda: client.segment_tiled(image, model="coins", **option),
        lambda: asyncio.run(in_tasks()),
    ):
        with pytest.raises(TypeError, match=rf"no option '{word}' \(did you mean {meant}\?\); there are: "):
            call()


@pytest.mark.parametrize(
    "option",
    [{"tile": "a"}, {"tile": 0}, {"overlap": 1.5}, {"in_flight": "8"}, {"same_at_least": "x"}, {"blend": "mean"}],
    ids=repr,
)
def test_a_wrong_option_of_a_tiled_call_is_a_bad_request_that_names_it(gateway: Gateway, option: Any) -> None:
    (name,) = option
    with gateway.http() as url, Client(url) as client, pytest.raises(BadRequestError, match=name):
        client.segment_tiled(np.zeros((80, 80), np.uint8), model="coins", **option)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"url": 8080}, "URL"),
        ({"headers": ["x-team"]}, "headers"),
        ({"headers": {7: "a"}}, "headers"),
        ({"timeout_s": "a"}, "timeout_s"),
        ({"retries": "2"}, "retries"),
        ({"transport": 7}, "transport"),
        ({"api_key": 7}, "api_key"),
        ({"bearer_token": 7}, "bearer_token"),
        ({"tls": "ca.pem"}, "tls"),
        ({"hooks": print}, "hooks"),
    ],
)
def test_a_wrong_option_of_a_client_is_a_bad_request_that_names_it(option: Any, said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        Client(**{"url": "https://gateway.example", **option})


@pytest.fixture
def platform(tmp_path: Path, gateway: Gateway) -> Any:
    """A state folder of two models, one of which does not serve, beside a gateway of this machine."""
    status = {
        "observedGeneration": 1,
        "conditions": [
            {"type": "Degraded", "status": "True", "reason": "DigestMismatch", "message": "sha256 is 12, not 34"}
        ],
    }
    for name in ("coins", "fresh"):
        folder = tmp_path / "objects/SegmentationModel" / name
        folder.mkdir(parents=True)
        metadata = {"name": name, "generation": 1, "creationTimestamp": "2026-11-20T12:00:00Z"}
        write_yaml(folder / "spec.yaml", {"metadata": metadata, "spec": {}})
        write_yaml(folder / "status.yaml", status)
    own = asdict(ProcessRecord.of(os.getpid()))

    def at(url: str, **fields: str) -> Local:
        record = {"process": own, "url": url, "observed": True, **fields}
        (tmp_path / "platform.json").write_text(json.dumps(record))
        return Local(tmp_path)

    return at


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("coin", "(did you mean 'coins'?); there are: coins, fresh"),
        ("fresh", "the model exists, but does not serve: DigestMismatch: sha256 is 12, not 34"),
    ],
)
def test_an_unknown_name_is_explained_by_the_platform_of_this_machine(
    gateway: Gateway, photo: bytes, platform: Any, name: str, advice: str
) -> None:
    async def in_tasks(url: str) -> SegserveError:
        async with AsyncClient(url, platform=platform(url)) as client:
            with pytest.raises(ModelNotFoundError) as caught:
                await client.segment(photo, model=name)
            return caught.value

    with gateway.http() as url, Client(url, platform=platform(url)) as client:
        with pytest.raises(ModelNotFoundError) as caught:
            client.segment(photo, model=name)
        errors = [caught.value, asyncio.run(in_tasks(url))]

    assert [error.message.endswith(advice) for error in errors] == [True, True]
    assert [error.args for error in errors] == [(error.message,) for error in errors]


def test_an_unknown_name_is_not_explained_by_a_platform_with_another_gateway(
    gateway: Gateway, photo: bytes, platform: Any
) -> None:
    messages = []
    with gateway.http() as url:
        for own in (platform("http://127.0.0.1:1"), Cluster(context="none")):
            with Client(url, platform=own) as client, pytest.raises(ModelNotFoundError) as caught:
                client.segment(photo, model="coin")
            messages.append(caught.value.message)

    assert messages == ["Request for unknown model: 'coin' is not found"] * 2


OF_LOCAL = ("psutil", "numba", "onnxruntime", "kopf", "kubernetes", "grpc", "tritonclient", "cv2", "onnx")
ALONE = f"import sys; sys.modules.update(dict.fromkeys({OF_LOCAL})); "


def test_an_application_with_the_client_alone_finds_the_platform_that_runs_here(
    gateway: Gateway, photo: bytes, platform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGSERVE_URL", raising=False)
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path))
    (tmp_path / "photo.png").write_bytes(photo)
    calls = (
        "from segserve import Client; print(Client().segment(sys.argv[1], model='coins').revision)",
        "from segserve_platform.cli.app import main; sys.argv[1:1] = ['predict', 'coins']; main()",
    )
    with gateway.http() as url:
        platform(url)
        answers = [
            subprocess.run(
                [sys.executable, "-c", ALONE + call, tmp_path / "photo.png"],
                capture_output=True, check=True, text=True,
            ).stdout
            for call in calls
        ]  # fmt: skip
    assert ["coins-aaaaaaaaaa" in answer for answer in answers] == [True, True]


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A URL of this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_client_without_a_url_takes_the_variable_then_the_platform_then_the_default(
    platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGSERVE_URL", raising=False)
    own = platform("http://127.0.0.1:18710")
    ended = Local(own.state / "ended")
    record = {"process": {"pid": os.getpid(), "start_ticks": 0, "boot_id": ""}, "url": "http://h:1", "observed": True}
    ended.state.mkdir()
    (ended.state / "platform.json").write_text(json.dumps(record))

    assert [repr(Client(platform=one)) for one in (own, ended, Cluster(context="none"))] == [
        "Client('http://127.0.0.1:18710')", "Client('http://127.0.0.1:8080')", "Client('http://127.0.0.1:8080')"
    ]  # fmt: skip
    monkeypatch.setenv("SEGSERVE_URL", "gateway.example")
    assert repr(Client(platform=own)) == "Client('http://gateway.example:80')"


def test_a_client_without_a_url_trusts_the_authority_of_the_platform_that_it_finds(
    platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SEGSERVE_URL", "SEGSERVE_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
    own = platform("https://127.0.0.1:1", caFile=certifi.where())

    assert Client(platform=own)._connection.tls == Tls(certifi.where())


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_gateway_at_which_nothing_listens_is_one_error_that_says_why_it_was_tried_and_what_helps(
    transport: Any, nowhere: str, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGSERVE_URL", raising=False)
    monkeypatch.setattr("segserve.calls.endpoint.DEFAULT_URL", nowhere)
    elsewhere = platform("http://127.0.0.1:1")
    down = Local(elsewhere.state / "none")

    def texts() -> Iterator[str]:
        for url, where in ((None, down), (nowhere, down), (nowhere, elsewhere), (nowhere, Cluster(context="none"))):
            with Client(url, transport=transport, platform=where) as client:
                with pytest.raises(GatewayUnreachableError) as caught:
                    client.model_info("coins")
                shown = "".join(traceback.format_exception(caught.value))
                assert (shown.count("Traceback"), shown.count('File "')) == (1, 3)
                yield caught.value.message

    start = "no platform is up on this machine: `segserve up` starts it"
    expected = [
        f"; it is the default, because SEGSERVE_URL is not set and {start}, "
        "or name a gateway (Client(url), SEGSERVE_URL, `--url`)",
        f"; {start}",
        "; the platform of this machine is at http://127.0.0.1:1: leave out the URL to use it",
        "",
    ]
    for message, advice in zip(texts(), expected, strict=True):
        assert message.startswith(f"cannot reach {nowhere}: ")
        assert message.endswith(advice)
    monkeypatch.setenv("SEGSERVE_URL", nowhere)
    texts_of_the_variable = [
        (down, f"; SEGSERVE_URL names it; {start}"),
        (elsewhere, "; the platform of this machine is at http://127.0.0.1:1: unset SEGSERVE_URL to use it"),
        (elsewhere, "; the platform of this machine is up, but its gateway does not listen: `segserve logs` shows why"),
    ]
    for number, (where, advice) in enumerate(texts_of_the_variable):
        if number == 2:
            platform(nowhere)
        with Client(transport=transport, platform=where) as client, pytest.raises(GatewayUnreachableError) as caught:
            client.model_info("coins")
        assert caught.value.message.endswith(advice)


def test_the_advice_to_start_a_platform_names_what_it_needs_where_that_is_not_installed(
    nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segserve.base_client.NEEDED_BY_UP", ("segserve_absent",))
    with Client(nowhere, platform=Local(tmp_path)) as client, pytest.raises(GatewayUnreachableError) as caught:
        client.model_info("coins")

    assert caught.value.message.endswith("`segserve up` starts it after pip install 'segserve[local]'")
