"""Two pools and five models on a real cluster: they answer as they do on one machine, and go on while they change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from bench.coins import write
from bench.platform import platform
from fakes.callers import PHOTO
from fakes.cluster_models import SERVED as POOLS
from fakes.cluster_models import model, on_this_machine, smallest
from fakes.served_namespace import POOL, ServedNamespace
from raw_inference import PROTOCOLS, RawRequest, image, send
from segserve import Client
from segserve_builder.spec.names import STEP_PREFIX
from segserve_common.kube.names import RUN_FOLDER, SHARDS, object_name, plan_name
from segserve_common.kube.shards import shard_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LIBRARIES = {"http": tritonclient.http, "grpc": tritonclient.grpc}
GROUP = "x-segserve-group"
QUIET_LOOKS = 20
"""Looks of `Cluster.wait` without a write: longer than a server takes to report on what it was told."""

Answers = dict[tuple[str, str, str], Any]


def plain(library: Any, url: str, name: str, **options: Any) -> dict[str, Any]:
    """Ask as Triton's own documentation says."""
    with library.InferenceServerClient(url.removeprefix("http://")) as client:
        tensor = library.InferInput("IMAGE", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([PHOTO], dtype=object))
        answer = client.infer(name, [tensor], **options)
        outputs = client.get_model_metadata(name)
        names = (
            [o["name"] for o in outputs["outputs"]] if isinstance(outputs, dict) else [o.name for o in outputs.outputs]
        )
        return {output: answer.as_numpy(output).tolist() for output in names}


def ask(url: str, name: str) -> Answers:
    """Return what a model answers to the photograph, by client, protocol and encoding, comparable with ==."""
    answers: Answers = {}
    for protocol in PROTOCOLS:
        answers["tritonclient", protocol, ""] = plain(LIBRARIES[protocol], url, name)
        with Client(url, transport=protocol) as client:
            for encoding in ("rle", "png"):
                result = client.segment(PHOTO, model=name, encoding=encoding)
                answers["segserve", protocol, encoding] = (result.revision, result.to_coco())
    return answers


@dataclass(frozen=True)
class Local:
    """What the local platform answers with the same files, and the steps that do so."""

    answers: dict[str, Answers]
    steps: set[str]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """The local platform's answers and steps; it is ended before the cluster is asked."""
    file = write(tmp_path_factory.mktemp("models") / "models.yaml", *(on_this_machine(model(name)) for name in POOLS))
    with platform(file) as running:
        answers = {name: ask(running.url, name) for name in POOLS}
        found = running.state.glob(f"groups/*/repository/{STEP_PREFIX}*")
        return Local(answers, {path.name for path in found})


@pytest.fixture
def coins(served: ServedNamespace) -> Iterator[str]:
    """The model coins at rest with its own revision; it is brought back to that."""
    served.wait_ready("coins")
    yield served.stable("coins")
    served.apply(model(keepPrevious="0s"))
    served.wait_ready("coins")


@pytest.mark.parametrize("name", POOLS)
def test_every_client_gets_the_answers_of_the_local_platform(served: ServedNamespace, local: Local, name: str) -> None:
    found = ask(served.url(POOLS[name]), name)

    assert found == local.answers[name]


def test_servers_without_a_gpu_have_the_steps_of_the_local_platform(served: ServedNamespace, local: Local) -> None:
    found = set()
    for pool in set(POOLS.values()):
        server = f"deployment/{object_name(pool, served.main(pool))}"
        listed = ("exec", server, "-c", "triton", "--", "ls", f"{RUN_FOLDER}/repository")
        names = served.cluster.kubectl("-n", served.name, *listed).split()
        found |= {name for name in names if name.startswith(STEP_PREFIX)}

    assert found == local.steps


def test_kubectl_shows_that_a_model_is_ready_and_where_it_answers(served: ServedNamespace) -> None:
    lines = served.cluster.kubectl("-n", served.name, "get", "segm").splitlines()

    shown = {line.split()[0]: line.split()[1:] for line in lines}
    assert shown["NAME"][:2] == ["READY", "STABLE"]
    for name, in_pool in POOLS.items():
        url = f"http://segserve-{in_pool}.{served.name}.svc.cluster.local:8080/v2/models/{name}"
        assert shown[name][0] == "True"
        assert url in shown[name]


