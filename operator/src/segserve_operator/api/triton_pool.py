"""The TritonPool resource: the Triton servers that many models share, and their gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from segserve_operator.api.artifacts import Artifacts
from segserve_operator.api.checks import check_distinct, located
from segserve_operator.api.meta import ApiValue, Condition, ObjectMeta
from segserve_operator.api.pod_template import (
    Annotations,
    Cache,
    Image,
    Labels,
    Passed,
    PullPolicy,
    Quantity,
    Resources,
    Subdomain,
    Toleration,
    Variable,
)

if TYPE_CHECKING:
    from pydantic.config import JsonDict

_SET: JsonDict = {"x-kubernetes-list-type": "set"}
_BY_NAME: JsonDict = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
_WHOLE: JsonDict = {"x-kubernetes-list-type": "atomic"}
_ONE_ADDRESS = "exactly one must be named: url, secretRef"
_VERSION_MESSAGE = "an image needs its Triton release: version, such as 26.04"


def _check_variables(variables: tuple[Variable, ...]) -> tuple[Variable, ...]:
    check_distinct(tuple(variable.name for variable in variables))
    return variables


class Server(ApiValue):
    """The Triton servers."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": "!has(self.image) || has(self.version)", "message": _VERSION_MESSAGE}]
        }
    )

    image: Image | None = Field(None, description="Triton with segserve's agent; by default the operator's own choice.")
    version: str | None = Field(
        None,
        pattern=r"^[0-9]{2}\.[0-9]{2}$",
        description="The image's Triton release, such as 26.04; models' configurations are written for it.",
    )
    image_pull_policy: PullPolicy | None = Field(None, description="When the image is pulled.")
    image_pull_secrets: Annotated[tuple[Subdomain, ...], AfterValidator(check_distinct)] = Field(
        (), max_length=16, description="Secrets of the namespace to pull images with.", json_schema_extra=_SET
    )
    resources: Resources = Field(Resources(), description="Of Triton: GPUs (whole or MIG) are passed through.")
    agent_resources: Resources | None = Field(
        None, description="Of the agent beside it; by default it is promised 50m cpu and 256Mi."
    )
    shared_memory: Quantity = Field(
        "1Gi", description="The size of /dev/shm, through which steps hand on tensors; it counts as memory."
    )
    cache: Cache = Field(Cache(size="20Gi"), description="Where artifacts are kept, by digest.")
    node_selector: Labels = Field({}, description="Labels of the nodes that the servers may run on.")
    tolerations: tuple[Toleration, ...] = Field(
        (), max_length=32, description="Taints of nodes that they do not mind.", json_schema_extra=_WHOLE
    )
    affinity: Passed = Field({}, description="Which nodes and neighbours they prefer: a pod's affinity, handed on.")
    runtime_class_name: Subdomain | None = Field(None, description="How containers run, such as nvidia.")
    priority_class_name: Subdomain | None = Field(None, description="Who goes first where room is scarce.")
    env: Annotated[tuple[Variable, ...], AfterValidator(_check_variables)] = Field(
        (), max_length=64, description="Variables of Triton and the agent.", json_schema_extra=_BY_NAME
    )
    pod_labels: Labels = Field({}, description="Labels of the pods; segserve's own win.")
    pod_annotations: Annotations = Field({}, description="Annotations of the pods.")
    service_account_annotations: Annotations = Field(
        {}, description="Annotations of the pods' accounts, such as those that name a cloud's role."
    )
    drain_seconds: int = Field(
        10, ge=0, le=600, description="How long a server that is to end still answers: gateways hear of it meanwhile."
    )
    exit_timeout_seconds: int = Field(
        30, ge=1, le=600, description="How long it then has for the requests that it has begun."
    )

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        if self.image is not None and self.version is None:
            raise PydanticCustomError("spec", _VERSION_MESSAGE, {"at": ("image",)})
        return self


