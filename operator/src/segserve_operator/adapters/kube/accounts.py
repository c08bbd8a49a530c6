"""Pods whose ServiceAccount was deleted and made again: only new ones get a token that the API takes."""

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
    """Return the manifests; in a Deployment that is older than its ServiceAccount, pods of that very one.

    A pod's token is bound to the uid of its ServiceAccount, and a kubelet renews it only near its end. So the pods are
    replaced, as for any other change of their template: those there were serve meanwhile what they were told last.
    """
    return tuple(_of_account(view, key, each) if each["kind"] == DEPLOYMENTS.name else each for each in manifests)


def _of_account(view: View, key: PoolKey, manifest: Json) -> Json:
    spec = manifest["spec"]["template"]["spec"]
    live = view.get(DEPLOYMENTS, key.namespace, manifest["metadata"]["name"])
    account = view.get(SERVICE_ACCOUNTS, key.namespace, spec["serviceAccountName"])
    if live is None or account is None or _made(account) <= _made(live):
        return manifest
    template = manifest["spec"]["template"]
    annotations = {**template["metadata"].get("annotations", {}), _ANNOTATION: account["metadata"]["uid"]}
    changed = {**template, "metadata": {**template["metadata"], "annotations": annotations}}
    return stamped({**manifest, "spec": {**manifest["spec"], "template": changed}})


def _made(found: Json) -> str:
    # Times of the API are UTC in one format, so that their texts are in order.
    made: str = found["metadata"].get("creationTimestamp") or ""
    return made
