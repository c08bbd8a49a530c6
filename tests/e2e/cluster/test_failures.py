"""What cannot be served says why and harms nobody, and the corrected spec heals it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from fakes.callers import Load
from fakes.cluster_models import EXAMPLES, SERVED, default_pool, model, smallest
from fakes.served_namespace import POOL, ServedNamespace

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_WRONG: Final = "0" * 64


def another_network(name: str, uri: str) -> dict[str, str]:
    """Return a file of the examples with its true digest."""
    return {"uri": uri, "sha256": hashlib.sha256((EXAMPLES / name / uri).read_bytes()).hexdigest()}


def artifact(like: str, **changed: str) -> dict[str, Any]:
    found: dict[str, Any] = model(like)["spec"]["artifact"] | changed
    return found


NETWORKS = {
    "a wrong sha256": (
        "zoo-unet",
        {"artifact": artifact("zoo-unet", sha256=_WRONG)},
        ("ArtifactVerified", "DigestMismatch"),
        r"sha256 of http:\S+/weights/unet\.onnx is another; the resource says 0{64}",
    ),
    "a missing artifact": (
        "zoo-maskformer",
        {"artifact": artifact("zoo-maskformer", uri="weights/absent.onnx")},
        ("ArtifactVerified", "ArtifactMissing"),
        r"absent\.onnx",
    ),
    "a network of other outputs": (
        "coins-instances",
        {"artifact": another_network("coins", "coins-unet.onnx")},
        ("ArtifactVerified", "SignatureMismatch"),
        r"output",
    ),
    "a golden answer that the network does not give": (
        "coins",
        {"postprocess": smallest(100_000)},
        ("GoldenPassed", "GoldenFailed"),
        r"coins\.png: .*",
    ),
}
HEALED: Final[dict[str, dict[str, Any]]] = {
    "zoo-unet": {"postprocess": [{"argmax": {}}, {"removeSmallRegions": {"minArea": 2}}]},
    "zoo-maskformer": {"postprocess": [{"instanceQueries": {"threshold": 0.2}}]},
    "coins-instances": {"postprocess": [{"scoreThreshold": {"threshold": 0.49}}, {"nms": {}}, {"cropMasks": {}}]},
    "coins": {"postprocess": smallest(152)},
}


def edited(name: str, **spec: Any) -> dict[str, Any]:
    return model(name, pool=SERVED[name], keepPrevious="0s", **spec)


@pytest.fixture(scope="module")
def broken(served: ServedNamespace) -> Iterator[dict[str, str]]:
    """Four models, each with a change that cannot be served, by their stable revisions; all heal in the end."""
    served.apply(default_pool(replicas=1))
    served.wait_ready(*SERVED)
    names = [name for name, *_ in NETWORKS.values()]
    stable = {name: served.stable(name) for name in names}
    served.apply(*(edited(name, **{**HEALED[name], **wrong}) for name, wrong, _, _ in NETWORKS.values()))
    yield stable
    served.apply(default_pool(), *(edited(name) for name in names))
    served.wait_ready(*SERVED)


@pytest.fixture(scope="module")
def load(served: ServedNamespace, broken: dict[str, str]) -> Iterator[Load]:
    """Clients of a model while its change and others' fail; none of their requests may."""
    with served.load(pause_s=1.0) as load:
        yield load
        assert set(load.answers) == {broken["coins"]}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_change_that_cannot_be_served_says_why_and_what_was_served_goes_on(
    served: ServedNamespace, broken: dict[str, str], load: Load, case: str
) -> None:
    name, _, (kind, reason), message = NETWORKS[case]
    served.cluster.wait(f"a server was told of {name}", lambda: is_proved_somewhere(served, name))

    said = served.becomes(name, kind, "False", reason)

    assert re.search(message, said["message"]), said
    degraded = served.becomes(name, "Degraded", "True", reason)
    assert degraded["message"] == said["message"]
    assert served.becomes(name, "Ready", "True")["reason"] == "Serving"
    assert served.stable(name) == broken[name]
    # A status is written before the event that tells of it.
    told = served.cluster.wait("an event tells it", lambda: events_of(served, name, reason))
    assert {event["type"] for event in told} == {"Warning"}
    assert load.failures == []