class Gateway(ApiValue):
    """The only entrance to the pool's models."""

    port: int = Field(8080, ge=1, le=65535, description="One port for HTTP and gRPC.")
    max_request_bytes: int = Field(64 * 1024**2, ge=65_536, le=2**31 - 1, description="Larger requests get 413.")
    request_timeout_seconds: int = Field(60, ge=1, le=3600, description="Requests that take longer get 504.")
    replicas: int = Field(2, ge=1, le=100, description="How many there are.")
    workers: int = Field(2, ge=1, le=64, description="Threads of each that carry requests.")
    image_pull_secrets: Annotated[tuple[Subdomain, ...], AfterValidator(check_distinct)] = Field(
        (), max_length=16, description="Secrets of the namespace to pull images with.", json_schema_extra=_SET
    )
    resources: Resources | None = Field(
        None, description="Of Envoy; by default it is promised 100m cpu and 128Mi of memory."
    )
    sync_resources: Resources | None = Field(
        None, description="Of what writes its configuration; by default it is promised 20m cpu and 96Mi."
    )
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        "ClusterIP", description="Who may call: the cluster, or those outside too."
    )
    service_annotations: Annotations = Field({}, description="Annotations of the Service, such as load balancers read.")
    node_selector: Labels = Field({}, description="Labels of the nodes that it may run on.")
    tolerations: tuple[Toleration, ...] = Field(
        (), max_length=32, description="Taints of nodes that it does not mind.", json_schema_extra=_WHOLE
    )
    priority_class_name: Subdomain | None = Field(None, description="Who goes first where room is scarce.")
    pod_labels: Labels = Field({}, description="Labels of the pods; segserve's own win.")
    pod_annotations: Annotations = Field({}, description="Annotations of the pods.")
    drain_seconds: int = Field(
        15, ge=0, le=3600, description="How long one that is to end still answers, while callers go elsewhere."
    )


class SecretKey(ApiValue):
    """One value of a Secret of the pool's namespace."""

    name: Subdomain = Field(description="The Secret's name.")
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253, description="The key of the value in it.")


class Notification(ApiValue):
    """Whom to tell of rollouts: what is decided, and why. Exactly one of url and secretRef is named."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": "has(self.url) != has(self.secretRef)", "message": _ONE_ADDRESS}]
        }
    )

    url: str | None = Field(None, max_length=2048, pattern=r"^https?://", description="Who is told, by POST.")
    secret_ref: SecretKey | None = Field(
        None, description="Where the URL is written, on a cluster; it may be a secret."
    )
    format: Literal["json", "slack"] = Field("json", description="JSON of all that is known, or a text for Slack.")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.url is None) == (self.secret_ref is None):
            raise located(f"{_ONE_ADDRESS}, got {'none' if self.url is None else 'both'}")
        return self


class TritonPoolSpec(ApiValue):
    """How the pool is run. On one machine only the gateway's port, size and time limit count."""

    replicas: int = Field(1, ge=1, le=1000, description="Servers of each group.")
    isolation: Literal["own", "shared"] = Field(
        "own", description="Whether each candidate gets servers of its own, or all of the pool share one group."
    )
    server: Server = Field(Server(), description="The Triton servers.")
    artifacts: Artifacts = Field(Artifacts(), description="Where artifacts come from, and whose they are.")
    gateway: Gateway = Field(Gateway(), description="The only entrance to the pool's models.")
    notifications: tuple[Notification, ...] = Field(
        (), max_length=8, description="Who is told of rollouts.", json_schema_extra=_WHOLE
    )


class TritonPoolStatus(ApiValue):
    """What has become of the spec."""

    observed_generation: int | None = Field(None, ge=0, description="The generation that the status speaks of.")
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=32,
        description="Ready.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    replicas: int | None = Field(None, ge=0, description="Servers of the main group that there are.")
    selector: str | None = Field(None, description="Labels by which an autoscaler finds them.")
    url: str | None = Field(None, description="Where the pool's models answer within the cluster.")
    main_group: str | None = Field(None, description="The group that models settle in.")
    models: int | None = Field(None, ge=0, description="How many models the pool has.")


class TritonPool(ApiValue):
    """A fleet of Triton servers that host many models behind one gateway."""

    api_version: Literal["segserve.dev/v1alpha1"] = Field("segserve.dev/v1alpha1", description="The API's version.")
    kind: Literal["TritonPool"] = Field("TritonPool", description="The kind of resource.")
    metadata: ObjectMeta = Field(description="Name, labels, annotations.")
    spec: TritonPoolSpec = Field(TritonPoolSpec(), description="How the pool is run.")
    status: TritonPoolStatus = Field(TritonPoolStatus(), description="What has become of it.")
