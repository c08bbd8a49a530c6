"""Pods are replaced where their ServiceAccount was made again, and nowhere else."""

from __future__ import annotations

from typing import Any

from fakes.pools import MINIMAL, pool_context
from segserve_common.kube.kinds import DEPLOYMENTS, SERVICE_ACCOUNTS
from segserve_operator.adapters.kube.accounts import with_valid_tokens
from segserve_operator.adapters.kube.objects import group_objects
from segserve_operator.adapters.kube.view import PoolKey, View

TARGET = pool_context(MINIMAL)
KEY = PoolKey(TARGET.namespace, TARGET.pool)
OBJECTS = group_objects(TARGET, "main-1", 2)


def view(*, account_made: str | None, deployment_made: str | None) -> View:
    """Return a view of the group's Deployment and ServiceAccount, made within the same minute."""
    found = View((DEPLOYMENTS, SERVICE_ACCOUNTS))
    for kind, made in ((DEPLOYMENTS, deployment_made), (SERVICE_ACCOUNTS, account_made)):
        manifest = next(each for each in OBJECTS if each["kind"] == kind.name)
        if made is not None:
            stamps = {"uid": kind.plural, "resourceVersion": "1", "creationTimestamp": f"2026-01-01T00:00:{made}Z"}
            found.take(kind, {**manifest, "metadata": {**manifest["metadata"], **stamps}})
    return found


def account_named(manifests: tuple[dict[str, Any], ...]) -> str | None:
    (deployment,) = (each for each in manifests if each["kind"] == "Deployment")
    named: str | None = deployment["spec"]["template"]["metadata"]["annotations"].get("segserve.dev/service-account")
    return named


def test_pods_of_a_service_account_that_was_made_again_name_that_one() -> None:
    manifests = with_valid_tokens(view(deployment_made="01", account_made="02"), KEY, OBJECTS)

    assert account_named(manifests) == "serviceaccounts"
    changed = [one["kind"] for one, other in zip(manifests, OBJECTS, strict=True) if one != other]
    assert changed == ["Deployment"]


def test_nothing_changes_where_the_service_account_was_there_first() -> None:
    for seen in (
        view(deployment_made="02", account_made="01"),
        view(deployment_made="01", account_made="01"),
        view(deployment_made=None, account_made="01"),
        view(deployment_made="01", account_made=None),
    ):
        assert with_valid_tokens(seen, KEY, OBJECTS) == OBJECTS
