"""Errors say what helps: the size of an image, the tiled way, the models there are, how to start a platform."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import threading
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

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
)
from segserve.calls.endpoint import GatewayEndpoint
from segserve.calls.session import _explain_size
from segserve.calls.steps import Send
from segserve.platforms.port import Local
from segserve.results.images import image_size, image_tensor
from segserve.transports.base import deadline_exceeded
from segserve_common.kserve import InferRequest, Tensor
from segserve_common.process_record import ProcessRecord

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.kserve import Gateway

    from .conftest import Served

TILES = "segment it in tiles (segment_tiled, `segserve batch`)"


def encoded(kind: str, width: int = 3000, height: int = 2000) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_of_a_file_is_read_from_its_header(kind: str) -> None:
    assert image_size(image_tensor(encoded(kind))) == (2000, 3000)


def test_the_size_of_an_image_that_pillow_warns_of_is_read_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(image_tensor(encoded("PNG", 20_000, 5_000))) == (5_000, 20_000)


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
        pytest.param(ImageTooLargeError("use segment_tiled"), LARGE, "", id="the server has said all"),
        pytest.param(PoolTimeoutError("busy"), LARGE, "", id="requests are too many, not too large"),
        pytest.param(BadRequestError("no"), LARGE, "", id="another error"),
    ],
)
def test_advice_fits_the_error_and_the_image(error: SegserveError, image: Tensor, added: str) -> None:
    before = error.message

    _explain_size(error, image)

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
    assert caught.value.message.startswith(text)
    assert caught.value.message.count("segment_tiled") == 1


@pytest.mark.parametrize(("seconds", "shown"), [(0.00998, "10 ms"), (0.5, "500 ms"), (2, "2 s"), (29.94, "29.9 s")])
def test_a_timeout_is_said_in_a_readable_unit(seconds: float, shown: str) -> None:
    error = deadline_exceeded(GatewayEndpoint.parse("http://h:1"), Send(InferRequest("coins", ()), seconds))

    assert error.message == f"request to http://h:1 timed out after {shown}"


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_where_nothing_listens_on_this_machine_the_error_says_how_to_start_a_platform(
    transport: Any, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        messages = []
        for platform in (Local(tmp_path), Cluster(context="none")):
            with (
                Client(url, transport=transport, platform=platform) as client,
                pytest.raises(GatewayUnreachableError) as caught,
            ):
                client.model_info("coins")
            messages.append(caught.value.message)

    advice = "; no platform is up on this machine: `segserve up` starts it"
    assert [message.startswith(f"cannot reach {url}: ") for message in messages] == [True, True]
    assert [message.endswith(advice) for message in messages] == [True, False]


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
        (folder / "spec.yaml").write_text(json.dumps({"metadata": {"name": name, "generation": 1}, "spec": {}}))
        (folder / "status.yaml").write_text(json.dumps(status))
    own = asdict(ProcessRecord.of(os.getpid()))

    def at(url: str) -> Local:
        record = {"process": own, "url": url, "observed": True}
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