def events_of(served: ServedNamespace, name: str, reason: str) -> list[dict[str, Any]]:
    events = served.cluster.get(served.name, "events")
    return [event for event in events if event["involvedObject"]["name"] == name and event["reason"] == reason]


def is_proved_somewhere(served: ServedNamespace, name: str) -> bool:
    """Tell whether the candidate's server runs, or it is known already that it is in vain."""
    candidate = served.status(name).get("roles", {}).get("candidate", {})
    if candidate.get("state") == "Failed":
        return True
    pods = served.cluster.pods(served.name, f"segserve.dev/group={candidate.get('group', 'none')}")
    containers = [each for pod in pods for each in pod["status"].get("containerStatuses", [])]
    return any(each["name"] == "triton" and each["ready"] for each in containers)


def test_the_corrected_specs_are_served(served: ServedNamespace, broken: dict[str, str], load: Load) -> None:
    served.apply(*(edited(name, **HEALED[name]) for name in broken if name != "coins"))

    served.wait_ready(*(name for name in broken if name != "coins"))

    for name, stable in broken.items():
        assert (served.stable(name) == stable) is (name == "coins")
    served.cluster.wait("the shared group is gone", lambda: served.groups("second") == {served.main("second")})
    assert load.failures == []


def test_an_image_that_cannot_be_pulled_is_said_of_the_pool_and_the_former_servers_go_on(
    served: ServedNamespace, load: Load
) -> None:
    main = served.main("second")
    absent = {"image": "localhost:1/absent:1", "version": "24.10"}
    good = served.get(POOL, "second")
    assert good is not None
    with ExitStack() as stack:
        stack.callback(served.patch, POOL, "second", {"spec": {"server": {"image": None, "version": None}}})
        served.patch(POOL, "second", {"spec": {"server": absent}})
        served.cluster.wait("servers of another template", lambda: len(served.groups("second")) > 1)
        assert served.main("second") == main
        said = served.cluster.wait_condition(served.name, POOL, "second", "Degraded")
        assert said["reason"] in ("ErrImagePull", "ImagePullBackOff")
        assert "localhost:1/absent:1" in said["message"]
        assert served.becomes("zoo-unet", "Ready", "True")["reason"] == "Serving"
    served.cluster.wait("the former servers are the pool's again", lambda: served.groups("second") == {main})
    served.cluster.wait_condition(served.name, POOL, "second", "Degraded", "False")
    served.cluster.wait_condition(served.name, POOL, "second", "Ready")
    served.wait_ready("zoo-unet", "zoo-maskformer")


def test_a_quota_that_is_exceeded_is_said_of_the_model_and_its_end_heals_it(served: ServedNamespace) -> None:
    served.cluster.wait("there is no other group", lambda: served.groups("second") == {served.main("second")})
    stable = served.stable("zoo-unet")
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}}}
    with ExitStack() as stack:
        stack.callback(served.delete, "resourcequota", "few")
        served.apply(quota)
        served.cluster.wait(
            "the quota counts", lambda: (served.get("resourcequota", "few") or {}).get("status", {}).get("used")
        )
        served.apply(edited("zoo-unet", postprocess=[{"argmax": {}}, {"removeSmallRegions": {"minArea": 3}}]))
        said = served.becomes("zoo-unet", "Degraded", "True", "QuotaExceeded")
        # Candidates of this pool share a group: its state is told once, in the pool's status.
        assert "the pool's conditions describe" in said["message"]
        of_pool = served.cluster.wait_condition(served.name, POOL, "second", "Degraded")
        assert "exceeded quota: few" in of_pool["message"]
        assert served.becomes("zoo-unet", "Ready", "True")["reason"] == "Serving"
        assert served.stable("zoo-unet") == stable
    served.wait_ready("zoo-unet")
    assert served.stable("zoo-unet") != stable