def test_kubectl_scale_changes_how_many_servers_answer_and_no_request_fails(served: ServedNamespace) -> None:
    main = served.main()

    def scale(count: int) -> None:
        served.cluster.kubectl("-n", served.name, "scale", f"{POOL}/default", f"--replicas={count}")
        served.cluster.wait(f"{count} servers get requests", lambda: len(endpoints(served, "coins", main)) == count)
        served.cluster.wait(
            f"the pool has {count} servers", lambda: (served.get(POOL, "default") or {})["status"]["replicas"] == count
        )

    with served.load():
        scale(1)
        scale(2)


def endpoints(served: ServedNamespace, name: str, group: str) -> list[Any]:
    told = served.packed(plan_name(POOLS[name], shard_of(name)))
    shares = next(route["shares"] for route in told["routes"] if route["model"] == name)
    return [end for share in shares if share["group"] == group for end in told["lists"][share["endpoints"]]]


def test_an_edit_is_proved_apart_takes_over_goes_back_in_one_write_and_settles_and_no_request_fails(
    served: ServedNamespace, coins: str
) -> None:
    main = served.main()
    with served.load() as load:
        served.apply(model(postprocess=smallest(151)))
        candidate, group = served.cluster.wait("a candidate", lambda: served.role("coins", "candidate"))
        assert group not in ("", main)
        served.cluster.wait("it takes over", lambda: served.role("coins", "stable") == (candidate, group), 90)
        assert served.role("coins", "previous") == (coins, main)
        served.becomes("coins", "Ready", "True", "Serving")
        load.wait_for(candidate)
        check_groups_answer_apart(served, {main: coins, group: candidate})

        # Back: what was kept still answers, so that it takes one write to the gateways and one to the model.
        before, plans = rest(served), plan_versions(served)
        served.apply(model())
        load.wait_for(coins)
        served.becomes("coins", "Ready", "True", "Serving")
        assert served.role("coins", "stable") == (coins, main)
        changed = [shard for shard, version in plan_versions(served).items() if version != plans[shard]]
        assert changed == [plan_name("default", shard_of("coins"))]
        writes = served.writes_of(before)
        assert writes.pop(("apply", "ConfigMap")) == 1
        # The revisions' roles are noted beside their records, for a restore.
        notes = ("patch", "ControllerRevision")
        assert set(writes) <= {("status", "SegmentationModel"), ("status", "TritonPool"), notes}

        # Forth again as quickly; then the old one is let go, and the new one moves into main.
        served.apply(model(postprocess=smallest(151), keepPrevious="3s"))
        load.wait_for(candidate)
        served.wait_ready("coins")
        assert served.role("coins", "stable") == (candidate, main)
        served.cluster.wait("the candidate's group is gone", lambda: served.groups() == {main})
        load.wait_for(candidate)
    assert set(load.answers) == {coins, candidate}


def rest(served: ServedNamespace) -> Any:
    """Wait until the operator writes nothing any more, and return what it has written."""
    seen: list[Any] = []

    def quiet() -> bool:
        seen.append(served.operator.writes())
        return len(seen) > QUIET_LOOKS and all(each == seen[-1] for each in seen[-QUIET_LOOKS:])

    served.cluster.wait("the operator rests", quiet)
    return seen[-1]


def plan_versions(served: ServedNamespace) -> dict[str, str]:
    names = [plan_name("default", shard) for shard in range(SHARDS)]
    return {name: (served.get("configmap", name) or {})["metadata"]["resourceVersion"] for name in names}


def check_groups_answer_apart(served: ServedNamespace, revisions: dict[str, str]) -> None:
    """Ask each gateway's internal listener for each group, whatever weight that has."""
    for url in served.internal_urls():
        for group, revision in revisions.items():
            for protocol in PROTOCOLS:
                reply = send(url, protocol, RawRequest([image(PHOTO)], model="coins"), {GROUP: group})
                assert reply.arrays()["REVISION"] == (revision.encode(),), (group, reply)
