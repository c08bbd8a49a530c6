"""The comparator and the capture service in a gateway's pod: what gets copies of requests, beside callers' way.

Each is a container without a token, with a folder that it shares with Envoy. The capture service has the pool's
credentials for artifacts as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import V1Container, V1EnvVar, V1Volume, V1VolumeMount

from segserve_builder.sources.access import ACCESS_VARIABLE
from segserve_common.kube.names import (
    CAPTURE_CONTAINER,
    COMPARATOR_CONTAINER,
    INTERNAL_PORT,
    RUN_FOLDER,
    SHEETS_PORT,
)
from segserve_operator.adapters.kube.objects import artifacts, pods
from segserve_operator.adapters.traffic.envoy_config import CAPTURE_FOLDER, COMPARATOR_FOLDER

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext

_REQUESTS: Final = {
    COMPARATOR_CONTAINER: {"cpu": "50m", "memory": "256Mi", "ephemeral-storage": "64Mi"},
    CAPTURE_CONTAINER: {"cpu": "50m", "memory": "384Mi", "ephemeral-storage": "64Mi"},
}


def volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of the services that the pool has."""
    gateway = context.spec.gateway
    comparator = [pods.folder(COMPARATOR_FOLDER), pods.folder("pairs-tmp")] if gateway.shadow else []
    if not gateway.capture:
        return comparator
    return [*comparator, pods.folder(CAPTURE_FOLDER), pods.folder("capture-tmp"), *artifacts.secret_volumes(context)]


def mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mounts of the shared folders in the other containers of the pod."""
    gateway = context.spec.gateway
    present = ((COMPARATOR_FOLDER, gateway.shadow), (CAPTURE_FOLDER, gateway.capture))
    return [_shared(folder) for folder, wanted in present if wanted]


def containers(context: PoolContext) -> list[V1Container]:
    """Return the containers of the services that the pool has."""
    gateway, made = context.spec.gateway, []
    if gateway.shadow:
        command = pods.started_again("segserve_builder.comparator", COMPARATOR_CONTAINER, _path(COMPARATOR_FOLDER))
        own = [_shared(COMPARATOR_FOLDER), V1VolumeMount(name="pairs-tmp", mount_path=pods.TMP_FOLDER)]
        made.append(_container(context, COMPARATOR_CONTAINER, command, own, "--sheets-port", str(SHEETS_PORT)))
    if gateway.capture:
        # It has no claims, and none of its own files may be a sink: it writes only to object stores.
        access = artifacts.access_of(context).model_copy(update={"folders": (), "claims": None})
        command = pods.started_again("segserve_builder.capture", CAPTURE_CONTAINER, _path(CAPTURE_FOLDER))
        own = [
            _shared(CAPTURE_FOLDER),
            V1VolumeMount(name="capture-tmp", mount_path=pods.TMP_FOLDER),
            *artifacts.secret_mounts(context.spec.artifacts),
        ]
        given = access.model_dump_json(by_alias=True, exclude_defaults=True)
        made.append(_container(context, CAPTURE_CONTAINER, command, own, **{ACCESS_VARIABLE: given}))
    return made


def _container(
    context: PoolContext, name: str, command: list[str], mounts: list[V1VolumeMount], *arguments: str, **variables: str
) -> V1Container:
    gateway = context.spec.gateway
    variables = {"HOME": pods.TMP_FOLDER, **variables, **context.defaults.logging.variables()}
    return V1Container(
        name=name,
        image=context.defaults.operator_image,
        image_pull_policy=context.defaults.image_pull_policy,
        command=command,
        args=[
            *("--gateway", f"http://localhost:{INTERNAL_PORT}"),
            *("--max-request-bytes", str(gateway.max_request_bytes)),
            *arguments,
        ],
        env=[V1EnvVar(name=key, value=value) for key, value in variables.items()],
        resources=pods.requirements(gateway.pod_template.container(name).resources, _REQUESTS[name]),
        security_context=pods.container_security(),
        volume_mounts=mounts,
    )


def _path(folder: str) -> str:
    return f"{RUN_FOLDER}/{folder}"


def _shared(folder: str) -> V1VolumeMount:
    return V1VolumeMount(name=folder, mount_path=_path(folder))
