"""Pod settings of a TritonPool: the template that is merged into its pods, resources, cache."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from segserve_operator.api.checks import check_distinct, located, unknown_name
from segserve_operator.api.meta import ApiValue

QUANTITY_PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
SUBDOMAIN_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"


def check_quantity(value: Any) -> str:
    """Return a quantity in Kubernetes notation; whole numbers need no quotes."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(QUANTITY_PATTERN, text):
        raise PydanticCustomError(
            "quantity", "must be a quantity such as 2, 500m or 16Gi, got {seen}", {"seen": repr(value)}
        )
    return text


def check_keys(values: Mapping[str, str]) -> Mapping[str, str]:
    """Return a map whose keys are valid names of labels, annotations or resources."""
    for key in values:
        if not re.fullmatch(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", key):
            raise PydanticCustomError(
                "key", "keys must have the form name or prefix/name, got {seen}", {"seen": repr(key)}
            )
    return values


def check_labels(values: Mapping[str, str]) -> Mapping[str, str]:
    """Return a map of valid labels."""
    for key, value in check_keys(values).items():
        if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value):
            raise PydanticCustomError(
                "label",
                "a label value is at most 63 letters, digits, dots, dashes and underscores, got {seen} for {key}",
                {"seen": repr(value), "key": key},
            )
    return values


Quantity = Annotated[
    str,
    BeforeValidator(check_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 28}),
]
"""A quantity in Kubernetes notation: `2`, `500m`, `16Gi`."""

Labels = Annotated[Mapping[str, str], AfterValidator(check_labels), Field(max_length=64)]
Annotations = Annotated[Mapping[str, str], AfterValidator(check_keys), Field(max_length=64)]
Quantities = Annotated[Mapping[str, Quantity], AfterValidator(check_keys), Field(max_length=32)]
Subdomain = Annotated[str, Field(pattern=SUBDOMAIN_PATTERN, max_length=253)]
Hostname = Annotated[
    str,
    Field(
        pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        min_length=1,
        max_length=253,
    ),
]
"""A host name in lower case; its first label may be `*`."""
Image = Annotated[str, Field(pattern=r"^[^\s]+$", min_length=1, max_length=512)]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]
VariableName = Literal[
    "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "KMP_AFFINITY", "KMP_BLOCKTIME",
    "LANG", "LC_ALL", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS",
    "TZ",
]  # fmt: skip
Passed = Annotated[Mapping[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""JSON that is copied unchanged."""


class Resources(ApiValue):
    """Resource requests and limits of a container."""

    limits: Quantities = Field(default={}, description="Upper limits, such as cpu, memory, nvidia.com/gpu.")
    requests: Quantities = Field(default={}, description="Guaranteed amounts. Default: the limits.")

    @property
    def has_gpus(self) -> bool:
        """Whether a container gets NVIDIA GPUs, whole or in parts."""
        return any(name.startswith("nvidia.com/") for name in self.limits)


class Toleration(ApiValue):
    """A taint of nodes that the pods tolerate."""

    key: str | None = Field(default=None, max_length=317, description="Key of the taint. Default: every taint.")
    operator: Literal["Exists", "Equal"] = Field(
        default="Equal", description="Equal compares the value; Exists ignores it."
    )
    value: str | None = Field(default=None, max_length=63, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint. Default: every effect."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="Seconds for which a NoExecute taint is tolerated. Default: no limit."
    )


class SecretKey(ApiValue):
    """One value of a Secret in the pool's namespace."""

    name: Subdomain = Field(description="Name of the Secret.")
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253, description="Key of the value in the Secret.")


class Variable(ApiValue):
    """An environment variable that tunes libraries: others could load code, or reach devices and hosts."""

    name: VariableName = Field(description="Name of the variable.")
    value: str = Field(default="", max_length=4096, description="Value of the variable.")


class SecretName(ApiValue):
    """A Secret in the pool's namespace."""

    name: Subdomain = Field(description="Name of the Secret.")


class ContainerTemplate(ApiValue):
    """A part of one container of the pods."""

    name: str = Field(description="Name of the container.")
    resources: Resources = Field(default=Resources(), description="Resource requests and limits.")
    env: tuple[Variable, ...] = Field(default=(), max_length=64, description="Additional environment variables.")

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        check_distinct(tuple(variable.name for variable in self.env), "env")
        return self


class PodMetadata(ApiValue):
    """Additional metadata of the pods."""

    labels: Labels = Field(default={}, description="Additional labels; segserve's own take precedence.")
    annotations: Annotations = Field(default={}, description="Additional annotations; segserve's own take precedence.")


class PodSpec(ApiValue):
    """A part of the PodSpec."""

    node_selector: Labels = Field(default={}, description="Labels that a node must have.")
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=32, description="Taints that are tolerated.")
    affinity: Passed = Field(default={}, description="Affinity, copied unchanged.")
    topology_spread_constraints: tuple[Passed, ...] = Field(
        default=(),
        max_length=8,
        description="Topology spread constraints, copied; without a labelSelector a constraint is about the same group "
        "of pods. Default: prefer different nodes and zones.",
    )
    scheduler_name: Subdomain | None = Field(default=None, description="Scheduler. Default: the cluster's own.")
    runtime_class_name: Subdomain | None = Field(default=None, description="RuntimeClass, such as nvidia.")
    priority_class_name: Subdomain | None = Field(default=None, description="PriorityClass.")
    image_pull_secrets: tuple[SecretName, ...] = Field(
        default=(), max_length=16, description="Secrets for pulling images, beside the operator's."
    )
    containers: tuple[ContainerTemplate, ...] = Field(default=(), max_length=8, description="Containers by name.")

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        check_distinct(tuple(container.name for container in self.containers), "containers")
        return self


