"""Our custom resources on a real API server: what it refuses, fills in, keeps, shows and scales.

They are in an API group of these tests alone, so that they can be removed while others are served.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fakes.cluster import Cluster
from fakes.crd_api import CrdApi, Json, RefusedError, load
from fakes.rollout_evidence import record, same
from fakes.waiting import until
from segserve_operator.mapping.rollouts import manifest_of, record_of, status_of

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[3]
GROUP = "crds.segserve.test"
API_VERSION = f"{GROUP}/v1alpha1"
MODELS, POOLS, ROLLOUTS = "segmentationmodels", "tritonpools", "segmentationrollouts"
EXAMPLES = [
    {**manifest, "apiVersion": API_VERSION}
    for path in (ROOT / "examples/coins/model.yaml", *sorted((ROOT / "examples/zoo").glob("*.yaml")))
    for manifest in load(path)
]


def present(plural: str) -> Json:
    """The custom resource as it is now."""
    return definition_of(ROOT / f"crds/segserve.dev_{plural}.yaml")


def definition_of(path: Path) -> Json:
    """The custom resource of a file, in the group of these tests."""
    (definition,) = load(path)
    definition["spec"]["group"] = GROUP
    definition["metadata"]["name"] = f"{definition['spec']['names']['plural']}.{GROUP}"
    return definition


def cut_down(definition: Json, *fields: str) -> Json:
    """A custom resource of a time when its spec had some fields less."""
    older = copy.deepcopy(definition)
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for field in fields:
        del spec["properties"][field]
    return older


def model(name: str = "seg", **spec: object) -> Json:
    """The least that a model needs, and what a test adds or puts in its place."""
    least = {
        "artifact": {"uri": "model.onnx", "sha256": "0" * 64},
        "family": "semantic-logits",
        "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "thing"}],
        "postprocess": [{"argmax": {}}],
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "SegmentationModel",
        "metadata": {"name": name},
        "spec": {**least, **spec},
    }


def pool(name: str = "default", **spec: object) -> Json:
    """A pool; nothing has to be said of it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "TritonPool",
        "metadata": {"name": name},
        "spec": spec,
    }


def rollout(name: str = "seg-2f6c1f0a00-6553f100", **spec: object) -> Json:
    """The record of a rollout, as the operator creates it."""
    least = {"model": "seg", "stable": "seg-1", "candidate": "seg-2"}
    return {
        "apiVersion": API_VERSION,
        "kind": "SegmentationRollout",
        "metadata": {"name": name},
        "spec": {**least, **spec},
    }


def read_once_it_has(api: CrdApi, plural: str, name: str, field: str) -> Json:
    """Read an object with the schema that knows a field: a server takes up a new one within a moment."""

    def look() -> Json | None:
        found = api.get(plural, name)
        return found if field in found["spec"] else None

    return until(look, f"{plural} {name} has {field}") or {}


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[CrdApi]:
    """A server with the present custom resources."""
    api = CrdApi(cluster.kubeconfig, API_VERSION)
    for plural in (MODELS, POOLS, ROLLOUTS):
        api.install(present(plural))
    yield api
    for plural in (MODELS, POOLS, ROLLOUTS):
        api.uninstall(f"{plural}.{GROUP}")
    api.close()


@pytest.fixture
def api(installed: CrdApi) -> Iterator[CrdApi]:
    """A server with the present custom resources and no objects."""
    yield installed
    for plural in (MODELS, POOLS, ROLLOUTS):
        installed.delete_all(plural)


@pytest.mark.parametrize("manifest", EXAMPLES, ids=lambda manifest: manifest["metadata"]["name"])
def test_an_example_is_accepted_as_it_is_written(api: CrdApi, manifest: Json) -> None:
    plural = POOLS if manifest["kind"] == "TritonPool" else MODELS

    stored = api.create(plural, manifest, dry_run=True)

    assert stored["spec"]["artifact"]["sha256"] == manifest["spec"]["artifact"]["sha256"]


def test_what_is_left_out_gets_its_documented_default(api: CrdApi) -> None:
    stored = api.create(MODELS, model())["spec"]

    assert stored["pool"] == "default"
    assert stored["keepPrevious"] == "1h"
    assert stored["allowClassChanges"] is False
    assert stored["input"]["colour"] == "RGB"

    gateway = api.create(POOLS, pool())["spec"]["gateway"]

    assert (gateway["port"], gateway["requestTimeoutSeconds"]) == (8080, 60)


def test_what_a_rollout_is_about_stays(api: CrdApi) -> None:
    name = rollout()["metadata"]["name"]
    api.create(ROLLOUTS, rollout(policy={"gates": [{"gate": "promql", "name": "load", "address": "http://p:9090",
                                                     "query": "up", "min": 0.5}]}))  # fmt: skip

    for change in ({"candidate": "seg-3"}, {"policy": {"alpha": 0.05}}):
        with pytest.raises(RefusedError, match="the spec of a rollout is immutable"):
            api.patch(ROLLOUTS, name, {"spec": change})


