"""Resources on a cluster: applied as written, all or none, and what a server refuses is said with what helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.kube_http import FakeServer, refusal
from segserve_platform.cli.resources import change_lines, model_description
from segserve_platform.platforms.errors import (
    ControlError,
    ForbiddenError,
    NotFoundError,
    NotInstalledError,
    PlatformUnreachableError,
)
from segserve_platform.platforms.manifests import read_file
from segserve_platform.platforms.port import MODEL, POOL

from .conftest import MODELS, POOLS, model, pod, pool

COINS = Path(__file__).parents[4] / "examples/coins/model.yaml"
PATH = "/apis/segserve.dev/v1alpha1/namespaces/lab/segmentationmodels"


def test_models_are_applied_as_they_are_written(server: FakeServer) -> None:
    outcomes = server.platform().apply(read_file(COINS))

    assert outcomes == ["created"] * 3
    path, body = server.sent("PATCH")[-3]
    assert path == f"{PATH}/coins"
    assert body["metadata"] == {"name": "coins", "namespace": "lab"}
    assert body["spec"]["artifact"]["uri"] == "coins-unet.onnx"
    assert "keepPrevious" not in body["spec"]


def test_nothing_is_applied_where_the_server_refuses_one(server: FakeServer) -> None:
    causes = [
        {"field": "spec.input.maxPixels", "message": "must be less"},
        {"field": "spec.pool", "message": "is fixed"},
    ]
    server.answers["PATCH", f"{PATH}/coins-twostage"] = lambda _: refusal(422, "is invalid", name="x", causes=causes)

    with pytest.raises(ControlError) as caught:
        server.platform().apply(read_file(COINS))

    assert str(caught.value) == (
        "segmentationmodel/coins-twostage: rejected by the API server: "
        "spec.input.maxPixels: must be less; spec.pool: is fixed"
    )
    assert server.platform().models() == []


def test_what_is_applied_again_is_unchanged_whatever_the_operator_writes(server: FakeServer, tmp_path: Path) -> None:
    here = server.platform()
    here.apply(read_file(COINS))
    server.objects[f"{PATH}/coins"]["status"] = {"weight": 100}
    server.objects[f"{PATH}/coins"]["metadata"]["resourceVersion"] = "77"
    edited = tmp_path / "model.yaml"
    edited.write_text(COINS.read_text().replace("minArea: 150", "minArea: 160"))

    assert set(here.apply(read_file(COINS))) == {"unchanged"}
    assert here.apply(read_file(edited))[0] == "configured"


def test_a_dry_run_asks_the_server_what_would_change_and_stores_nothing(server: FakeServer, tmp_path: Path) -> None:
    here = server.platform()
    first = here.preview(read_file(COINS))
    stored_by_dry_run = here.models()
    here.apply(read_file(COINS))
    edited = tmp_path / "model.yaml"
    edited.write_text(COINS.read_text().replace("minArea: 150", "minArea: 160"))

    changes = here.preview(read_file(edited))

    assert [change.outcome for change in first] == ["created"] * 3
    assert stored_by_dry_run == []
    assert [change.outcome for change in changes] == ["configured", "unchanged", "unchanged"]
    assert [*change_lines(read_file(edited)[0], changes[0], {}, {})][1:] == [
        "  ~ spec.postprocess[1].removeSmallRegions.minArea: 150 -> 160"
    ]
    assert here.preview(read_file(COINS))[0].outcome == "unchanged"


def test_a_conflict_names_who_else_set_the_field_and_force_takes_it_over(server: FakeServer) -> None:
    causes = [{"reason": "FieldManagerConflict", "field": ".spec.golden", "message": 'conflict with "helm"'}]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.params["force"] == "true":
            return httpx.Response(200, json={"metadata": {"name": "coins"}, "spec": {}})
        return refusal(409, "Apply failed", causes=causes)

    server.answers["PATCH", f"{PATH}/coins"] = answer

    with pytest.raises(ControlError, match=r'\.spec\.golden \(conflict with "helm"\).*--force-conflicts'):
        server.platform().apply(read_file(COINS))
    assert server.platform().apply(read_file(COINS), force=True)[0] == "created"


def test_a_namespace_in_the_file_wins_over_the_contexts_but_not_over_another_that_is_named(
    server: FakeServer, tmp_path: Path
) -> None:
    file = tmp_path / "pool.yaml"
    text = "apiVersion: segserve.dev/v1alpha1\nkind: TritonPool\nmetadata: {name: default, namespace: prod}\nspec: {}\n"
    file.write_text(text)

    server.platform().apply(read_file(file))

    assert server.sent("PATCH")[-1][0] == "/apis/segserve.dev/v1alpha1/namespaces/prod/tritonpools/default"
    with pytest.raises(ControlError, match="says namespace 'prod', --namespace says 'lab'"):
        server.platform(namespace="lab").apply(read_file(file))
    with pytest.raises(ControlError, match="says namespace 'prod'; add --namespace prod"):
        server.platform().check_namespace(read_file(file))


def test_deleting_names_the_kind_and_an_unknown_name_is_told_with_the_known(server: FakeServer) -> None:
    server.put(MODELS, model())
    server.put(POOLS, pool())
    here = server.platform()

    assert here.delete(MODEL, "coins") == "deleted"
    assert here.delete(POOL, "default") == "deleted"
    assert (here.models(), here.pools()) == ([], [])
    server.put(MODELS, model("roads"))
    with pytest.raises(NotFoundError, match="no SegmentationModel 'coins' in namespace 'lab'; there are: roads"):
        here.delete(MODEL, "coins")


REFUSALS: dict[str, tuple[Any, type[ControlError], str]] = {
    "no definitions": (httpx.Response(404, text="404 page not found"), NotInstalledError, "helm install segserve"),
    "no rights": (refusal(403, 'User "eve" cannot list'), ForbiddenError, 'User "eve" cannot list; ask .* `edit`'),
    "no credentials": (refusal(401, "Unauthorized"), ForbiddenError, "context 'test' are not accepted"),
    "no JSON": (httpx.Response(200, text="<html>"), PlatformUnreachableError, "'<html>', not JSON"),
    "a failure": (refusal(500, "etcd is full"), ControlError, "answered 500: etcd is full"),
}


@pytest.mark.parametrize("refused", REFUSALS)
def test_a_refusal_says_what_helps(server: FakeServer, refused: str) -> None:
    answer, kind, said = REFUSALS[refused]
    server.answers["GET", PATH] = lambda _: answer

    with pytest.raises(kind, match=said):
        server.platform().models()


def test_a_server_that_does_not_answer_is_named_with_its_context(server: FakeServer) -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    server.answers["GET", PATH] = silent

    with pytest.raises(
        PlatformUnreachableError,
        match=r"http://api\.test of context 'test' .*: connection refused; check that the cluster is up",
    ):
        server.platform().models()


def test_a_state_follows_the_servers_events_until_the_model_is_gone(server: FakeServer) -> None:
    events = [{"type": "MODIFIED", "object": model(weight=50)}, {"type": "DELETED", "object": model()}]
    stored = [model()]

    def answer(request: httpx.Request) -> httpx.Response:
        if "watch" not in request.url.params:
            return httpx.Response(200, json={"items": stored, "metadata": {"resourceVersion": "5"}})
        assert request.url.params["resourceVersion"] == "5"
        assert request.url.params["fieldSelector"] == "metadata.name=coins"
        stored.clear()
        return httpx.Response(200, text="\n".join(map(json.dumps, events)))

    server.answers["GET", PATH] = answer

    states = server.platform().states(MODEL, "coins")

    # How many of them are seen on the way is a matter of time.
    assert any(state is None for state in states)


def test_a_description_has_the_models_events_and_pods(server: FakeServer) -> None:
    server.put(MODELS, model())
    server.put("api/v1/pods", pod("main-1", "a"), pod("other", "b"))
    said = {"reason": "Promoted", "message": "it serves", "type": "Normal", "count": 3}
    said |= {"involvedObject": {"name": "coins", "uid": "u-coins"}, "lastTimestamp": "2026-01-01T00:00:00Z"}
    server.put("api/v1/events", {"metadata": {"name": "e"}, **said})

    text = model_description(server.platform(), "coins")

    assert "stable     coins-1111111111 in group main-1" in text
    assert "Promoted" in text
    assert "it serves (3 times)" in text
    assert "segserve-default--main-1-abc-a  ready" in text
    assert "other" not in text


def test_a_description_has_the_events_also_without_the_right_to_list_pods(server: FakeServer) -> None:
    server.put(MODELS, model())
    said = {"reason": "Promoted", "message": "it serves", "type": "Normal"}
    said |= {"involvedObject": {"name": "coins", "uid": "u-coins"}, "lastTimestamp": "2026-01-01T00:00:00Z"}
    server.put("api/v1/events", {"metadata": {"name": "e"}, **said})
    server.answers["GET", "/api/v1/namespaces/lab/pods"] = lambda _: refusal(403, 'User "eve" cannot list pods')

    text = model_description(server.platform(), "coins")

    assert "Promoted" in text
    assert 'User "eve" cannot list pods' in text
