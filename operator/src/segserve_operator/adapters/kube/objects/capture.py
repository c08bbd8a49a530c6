"""The capture service in a gateway's pod: a container with the pool's credentials for artifacts and no token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import V1Container, V1EnvVar, V1Volume, V1VolumeMount

from segserve_builder.sources.access import ACCESS_VARIABLE
from segserve_common.kube.names import CAPTURE_CONTAINER, INTERNAL_PORT, RUN_FOLDER
from segserve_operator.adapters.kube.objects import artifacts, pods
from segserve_operator.adapters.traffic.envoy_config import CAPTURE_FOLDER

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext

_FOLDER: Final = f"{RUN_FOLDER}/{CAPTURE_FOLDER}"
_TMP: Final = "capture-tmp"
_REQUESTS: Final = {"cpu": "50m", "memory": "384Mi", "ephemeral-storage": "64Mi"}


def volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of the capture service, none without one."""
    if not context.spec.gateway.capture:
        return []
    return [pods.folder(CAPTURE_FOLDER), pods.folder(_TMP), *artifacts.secret_volumes(context)]


def mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mount of the shared folder in the other containers of the pod."""
    return [V1VolumeMount(name=CAPTURE_FOLDER, mount_path=_FOLDER)] if context.spec.gateway.capture else []


def containers(context: PoolContext) -> list[V1Container]:
    """Return the service's container, none without one."""
    gateway = context.spec.gateway
    if not gateway.capture:
        return []
    # Of claims it has none, and of its own files none may be a sink: it writes to object stores alone.
    access = artifacts.access_of(context).model_copy(update={"folders": (), "claims": None})
    variables = {
        "HOME": pods.TMP_FOLDER,
        ACCESS_VARIABLE: access.model_dump_json(by_alias=True, exclude_defaults=True),
        **context.defaults.logging.variables(),
    }
    own = V1Container(
        name=CAPTURE_CONTAINER,
        image=context.defaults.operator_image,
        image_pull_policy=context.defaults.image_pull_policy,
        command=pods.started_again("segserve_builder.capture", CAPTURE_CONTAINER, _FOLDER),
        args=[
            *("--gateway", f"http://localhost:{INTERNAL_PORT}"),
            *("--max-request-bytes", str(gateway.max_request_bytes)),
        ],
        env=[V1EnvVar(name=name, value=value) for name, value in variables.items()],
        resources=pods.requirements(gateway.pod_template.container(CAPTURE_CONTAINER).resources, _REQUESTS),
        security_context=pods.container_security(),
        volume_mounts=[
            *mounts(context),
            V1VolumeMount(name=_TMP, mount_path=pods.TMP_FOLDER),
            *artifacts.secret_mounts(context.spec.artifacts),
        ],
    )
    return [own]