def test_a_record_is_stored_to_the_last_bit(api: CrdApi) -> None:
    """As the operator writes it: the numbers go through the API server's JSON."""
    written = record()
    name = written.name
    api.create(ROLLOUTS, {**manifest_of(written), "apiVersion": API_VERSION})
    api.patch(ROLLOUTS, name, {"status": status_of(written, datetime.now(UTC))}, subresource="status")

    stored = api.get(ROLLOUTS, name) | {"apiVersion": manifest_of(written)["apiVersion"]}
    assert same(record_of(stored, ()), written)
    table = api.table(ROLLOUTS)
    names = [column["name"] for column in table["columnDefinitions"]]
    shown = dict(zip(names, table["rows"][0]["cells"], strict=True))
    assert (shown["Model"], shown["Candidate"], shown["Phase"], shown["Weight"]) == (
        "coins", "coins-2", "Progressing", 25
    )  # fmt: skip


def test_a_model_stays_in_its_pool(api: CrdApi) -> None:
    api.create(MODELS, model(pool="one"))

    with pytest.raises(RefusedError, match="the pool of a model is immutable") as refused:
        api.patch(MODELS, "seg", {"spec": {"pool": "two"}})

    assert refused.value.code == 422
    assert api.get(MODELS, "seg")["spec"]["pool"] == "one"


@pytest.mark.parametrize(
    ("family", "accepted"),
    [
        pytest.param("semantic-logits", False, id="a family that counts its channels wants ids without gaps"),
        pytest.param("mask-rcnn", True, id="a family whose network names its labels takes any"),
    ],
)
def test_the_family_decides_which_class_ids_are_allowed(api: CrdApi, family: str, accepted: bool) -> None:
    gapped = model(family=family, classes=[{"id": 0, "name": "background"}, {"id": 7, "name": "thing"}])

    if accepted:
        assert api.create(MODELS, gapped)["spec"]["classes"][1]["id"] == 7
        return
    with pytest.raises(RefusedError, match="must count up from 0 without gaps") as refused:
        api.create(MODELS, gapped)
    assert refused.value.code == 422


@pytest.mark.parametrize(
    ("manifest", "code", "said"),
    [
        pytest.param(model(pol="default"), 400, 'unknown field "spec.pol"', id="misspelt field"),
        pytest.param(model(postprocess=[{}]), 422, "exactly one stage must be set", id="no stage"),
        pytest.param(
            model(artifact={"uri": "model.onnx", "sha256": "0" * 63}), 422, "spec.artifact.sha256", id="short digest"
        ),
        pytest.param(
            model(artifact={"uri": "gopher://x/y", "sha256": "0" * 64}),
            422,
            "unknown scheme; allowed: az:, file:",
            id="an artifact that no source reads",
        ),
        pytest.param(model(rollout={"steps": []}), 422, "at least one step", id="a canary without steps"),
        pytest.param(model("two--parts"), 422, "metadata.name", id="name that would clash with those of steps"),
        pytest.param(model("m" * 41), 422, "metadata.name", id="name of 41 characters"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_with_the_field_named(
    api: CrdApi, manifest: Json, code: int, said: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        api.create(MODELS, manifest)

    assert refused.value.code == code
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        pytest.param({"replica": 2}, 400, 'unknown field "spec.replica"', id="misspelt field"),
        pytest.param(
            {"artifacts": {"endpoints": {"pvc": "http://a"}}}, 422, "for the schemes az, gs", id="a server of no scheme"
        ),
        pytest.param(
            {"artifacts": {"credentials": [{"scheme": "s3", "secretRef": {"name": "a", "namespace": "b"}}]}},
            400,
            "namespace",
            id="a Secret of another namespace",
        ),
        pytest.param({"update": {"maxSurge": 0}}, 422, "must be positive", id="an update without a step"),
    ],
)
def test_a_pool_that_cannot_be_run_is_refused_with_the_field_named(
    api: CrdApi, spec: Json, code: int, said: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        api.create(POOLS, pool(**spec))

    assert refused.value.code == code
    assert said in str(refused.value)


def test_an_upgrade_keeps_the_models_and_pools_that_are_stored(api: CrdApi) -> None:
    first = definition_of(ROOT / "tests/golden/crds/first_tritonpools.yaml")
    for definition in (first, cut_down(present(MODELS), "keepPrevious", "allowClassChanges", "expose")):
        api.uninstall(definition["metadata"]["name"])
        api.install(definition)
    api.create(POOLS, pool(gateway={"port": 9000}))
    before = api.create(MODELS, model())
    assert "keepPrevious" not in before["spec"]

    for plural in (MODELS, POOLS):
        api.install(present(plural))

    after = read_once_it_has(api, MODELS, "seg", "keepPrevious")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert before["spec"].items() <= after["spec"].items()
    assert after["spec"]["keepPrevious"] == "1h"
    upgraded = read_once_it_has(api, POOLS, "default", "replicas")
    assert upgraded["spec"]["gateway"]["port"] == 9000
    assert upgraded["spec"]["replicas"] == 1
    assert api.patch(MODELS, "seg", {"spec": {"keepPrevious": "2h"}})["spec"]["keepPrevious"] == "2h"
