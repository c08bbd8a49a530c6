from __future__ import annotations

from typing import Any

import pytest
import trustme
import yaml
from pydantic import ValidationError

from fakes.cases import cases
from fakes.pools import FULL, MINIMAL, labelled, pods_with
from segserve_builder.sources import SOURCES
from segserve_builder.spec.model_spec import SCHEMES, Artifact
from segserve_operator.api.loading import dump, load
from segserve_operator.api.triton_pool import TritonPoolSpec
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

    assert told.server_traces_url == url


def test_a_pool_that_says_nothing_is_whole() -> None:
    spec = TritonPoolSpec()

    assert (spec.replicas, spec.isolation, spec.gateway.port, spec.gateway.replicas) == (1, "own", 8080, 2)
    assert spec.server.cache.size == "20Gi"
    assert spec.server.shared_memory == "1Gi"


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_every_field_is_read_as_it_was_written(text: str) -> None:
    (pool,) = load(text, "pool.yaml")

    assert load(dump([pool]), "again.yaml") == [pool]


@pytest.mark.same
def test_the_full_pool_says_everything() -> None:
    """So that goldens of it hold every field: none has its default."""
    (pool,) = load(FULL, "pool.yaml")

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


@cases(
    ("spec", "said"),
    {
        "an image without its release": ({"server": {"image": "own:1"}}, "needs a version"),
        **{
            f"{bad!r}": ({"minReady": bad}, "a whole number from 1 on, or a percentage from 1% to 100%")
            for bad in (0, -1, True, 0.5, "0%", "101%", "2", "80 %")
        },
        "no cache": ({"server": {"cache": {}}}, "exactly one of size.*, got none"),
        "two caches": ({"server": {"cache": {"size": "1Gi", "hostPath": "/cache"}}}, "got size, hostPath"),
        "a folder that is relative": ({"server": {"cache": {"hostPath": "cache"}}}, "pattern"),
        "words": ({"server": {"sharedMemory": "much"}}, "a quantity such as 2, 500m or 16Gi, got"),
        "a truth instead of an amount": ({"server": {"sharedMemory": True}}, "a quantity"),
        **{
            f"the variable {name}": (
                {"server": pods_with({"agent": {"env": [{"name": name}]}})},
                "or 'TZ'",
            )
            for name in ("SEGSERVE_POOL", "LD_PRELOAD", "PYTHONPATH", "NVIDIA_VISIBLE_DEVICES", "HTTPS_PROXY", "PATH")
        },
        "a variable twice": (
            {"server": pods_with({"triton": {"env": [{"name": "TZ"}, {"name": "TZ"}]}})},
            "'TZ' is listed twice",
        ),
        "a variable of Envoy": ({"gateway": pods_with({"envoy": {"env": [{"name": "TZ"}]}})}, "takes no variables"),
        "an unknown container": ({"server": pods_with({"tritn": {}})}, "did you mean 'triton'.*agent, triton"),
        "Triton's resources twice": (
            {"server": pods_with({"triton": {"resources": {"limits": {"cpu": 1}}}})},
            "the resources of triton are server.resources",
        ),
        "a volume": ({"server": pods_with(volumes=[])}, "not permitted"),
        "another image": ({"server": pods_with({"agent": {"image": "mine"}})}, "not permitted"),
        "a label's name with a space": ({"server": labelled({"a b": "c"})}, "got 'a b'"),
        "a label's value with a space": ({"gateway": labelled({"a": "b c"})}, "got 'b c' for a"),
        "a secret that cannot be": ({"server": pods_with(imagePullSecrets=[{"name": "No"}])}, "pattern"),
        "a release that is none": ({"server": {"version": "latest"}}, "pattern"),
        **{
            bad: ({"gateway": {"tracing": {"endpoint": bad}}}, said)
            for bad, said in (
                ("grpc://collector:4317", "pattern"),
                ("http://user:secret@collector", "pattern"),
                ("http://collector:65536", "from 1 to 65535, got 'http://collector:65536'"),
                ("http://collector:0", "from 1 to 65535"),
            )
        },
        **{
            said: ({"gateway": {"tracing": {"endpoint": "https://collector", **bad}}}, said)
            for bad, said in (
                ({"serverEndpoint": "https://collector"}, "must begin with http://, as Triton has no option"),
                ({"serverEndpoint": "http://collector:0"}, "from 1 to 65535"),
                ({"caBundle": "none"}, "must be certificates as PEM"),
                ({"caBundle": ""}, "must be certificates as PEM, got none"),
            )
        },
        "authorities without TLS": (
            {"gateway": {"tracing": {"endpoint": "http://collector", "caBundle": AUTHORITY}}},
            "caBundle is for an endpoint with https://, got 'http://collector'",
        ),
        "a base that is no URI": ({"artifacts": {"base": "models/"}}, "pattern"),
        "a base that no source reads": ({"artifacts": {"base": "gopher://x/"}}, "pattern"),
        "a scheme that is none": ({"artifacts": {"schemes": ["s4"]}}, "unknown scheme 's4'; known: az, file"),
        "a server of no scheme": ({"artifacts": {"endpoints": {"pvc": "http://a"}}}, "known: az, gs"),
        "a server that is no URL": ({"artifacts": {"endpoints": {"s3": "minio:9000"}}}, "pattern"),
        "a secret in a server's URL": ({"artifacts": {"endpoints": {"s3": "http://key:secret@minio"}}}, "pattern"),
        "another namespace's secret": (
            {"artifacts": {"credentials": [{"scheme": "s3", "secretRef": {"name": "a", "namespace": "other"}}]}},
            "not permitted",
        ),
        "credentials for files": (
            {"artifacts": {"credentials": [{"scheme": "pvc", "secretRef": {"name": "a"}}]}},
            "unknown scheme 'pvc'",
        ),
        "a claim that is a path": ({"artifacts": {"claims": ["../x"]}}, "pattern"),
        "a claim twice": ({"artifacts": {"claims": ["a", "a"]}}, "listed twice"),
        "a size in words": ({"artifacts": {"maxSize": "big"}}, "a quantity"),
        "a key that is no PEM": ({"artifacts": {"signatures": {"keys": ["ssh-rsa AAAA"]}}}, "pattern"),
        "no servers": ({"replicas": 0}, "greater than or equal to 1"),
        "a Service of another kind": ({"gateway": {"serviceType": "ExternalName"}}, "ClusterIP"),
        "nobody to tell": ({"notifications": [{}]}, "exactly one.*got none"),
        "an address given twice": (
            {"notifications": [{"url": "http://a", "secretRef": {"name": "hooks", "key": "url"}}]},
            "exactly one.*got both",
        ),
        "an address that is not of the web": ({"notifications": [{"url": "mailto:a@b.c"}]}, "pattern"),
        "a misspelt field": ({"server": {"nodeSelectr": {}}}, "not permitted"),
    },
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


@pytest.mark.parametrize(
    "origins",
    [
        *([origin] for origin in ("*", "null", "", "app.example.com", "https://", "https://app.example.com/")),
        *([f"https://{name}"] for name in ("App.example.com", "a b", "a\nb", "*.example.com", "a:0", "user@a", "a?b")),
        ["https://a", "https://a"],
        [],
    ],
)
def test_pages_are_named_by_their_origins_and_never_all_at_once(origins: list[str]) -> None:
    with pytest.raises(ValidationError, match="origins"):
        TritonPoolSpec.model_validate({"gateway": {"cors": {"origins": origins}}})
