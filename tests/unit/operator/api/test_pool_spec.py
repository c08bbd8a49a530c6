from __future__ import annotations

from typing import Any

import pytest
import trustme
import yaml
from pydantic import ValidationError

from fakes.pools import FULL, MINIMAL, labelled, pods_with
from segserve_builder.sources import SOURCES
from segserve_builder.spec.model_spec import SCHEMES, Artifact
from segserve_operator.api.loading import dump, load
from segserve_operator.api.triton_pool import TritonPool, TritonPoolSpec
from segserve_operator.mapping.specs import min_ready_of

AUTHORITY = trustme.CA().cert_pem.bytes().decode()


@pytest.mark.parametrize(
    ("tracing", "url"),
    [
        ({"endpoint": "http://collector:4318"}, "http://collector:4318/v1/traces"),
        ({"endpoint": "https://collector", "caBundle": AUTHORITY}, None),
        ({"endpoint": "https://collector", "serverEndpoint": "http://local/otlp/"}, "http://local/otlp/v1/traces"),
    ],
)
def test_tritons_spans_go_to_a_receiver_without_tls_or_nowhere(tracing: dict[str, str], url: str | None) -> None:
    told = TritonPoolSpec.model_validate({"gateway": {"tracing": tracing}}).gateway.tracing

    assert told is not None
    assert told.server_traces_url == url


def test_a_pool_that_says_nothing_is_whole() -> None:
    spec = TritonPoolSpec()

    assert (spec.replicas, spec.isolation, spec.gateway.port, spec.gateway.replicas) == (1, "own", 8080, 2)
    assert spec.server.cache.size == "20Gi"
    assert spec.server.shared_memory == "1Gi"


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_every_field_is_read_as_it_was_written(text: str) -> None:
    (pool,) = load(text, "pool.yaml")

    assert isinstance(pool, TritonPool)
    assert load(dump([pool]), "again.yaml") == [pool]


@pytest.mark.same
def test_the_full_pool_says_everything() -> None:
    """So that goldens of it hold every field: none has its default."""
    (pool,) = load(FULL, "pool.yaml")
    assert isinstance(pool, TritonPool)

    for part, default in (
        (pool.spec, TritonPoolSpec()),
        (pool.spec.server, TritonPoolSpec().server),
        (pool.spec.gateway, TritonPoolSpec().gateway),
        (pool.spec.artifacts, TritonPoolSpec().artifacts),
        (pool.spec.artifacts.signatures, TritonPoolSpec().artifacts.signatures),
    ):
        for name in type(part).model_fields:
            assert getattr(part, name) != getattr(default, name), name