class PodTemplate(ApiValue):
    """A part of a PodTemplateSpec, merged into the pods as kubectl merges a strategic merge patch.

    It has the fields that cannot give the pods more rights than segserve gives them: no volumes, no images, no security
    contexts, no service accounts, and of variables those that tune libraries.
    """

    metadata: PodMetadata = Field(default=PodMetadata(), description="Additional labels and annotations.")
    spec: PodSpec = Field(default=PodSpec(), description="Placement, secrets for images, and containers.")

    def container(self, name: str) -> ContainerTemplate:
        """Return what is merged into the container `name`."""
        return next((item for item in self.spec.containers if item.name == name), ContainerTemplate(name=name))


def check_containers(template: PodTemplate, containers: Collection[str], with_env: Collection[str]) -> None:
    """Raise a validation error for a container that the pods do not have, or that takes no variables."""
    for index, container in enumerate(template.spec.containers):
        at = ("podTemplate", "spec", "containers", index)
        if container.name not in containers:
            raise located(unknown_name("container", container.name, containers), *at, "name")
        if container.env and container.name not in with_env:
            allowed = ", ".join(with_env) or "no container of these pods"
            raise located(f"{container.name} takes no variables; allowed: {allowed}", *at, "env")


class Cache(ApiValue):
    """Where downloaded artifacts are stored, by digest. Exactly one field is set."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "[has(self.size), has(self.persistentVolumeClaim), has(self.hostPath)]"
                    ".exists_one(named, named)",
                    "message": "exactly one of size, persistentVolumeClaim and hostPath must be set",
                }
            ]
        }
    )

    size: Quantity | None = Field(
        default=None,
        description="Size limit of a folder that lives as long as the pod; a pod that exceeds it is evicted.",
    )
    persistent_volume_claim: Subdomain | None = Field(
        default=None,
        description="PersistentVolumeClaim shared by the pods; replicas on several nodes need ReadWriteMany.",
    )
    host_path: str | None = Field(
        default=None,
        pattern=r"^/[^:]*$",
        max_length=1024,
        description="Folder on each node; servers use the folder in it that is named like their namespace, which must "
        "be writable by user 1000. A missing one gets the mode of the former. Not allowed in restricted namespaces.",
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        named = [to_camel(name) for name, value in self if value is not None]
        if len(named) != 1:
            raise PydanticCustomError(
                "spec",
                "exactly one of size, persistentVolumeClaim and hostPath must be set, got {seen}",
                {"seen": ", ".join(named) or "none"},
            )
        return self
