"""What a pool's servers may fetch, and what they have mounted for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes.pools import FULL, MINIMAL, pool_context, with_defaults
from segserve_builder.cluster.settings import AgentSettings
from segserve_builder.errors import SourceDeniedError
from segserve_builder.sources.access import Access
from segserve_operator.adapters.kube.objects import gateway_objects, group_objects, server_template
from segserve_operator.adapters.kube.objects.context import PoolContext

FULL_POOL = pool_context(FULL)
COINS = Path("/opt/segserve/examples/coins")


def container(target: PoolContext, name: str) -> dict[str, Any]:
    spec = server_template(target, "main-0")["spec"]
    return next(found for found in spec["containers"] if found["name"] == name)


def told(target: PoolContext) -> Access:
    """Return what the agent reads from its environment."""
    variables = {found["name"]: found.get("value", "x") for found in container(target, "agent")["env"]}
    return AgentSettings.of(variables).access


def test_the_agent_is_told_all_that_the_pool_says() -> None:
    access, spec = told(FULL_POOL), FULL_POOL.spec.artifacts

    assert (access.schemes, access.hosts) == (spec.schemes, spec.hosts)
    assert (access.endpoints, access.ambient) == (spec.endpoints, True)
    assert access.max_bytes == 2 * 1024**3
    assert access.signatures.required
    assert access.signatures.keys == spec.signatures.keys
    assert access.signatures.identities[0].issuer == "https://accounts.google.com"


def test_each_secret_and_claim_is_mounted_where_the_agent_looks() -> None:
    access, spec = told(FULL_POOL), server_template(FULL_POOL, "main-0")["spec"]
    volumes = {found["name"]: found for found in spec["volumes"]}
    mounted = {found["mountPath"]: volumes[found["name"]] for found in container(FULL_POOL, "agent")["volumeMounts"]}

    for credential in access.credentials:
        assert mounted[str(credential.folder)]["secret"]["secretName"] == credential.name
    assert access.claims is not None
    for claim in FULL_POOL.spec.artifacts.claims:
        assert mounted[f"{access.claims}/{claim}"]["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}


def test_a_secret_that_is_not_there_stops_no_pod() -> None:
    volumes = server_template(FULL_POOL, "main-0")["spec"]["volumes"]

    secrets = [found for found in volumes if "secret" in found]
    assert [found["secret"]["optional"] for found in secrets] == [True, True]


def test_only_the_agent_has_secrets_and_claims() -> None:
    for found in container(FULL_POOL, "triton")["volumeMounts"]:
        assert not found["name"].startswith(("secret-", "claim-"))
    assert all(
        found["readOnly"] for found in container(FULL_POOL, "agent")["volumeMounts"] if "/mnt/" in found["mountPath"]
    )


def test_nobody_gets_the_right_to_read_secrets() -> None:
    for found in (*group_objects(FULL_POOL, "main-0", 1), *gateway_objects(FULL_POOL)):
        for rule in found.get("rules", ()):
            assert rule["resources"] == ["configmaps"]


def test_a_pool_that_says_nothing_gets_public_servers_and_the_operators_folder() -> None:
    target = with_defaults(pool_context(MINIMAL), artifact_base=COINS.as_uri())

    access = told(target)

    assert (access.folders, access.credentials, access.claims, access.ambient) == ((COINS,), (), None, False)
    for address in ("10.0.0.1", "127.0.0.1", "169.254.169.254"):
        with pytest.raises(SourceDeniedError):
            access.check_address("models.example.com", address)


def test_hosts_of_base_and_endpoints_may_lie_anywhere() -> None:
    access = told(
        pool_context(MINIMAL, artifacts={"base": "http://models:80/", "endpoints": {"s3": "http://minio:9000"}})
    )

    for host in ("models", "minio"):
        access.check_address(host, "10.0.0.1")
    with pytest.raises(SourceDeniedError):
        access.check_address("other", "10.0.0.1")


def test_what_the_operator_was_started_with_holds_for_all_pools_whatever_they_list() -> None:
    defaults = {"artifact_schemes": ("s3",), "artifact_hosts": ("a",), "artifact_private_hosts": ("10.1.0.0/16",)}

    quiet, full = (told(with_defaults(target, **defaults)) for target in (pool_context(MINIMAL), FULL_POOL))

    assert (quiet.schemes, quiet.hosts, quiet.private) == (("s3",), ("a",), ("10.1.0.0/16",))
    assert (full.schemes, full.hosts, full.ceiling) == (("s3",), FULL_POOL.spec.artifacts.hosts, ("a",))
    assert {"10.0.0.0/8", "10.1.0.0/16"} <= set(full.private)


@pytest.mark.parametrize(("cache", "kept"), [({"size": "10G"}, 8 * 10**9), ({"persistentVolumeClaim": "shared"}, None)])
def test_a_cache_of_the_pods_own_is_kept_below_its_size(cache: dict[str, str], kept: int | None) -> None:
    assert told(pool_context(MINIMAL, server={"cache": cache})).max_cache_bytes == kept