@pytest.mark.parametrize(
    ("stated", "wanted", "least"),
    [
        *((None, wanted, least) for wanted, least in ((1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (10, 8), (20, 16))),
        (1, 3, 1),
        (2, 3, 2),
        (9, 3, 3),
        ("100%", 7, 7),
        ("1%", 7, 1),
        ("50%", 3, 2),
    ],
)
def test_as_many_servers_must_be_ready_as_the_pool_says(stated: int | str | None, wanted: int, least: int) -> None:
    spec = TritonPoolSpec.model_validate({} if stated is None else {"minReady": stated})

    assert min_ready_of(spec.min_ready).of(wanted) == least


def test_amounts_need_no_quotes() -> None:
    spec = TritonPoolSpec.model_validate({"server": {"resources": {"limits": {"nvidia.com/gpu": 1, "cpu": "2"}}}})

    assert spec.server.resources.limits == {"nvidia.com/gpu": "1", "cpu": "2"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        pytest.param({"server": {"image": "own:1"}}, "needs a version", id="an image without its release"),
        *(
            pytest.param({"minReady": bad}, "a whole number from 1 on, or a percentage from 1% to 100%", id=f"{bad!r}")
            for bad in (0, -1, True, 0.5, "0%", "101%", "2", "80 %")
        ),
        pytest.param({"server": {"cache": {}}}, "exactly one of size.*, got none", id="no cache"),
        pytest.param(
            {"server": {"cache": {"size": "1Gi", "hostPath": "/cache"}}}, "got size, hostPath", id="two caches"
        ),
        pytest.param({"server": {"cache": {"hostPath": "cache"}}}, "pattern", id="a folder that is relative"),
        pytest.param({"server": {"sharedMemory": "much"}}, "a quantity such as 2, 500m or 16Gi, got", id="words"),
        pytest.param({"server": {"sharedMemory": True}}, "a quantity", id="a truth instead of an amount"),
        pytest.param(
            {"server": pods_with({"agent": {"env": [{"name": "SEGSERVE_POOL"}]}})},
            "reserved for",
            id="a variable of ours",
        ),
        pytest.param(
            {"server": pods_with({"triton": {"env": [{"name": "A"}, {"name": "A"}]}})},
            "'A' is listed twice",
            id="a variable twice",
        ),
        pytest.param(
            {"gateway": pods_with({"envoy": {"env": [{"name": "A"}]}})}, "takes no variables", id="a variable of Envoy"
        ),
        pytest.param(
            {"server": pods_with({"tritn": {}})}, "did you mean 'triton'.*agent, tls, triton", id="an unknown container"
        ),
        pytest.param(
            {"server": pods_with({"triton": {"resources": {"limits": {"cpu": 1}}}})},
            "the resources of triton are server.resources",
            id="Triton's resources twice",
        ),
        pytest.param({"server": pods_with(volumes=[])}, "not permitted", id="a volume"),
        pytest.param({"server": pods_with({"agent": {"image": "mine"}})}, "not permitted", id="another image"),
        pytest.param(
            {"server": labelled({"a b": "c"})},
            "got 'a b'",
            id="a label's name with a space",
        ),
        pytest.param(
            {"gateway": labelled({"a": "b c"})},
            "got 'b c' for a",
            id="a label's value with a space",
        ),
        pytest.param({"server": pods_with(imagePullSecrets=[{"name": "No"}])}, "pattern", id="a secret that cannot be"),
        pytest.param({"server": {"version": "latest"}}, "pattern", id="a release that is none"),
        *(
            pytest.param({"gateway": {"tracing": {"endpoint": bad}}}, said, id=bad)
            for bad, said in (
                ("grpc://collector:4317", "pattern"),
                ("http://user:secret@collector", "pattern"),
                ("http://collector:65536", "from 1 to 65535, got 'http://collector:65536'"),
                ("http://collector:0", "from 1 to 65535"),
            )
        ),
        *(
            pytest.param({"gateway": {"tracing": {"endpoint": "https://collector", **bad}}}, said, id=said)
            for bad, said in (
                ({"serverEndpoint": "https://collector"}, "must begin with http://, as Triton has no option"),
                ({"serverEndpoint": "http://collector:0"}, "from 1 to 65535"),
                ({"caBundle": "none"}, "must be certificates as PEM"),
                ({"caBundle": ""}, "must be certificates as PEM, got none"),
            )
        ),
        pytest.param(
            {"gateway": {"tracing": {"endpoint": "http://collector", "caBundle": AUTHORITY}}},
            "caBundle is for an endpoint with https://, got 'http://collector'",
            id="authorities without TLS",
        ),
        pytest.param({"artifacts": {"base": "models/"}}, "pattern", id="a base that is no URI"),
        pytest.param({"artifacts": {"base": "gopher://x/"}}, "pattern", id="a base that no source reads"),
        pytest.param(
            {"artifacts": {"schemes": ["s4"]}}, "unknown scheme 's4'; known: az, file", id="a scheme that is none"
        ),
        pytest.param({"artifacts": {"endpoints": {"pvc": "http://a"}}}, "known: az, gs", id="a server of no scheme"),
        pytest.param({"artifacts": {"endpoints": {"s3": "minio:9000"}}}, "pattern", id="a server that is no URL"),
        pytest.param(
            {"artifacts": {"endpoints": {"s3": "http://key:secret@minio"}}}, "pattern", id="a secret in a server's URL"
        ),
        pytest.param(
            {"artifacts": {"credentials": [{"scheme": "s3", "secretRef": {"name": "a", "namespace": "other"}}]}},
            "not permitted",
            id="another namespace's secret",
        ),
        pytest.param(
            {"artifacts": {"credentials": [{"scheme": "pvc", "secretRef": {"name": "a"}}]}},
            "unknown scheme 'pvc'",
            id="credentials for files",
        ),
        pytest.param({"artifacts": {"claims": ["../x"]}}, "pattern", id="a claim that is a path"),
        pytest.param({"artifacts": {"claims": ["a", "a"]}}, "listed twice", id="a claim twice"),
        pytest.param({"artifacts": {"maxSize": "big"}}, "a quantity", id="a size in words"),
        pytest.param({"artifacts": {"signatures": {"keys": ["ssh-rsa AAAA"]}}}, "pattern", id="a key that is no PEM"),
        *(
            pytest.param({**beside, "scaling": {"maximum": 4, "target": {"concurrency": 2}, **bad}}, said, id=said)
            for beside, bad, said in (
                ({}, {"target": {}}, "exactly one of queueMilliseconds and concurrency must be set, got none"),
                ({}, {"target": {"concurrency": 2, "queueMilliseconds": 9}}, "must be set, got both"),
                ({}, {"target": {"gpuUtilization": 70}}, "not permitted"),
                ({}, {"target": {"concurrency": 0}}, "greater than 0"),
                ({}, {"minimum": 5}, "minimum must not be above maximum, got 5 and 4"),
                ({}, {"maximum": 0}, "greater than or equal to 1"),
                ({"replicas": 5}, {}, "replicas must not be above scaling.maximum, got 5 and 4"),
                (
                    {},
                    {"schedule": [{"start": "07:30", "duration": "1h", "minimum": 5}]},
                    "minimum of schedule must not be above maximum, got 5 and 4",
                ),
                ({}, {"scaleDownDelay": "0s"}, "must be longer than 0s"),
            )
        ),
        pytest.param({"replicas": 0}, "greater than or equal to 1", id="no servers"),
        pytest.param({"gateway": {"serviceType": "ExternalName"}}, "ClusterIP", id="a Service of another kind"),
        pytest.param({"notifications": [{}]}, "exactly one.*got none", id="nobody to tell"),
        pytest.param(
            {"notifications": [{"url": "http://a", "secretRef": {"name": "hooks", "key": "url"}}]},
            "exactly one.*got both",
            id="an address given twice",
        ),
        pytest.param({"notifications": [{"url": "mailto:a@b.c"}]}, "pattern", id="an address that is not of the web"),
        pytest.param({"server": {"nodeSelectr": {}}}, "not permitted", id="a misspelt field"),
    ],
)
def test_what_cannot_be_run_is_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TritonPoolSpec.model_validate(spec)


def test_what_is_wrong_is_said_with_its_place() -> None:
    value = yaml.safe_load(MINIMAL) | {"spec": {"server": {"resources": {"limits": {"memory": "lots"}}}}}

    with pytest.raises(Exception, match=r"spec\.server\.resources\.limits\.memory"):
        load(yaml.safe_dump(value), "pool.yaml")


@pytest.mark.same
def test_the_schemes_that_are_allowed_are_those_that_sources_read() -> None:
    assert set(SCHEMES) == set(SOURCES)


@pytest.mark.parametrize("uri", ["gopher://x/y", "s4://bucket/key", "C:models"])
def test_a_model_names_only_what_a_source_reads(uri: str) -> None:
    with pytest.raises(ValidationError, match=r"unknown scheme .*; allowed: az:, file:, .* or a relative path"):
        Artifact(uri=uri, sha256="0" * 64)


@pytest.mark.parametrize("uri", ["a/b:c.onnx", "models:/seg@prod", "S3://b/k", "/x.onnx", "x.onnx#m", "oci://r/a:1#m"])
def test_paths_and_known_schemes_are_read(uri: str) -> None:
    assert Artifact(uri=uri, sha256="0" * 64).uri == uri
