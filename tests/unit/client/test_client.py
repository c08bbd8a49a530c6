"""Both clients over both transports: answers, errors, retries, deadlines, concurrency."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pytest

from fakes.kserve import Asked, Fault, Model, items
from segserve import (
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    Client,
    GatewayUnreachableError,
    InstanceResult,
    MissingExtraError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    RequestTimeoutError,
    RequestTooLargeError,
    SegserveError,
    SemanticResult,
    ServerError,
    StepDiedError,
)
from segserve.calls.endpoint import GatewayEndpoint

from .conftest import HEIGHT, SEMANTIC, WIDTH, coin_masks, instance_answer, parameters, semantic_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from fakes.kserve import Arrays, Gateway

    from .conftest import Served


class Segment(Protocol):
    def __call__(self, served: Served, image: object, *, timeout_s: float = 20, **options: Any) -> Any: ...


def segment_in_threads(served: Served, image: Any, *, timeout_s: float = 20, **options: Any) -> Any:
    with Client(served.url, transport=served.transport, timeout_s=timeout_s) as client:
        return client.segment(image, **options)


def segment_in_tasks(served: Served, image: Any, *, timeout_s: float = 20, **options: Any) -> Any:
    async def main() -> Any:
        async with AsyncClient(served.url, transport=served.transport, timeout_s=timeout_s) as client:
            return await client.segment(image, **options)

    return asyncio.run(main())


@pytest.fixture(params=[segment_in_threads, segment_in_tasks], ids=["sync", "async"])
def segment(request: pytest.FixtureRequest) -> Segment:
    """One segmentation by a client of its own, of either kind."""
    chosen: Segment = request.param
    return chosen


def test_a_semantic_model_answers_labels_by_class(served: Served, photo: bytes, segment: Segment) -> None:
    result = segment(served, photo, model="coins")

    assert isinstance(result, SemanticResult)
    assert result.revision == "coins-aaaaaaaaaa"
    np.testing.assert_array_equal(result.mask("coin"), coin_masks().any(axis=0))
    assert result.confidence is None


def test_an_instance_model_answers_instances(served: Served, photo: bytes, segment: Segment) -> None:
    result = segment(served, photo, model="discs")

    assert isinstance(result, InstanceResult)
    assert [one.class_name for one in result] == ["coin", "coin"]
    np.testing.assert_array_equal([one.mask for one in result], coin_masks())


def test_options_arrive_with_their_types_and_only_where_given(served: Served, photo: bytes, segment: Segment) -> None:
    segment(served, photo, model="discs", score_threshold=1, max_detections=7, encoding="rle")
    segment(served, photo, model="discs")

    given, plain = (asked.parameters for asked in served.gateway.asked)
    read = {"outputs": "REVISION,SIZE,BOXES,SCORES,CLASSES,MASKS"}
    assert given == {"score_threshold": 1.0, "max_detections": 7, "encoding": "rle"} | read
    assert isinstance(given["score_threshold"], float)
    assert plain == read


def test_nothing_found_is_a_result(served: Served, photo: bytes, segment: Segment) -> None:
    assert len(segment(served, photo, model="discs", score_threshold=0.99)) == 0


def test_confidence_is_asked_for_where_wanted(served: Served, photo: bytes, segment: Segment) -> None:
    result = segment(served, photo, model="coins", confidence=True)

    assert result.confidence == pytest.approx({"background": 0.9, "coin": 0.8})
    assert served.gateway.asked[0].outputs == ["REVISION", "SIZE", "LABELS", "MASKS", "CLASSES", "AREAS", "CONFIDENCE"]


def test_files_arrive_unchanged_and_arrays_as_pixels(served: Served, photo: bytes, segment: Segment) -> None:
    pixels = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    segment(served, photo, model="coins")
    segment(served, pixels, model="coins")

    encoded, raw = (asked.inputs for asked in served.gateway.asked)
    assert encoded["IMAGE"].tolist() == [photo]
    np.testing.assert_array_equal(raw["PIXELS"], pixels[:, :, np.newaxis])


HTTP_STATUSES = [
    (400, BadRequestError),
    (401, AuthenticationError),
    (403, PermissionDeniedError),
    (404, ModelNotFoundError),
    (413, RequestTooLargeError),
    (429, RateLimitError),
    (500, ServerError),
    (502, ServerError),
    (503, OverloadedError),
    (504, RequestTimeoutError),
]
GRPC_STATUSES = [
    ("INVALID_ARGUMENT", BadRequestError),
    ("UNAUTHENTICATED", AuthenticationError),
    ("PERMISSION_DENIED", PermissionDeniedError),
    ("NOT_FOUND", ModelNotFoundError),
    ("UNIMPLEMENTED", ModelNotFoundError),
    ("RESOURCE_EXHAUSTED", RequestTooLargeError),
    ("UNAVAILABLE", OverloadedError),
    ("INTERNAL", ServerError),
    ("UNKNOWN", ServerError),
    ("DEADLINE_EXCEEDED", RequestTimeoutError),
]


@pytest.mark.parametrize(("status", "kind"), HTTP_STATUSES + GRPC_STATUSES)
def test_each_status_has_its_error_with_all_that_is_known(
    gateway: Gateway, photo: bytes, status: int | str, kind: type[SegserveError]
) -> None:
    message = "[request id: <id_unknown>] in ensemble 'coins', decode: not an image "
    by = {"http": status} if isinstance(status, int) else {"grpc": status}
    gateway.faults.extend([Fault(**by, message=message, headers={"x-segserve-revision": "coins-cc"})] * 3)  # type: ignore[arg-type]
    transport = next(iter(by))

    with (
        getattr(gateway, transport)() as url,
        Client(url, transport=transport) as client,
        pytest.raises(SegserveError) as caught,
    ):
        client.segment(photo, model="coins")

    error = caught.value
    assert type(error) is kind
    assert error.message == "decode: not an image"
    assert str(error) == f"decode: not an image (request {error.request_id})"
    assert (error.status, error.model, error.revision) == (status, "coins", "coins-cc")
    assert gateway.inferences == (3 if issubclass(kind, OverloadedError) else 1)


def test_an_unknown_model_is_named(served: Served, photo: bytes, segment: Segment) -> None:
    with pytest.raises(ModelNotFoundError, match="'dogs'") as caught:
        segment(served, photo, model="dogs")
    assert caught.value.model == "dogs"


def test_overload_that_passes_is_not_seen(served: Served, photo: bytes, segment: Segment) -> None:
    served.gateway.faults.extend([Fault(http=503, grpc="UNAVAILABLE")] * 2)

    assert segment(served, photo, model="coins").revision == "coins-aaaaaaaaaa"
    assert served.gateway.inferences == 3


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_step_that_died_is_told_from_other_failures(gateway: Gateway, photo: bytes, transport: Any) -> None:
    message = "in ensemble 'coins', Stub process 'segserve--net--1_0_0' is not healthy."
    by: dict[str, Any] = {"http": 500} if transport == "http" else {"grpc": "INTERNAL"}
    gateway.faults.append(Fault(**by, message=message))

    with (
        getattr(gateway, transport)() as url,
        Client(url, transport=transport, retries=0) as client,
        pytest.raises(StepDiedError, match="not healthy"),
    ):
        client.segment(photo, model="coins")


def test_a_retry_that_the_server_asks_for_later_than_the_deadline_is_not_made(gateway: Gateway, photo: bytes) -> None:
    gateway.faults.append(Fault(http=429, headers={"Retry-After": "60"}))

    with gateway.http() as url, Client(url, timeout_s=5) as client, pytest.raises(OverloadedError) as caught:
        client.segment(photo, model="coins")

    assert caught.value.retry_after_s == 60
    assert gateway.inferences == 1


def test_a_connection_that_breaks_is_tried_again(gateway: Gateway, photo: bytes) -> None:
    gateway.faults.extend([Fault(drop=True), Fault(truncate_to=40)])

    with gateway.http() as url, Client(url) as client:
        assert client.segment(photo, model="coins").revision == "coins-aaaaaaaaaa"


def test_a_connection_that_keeps_breaking_is_an_unreachable_gateway(gateway: Gateway, photo: bytes) -> None:
    gateway.faults.extend([Fault(truncate_to=40)] * 3)

    with gateway.http() as url, Client(url) as client, pytest.raises(GatewayUnreachableError, match=r"127\.0\.0\.1"):
        client.segment(photo, model="coins")


def test_an_answer_that_is_late_is_a_timeout_and_not_asked_for_again(
    served: Served, photo: bytes, segment: Segment
) -> None:
    served.gateway.faults.append(Fault(hold=(answers := threading.Event())))

    with pytest.raises(RequestTimeoutError):
        segment(served, photo, model="coins", timeout_s=1.5)
    answers.set()
    # Where the machine stood still meanwhile it was not even asked for once.
    assert served.gateway.inferences <= 1


def test_an_answer_that_trickles_in_is_given_up_at_the_deadline(
    gateway: Gateway, photo: bytes, segment: Segment
) -> None:
    from .conftest import Served

    gateway.faults.append(Fault(trickle_s=0.02))

    with gateway.http() as url, pytest.raises(RequestTimeoutError):
        segment(Served(gateway, url, "http"), photo, model="coins", timeout_s=0.5)


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"{}", b"", b'{"outputs":[]}'], ids=["a page", "an object", "nothing", "no outputs"]
)
def test_an_answer_that_is_not_one_is_a_protocol_error_and_not_asked_for_again(
    gateway: Gateway, photo: bytes, body: bytes
) -> None:
    gateway.faults.append(Fault(body=body))

    with gateway.http() as url, Client(url) as client, pytest.raises(ProtocolError) as caught:
        client.segment(photo, model="coins")

    assert caught.value.model == "coins"
    assert gateway.inferences == 1


def test_a_models_configuration_is_asked_for_once(served: Served, photo: bytes) -> None:
    with Client(served.url, transport=served.transport) as client:
        for _ in range(3):
            client.segment(photo, model="coins")

    assert served.gateway.config_requests == 1


def test_classes_follow_the_revision_that_answers(served: Served, photo: bytes) -> None:
    with Client(served.url, transport=served.transport) as client:
        client.segment(photo, model="coins")
        changed = '[{"id":0,"name":"background"},{"id":1,"name":"euro"}]'
        served.gateway.models["coins"] = Model(
            SEMANTIC,
            {"revision": "coins-dddddddddd", "classes": changed},
            lambda asked: semantic_answer(asked) | {"REVISION": items(b"coins-dddddddddd")},
        )
        result = client.segment(photo, model="coins")

    assert isinstance(result, SemanticResult)
    assert result.areas.keys() == {"background", "euro"}


def test_a_candidate_that_does_not_tell_its_configuration_is_called_by_stables_names(
    served: Served, photo: bytes
) -> None:
    served.gateway.models["coins"] = Model(
        SEMANTIC,
        parameters("coins-aaaaaaaaaa"),
        lambda asked: semantic_answer(asked) | {"REVISION": items(b"coins-ee")},
    )
    with Client(served.url, transport=served.transport) as client:
        results = [client.segment(photo, model="coins") for _ in range(5)]

    assert {(result.revision, result.classes[1].name) for result in results} == {("coins-ee", "coin")}
    assert served.gateway.config_requests == 2


def test_a_name_that_goes_to_a_model_with_other_outputs_is_asked_about_again_after_one_error(
    gateway: Gateway, photo: bytes
) -> None:
    with gateway.http() as url, Client(url) as client:
        client.segment(photo, model="coins")
        gateway.models["coins"] = Model(gateway.models["discs"].outputs, parameters("coins-ff"), instance_answer)
        gateway.faults.append(Fault(http=400, message="unexpected inference output 'LABELS' for model 'coins'"))
        with pytest.raises(BadRequestError, match="LABELS"):
            client.segment(photo, model="coins")

        assert isinstance(client.segment(photo, model="coins"), InstanceResult)


FLAG_MODEL = [*SEMANTIC, "OUT_OF_DISTRIBUTION"]


def revision_answer(name: str) -> Callable[[Asked], Arrays]:
    """Return the answers of a revision, which flags no image; it has the score if the name ends in `flag`."""

    def answer(asked: Asked) -> Arrays:
        score = {"OUT_OF_DISTRIBUTION": np.array([0.1, 0.5], np.float32)} if name.endswith("flag") else {}
        return semantic_answer(asked) | score | {"REVISION": items(name.encode())}

    return answer


def test_while_a_revision_without_scores_of_images_rolls_out_no_call_fails_and_later_ones_have_them_again(
    served: Served, photo: bytes
) -> None:
    names = {"coins-flag": FLAG_MODEL, "coins-plain": SEMANTIC}
    revisions = {name: Model(outputs, parameters(name), revision_answer(name)) for name, outputs in names.items()}
    told = []
    with Client(served.url, transport=served.transport) as client:
        for name in ("flag", "flag", "plain", "plain", "flag", "flag", "plain", "flag", "flag"):
            served.gateway.models["coins"] = revisions[f"coins-{name}"]
            told.append(client.segment(photo, model="coins").out_of_distribution is not None)

    assert told == [True, True, False, False, False, True, False, False, True]


def test_model_info_tells_revision_and_classes(served: Served) -> None:
    with Client(served.url, transport=served.transport) as client:
        info = client.model_info("coins")

    assert (info.revision, [known.name for known in info.classes]) == ("coins-aaaaaaaaaa", ["background", "coin"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Client("ftp://host"), "'ftp://host'", id="another scheme"),
        pytest.param(lambda: Client("http://host:port"), "'http://host:port'", id="a port that is no number"),
        pytest.param(lambda: Client("http://"), "'http://'", id="no host"),
        pytest.param(lambda: Client("http://a..b"), r"'http://a\.\.b'", id="a host that cannot be looked up"),
        pytest.param(lambda: Client(transport="udp"), "'udp'", id="another transport"),  # type: ignore[arg-type]
        pytest.param(lambda: Client("http://h/prefix", transport="grpc"), "path prefix", id="a path with gRPC"),
        pytest.param(lambda: Client(timeout_s=0), "timeout_s", id="no time"),
        pytest.param(lambda: Client(retries=-1), "retries", id="negative retries"),
    ],
)
def test_a_client_that_cannot_work_says_why(make: Callable[[], Client], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        make()


def test_an_encoding_that_does_not_exist_is_refused_before_anything_is_sent(gateway: Gateway, photo: bytes) -> None:
    with gateway.http() as url, Client(url) as client, pytest.raises(BadRequestError, match=r"rle, polygons.*'bmp'"):
        client.segment(photo, model="coins", encoding="bmp")  # type: ignore[arg-type]
    assert gateway.inferences == 0


def test_the_url_comes_from_the_environment(gateway: Gateway, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with gateway.http() as url:
        monkeypatch.setenv("SEGSERVE_URL", url.removeprefix("http://"))
        with Client() as client:
            assert client.segment(photo, model="coins").model == "coins"


@pytest.mark.parametrize("path", ["", "/", "/v2", "/v2/models/coins", "/v2/models/coins/", "/v1/models"])
def test_the_url_of_a_model_is_that_of_its_gateway(path: str) -> None:
    assert GatewayEndpoint.parse(f"http://gateway/prefix{path}").url == "http://gateway:80/prefix"


def test_a_proxy_of_the_environment_does_not_come_between_the_client_and_its_own_machine(
    served: Served, photo: bytes, monkeypatch: pytest.MonkeyPatch, segment: Segment
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert segment(served, photo, model="coins").model == "coins"


def test_grpc_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "segserve.transports.grpc", None)
    monkeypatch.delattr("segserve.transports.grpc", raising=False)

    with pytest.raises(MissingExtraError, match=r"pip install 'segserve\[grpc\]'"):
        Client(transport="grpc")
