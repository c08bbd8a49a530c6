"""Replacement of pods after their ServiceAccount was deleted and created again, which makes their tokens invalid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_common.kube.kinds import DEPLOYMENTS, SERVICE_ACCOUNTS
from segserve_common.kube.names import DOMAIN
from segserve_operator.adapters.kube.objects.context import stamped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.view import PoolKey, View

_ANNOTATION: Final = f"{DOMAIN}/service-account"


def with_valid_tokens(view: View, key: PoolKey, manifests: Iterable[Json]) -> tuple[Json, ...]:
    """Return the manifests; a Deployment older than its ServiceAccount gets the account's uid in its pod template.

    A pod's token is bound to the uid of its ServiceAccount, and a kubelet renews it only shortly before it expires.
    The changed template makes the Deployment replace its pods; until then the old ones serve their last assignment.
    """
    return tuple(_with_account(view, key, each) if each["kind"] == DEPLOYMENTS.name else each for each in manifests)


def token_renewal(view: View, key: PoolKey, deployment: Json) -> Json | None:
    """Return the patch with which a live Deployment replaces pods without a valid token; None if theirs are valid."""
    template = _with_account(view, key, deployment)["spec"]["template"]
    return {"spec": {"template": template}} if template != deployment["spec"]["template"] else None


def _with_account(view: View, key: PoolKey, manifest: Json) -> Json:
    spec = manifest["spec"]["template"]["spec"]
    live = view.get(DEPLOYMENTS, key.namespace, manifest["metadata"]["name"])
    account = view.get(SERVICE_ACCOUNTS, key.namespace, spec["serviceAccountName"])
    if live is None or account is None or _created(account) <= _created(live):
        return manifest
    template = manifest["spec"]["template"]
    annotations = {**template["metadata"].get("annotations", {}), _ANNOTATION: account["metadata"]["uid"]}
    changed = {**template, "metadata": {**template["metadata"], "annotations": annotations}}
    return stamped({**manifest, "spec": {**manifest["spec"], "template": changed}})


def _created(item: Json) -> str:
    # The API's times are UTC in one format, so they can be compared as text.
    created: str = item["metadata"].get("creationTimestamp") or ""
    return created
