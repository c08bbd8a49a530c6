"""The comparator in a gateway's pod: a container without credentials, and the folder that it shares with Envoy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import V1Container, V1EnvVar, V1Volume, V1VolumeMount

from segserve_common.kube.names import COMPARATOR_CONTAINER, INTERNAL_PORT, RUN_FOLDER, SHEETS_PORT
from segserve_operator.adapters.kube.objects import pods
from segserve_operator.adapters.traffic.envoy_config import COMPARATOR_FOLDER

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext

_FOLDER: Final = f"{RUN_FOLDER}/{COMPARATOR_FOLDER}"
_TMP: Final = "pairs-tmp"
_REQUESTS: Final = {"cpu": "50m", "memory": "256Mi", "ephemeral-storage": "64Mi"}


def volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of the comparator, none without one."""
    return [pods.folder(COMPARATOR_FOLDER), pods.folder(_TMP)] if context.spec.gateway.shadow else []


def mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mount of the shared folder in the other containers of the pod."""
    return [V1VolumeMount(name=COMPARATOR_FOLDER, mount_path=_FOLDER)] if context.spec.gateway.shadow else []


def containers(context: PoolContext) -> list[V1Container]:
    """Return the comparator's container, none without one. It has no token, and none of the gateway's other files."""
    gateway = context.spec.gateway
    if not gateway.shadow:
        return []
    variables = {"HOME": pods.TMP_FOLDER, **context.defaults.logging.variables()}
    own = V1Container(
        name=COMPARATOR_CONTAINER,
        image=context.defaults.operator_image,
        image_pull_policy=context.defaults.image_pull_policy,
        command=pods.started_again("segserve_builder.comparator", COMPARATOR_CONTAINER, _FOLDER),
        args=[
            *("--gateway", f"http://localhost:{INTERNAL_PORT}"),
            *("--max-request-bytes", str(gateway.max_request_bytes)),
            *("--sheets-port", str(SHEETS_PORT)),
        ],
        env=[V1EnvVar(name=name, value=value) for name, value in variables.items()],
        resources=pods.requirements(gateway.pod_template.container(COMPARATOR_CONTAINER).resources, _REQUESTS),
        security_context=pods.container_security(),
        volume_mounts=[*mounts(context), V1VolumeMount(name=_TMP, mount_path=pods.TMP_FOLDER)],
    )
    return [own]
