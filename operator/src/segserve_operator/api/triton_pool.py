"""The TritonPool resource: Triton servers that many models share, and their gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from segserve_common.kube.names import (
    AGENT_CONTAINER,
    CAPTURE_CONTAINER,
    COMPARATOR_CONTAINER,
    ENVOY_CONTAINER,
    SYNC_CONTAINER,
    TRITON_CONTAINER,
)
from segserve_operator.api.access import Auth, Cors
from segserve_operator.api.artifacts import Artifacts
from segserve_operator.api.checks import check_distinct, located
from segserve_operator.api.meta import UNSEEN, ApiValue, Condition, CountOrShare, ObjectMeta, Timestamp
from segserve_operator.api.pod_template import (
    Annotations,
    Cache,
    Hostname,
    Image,
    PodTemplate,
    Quantity,
    Resources,
    SecretKey,
    Subdomain,
    check_containers,
)
from segserve_operator.api.pool_update import TemplateStatus, Update
from segserve_operator.api.session_affinity import SessionAffinity
from segserve_operator.api.telemetry import AccessLog, Tracing

_SET: JsonDict = {"x-kubernetes-list-type": "set"}
_WHOLE: JsonDict = {"x-kubernetes-list-type": "atomic"}
_ONE_ADDRESS = "exactly one of url and secretRef must be set"
_ROUTES_MESSAGE = "gatewayApi needs parentRefs, and hostnames or grpcHostnames"
_HOSTNAMES_MESSAGE = "a host name is either of hostnames or of grpcHostnames"
_REDIRECT_MESSAGE = "tls.redirectPort must be another port than port"
_MTLS_MESSAGE = "auth.mtls needs tls: callers show their certificates there"
_VERSION_MESSAGE = "an image needs a version, the Triton release that it contains, such as 26.04"
_OPEN: JsonDict = {"x-kubernetes-preserve-unknown-fields": True}
"""Its fields are Kubernetes' own, and stand in its documentation; the operator refuses what it does not merge."""
_MERGED = (
    "Part of a pod template, merged into the {pods} by the rules of strategic merge patches: metadata.labels and "
    "annotations; spec.nodeSelector, tolerations, affinity, topologySpreadConstraints, schedulerName, "
    "runtimeClassName, priorityClassName, imagePullSecrets; and spec.containers by name ({containers}), each with "
    "resources{variables}. {defaults}"
)
_SERVER_CONTAINERS: Final = (TRITON_CONTAINER, AGENT_CONTAINER)
_GATEWAY_CONTAINERS: Final = (ENVOY_CONTAINER, SYNC_CONTAINER, COMPARATOR_CONTAINER, CAPTURE_CONTAINER)


class GatewayTls(ApiValue):
    """TLS for callers; without it the gateway speaks plain HTTP and gRPC.

    Gateways of the cluster (provider gatewayApi) are callers as well: they need a BackendTLSPolicy.
    """

    secret_name: Subdomain = Field(
        description="Secret of the namespace of type kubernetes.io/tls (tls.crt, tls.key), such as cert-manager "
        "writes; a renewed certificate is used without a restart."
    )
    min_version: Literal["1.2", "1.3"] = Field(default="1.2", description="Oldest version of TLS that is spoken.")
    redirect_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Another port of the Service, at which plain HTTP is redirected to https. Default: none.",
    )


class Server(ApiValue):
    """The Triton servers."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": "!has(self.image) || has(self.version)", "message": _VERSION_MESSAGE}]
        }
    )

    image: Image | None = Field(
        default=None, description="Image with Triton and segserve's agent. Default: chosen by the operator."
    )
    version: str | None = Field(
        default=None,
        pattern=r"^[0-9]{2}\.[0-9]{2}$",
        description="Triton release in the image, such as 26.04; models' configurations are written for it.",
    )
    resources: Resources = Field(
        default=Resources(),
        description="Resources of the Triton container, GPUs (whole or MIG) included. Default requests, for each "
        "resource without a request and a limit: 100m cpu, 1Gi memory, 1Gi ephemeral-storage; memory then has a "
        "limit of 32Gi.",
    )
    pod_template: PodTemplate = Field(
        default=PodTemplate(),
        description=_MERGED.format(
            pods="servers' pods",
            containers=", ".join(_SERVER_CONTAINERS),
            variables=", and triton and agent with env of variables that tune libraries (such as OMP_NUM_THREADS, TZ)",
            defaults="Default requests of the agent, of each that has neither a request nor a limit: 50m cpu, 256Mi "
            "memory, 1Gi ephemeral-storage; its memory then has a limit of 4Gi.",
        ),
        json_schema_extra=_OPEN,
    )
    shared_memory: Quantity = Field(
        default="1Gi", description="Size of /dev/shm, through which steps pass tensors. Counts as memory."
    )
    cache: Cache = Field(default=Cache(size="20Gi"), description="Where downloaded artifacts are stored, by digest.")
    service_account_annotations: Annotations = Field(
        default={}, description="Annotations of the pods' ServiceAccounts, such as those that name a cloud role."
    )
    drain_seconds: int = Field(
        default=10,
        ge=0,
        le=600,
        description="Seconds for which a terminating server still answers while gateways stop using it.",
    )
    exit_timeout_seconds: int = Field(
        default=30, ge=1, le=600, description="Seconds to wait for in-flight requests after drainSeconds."
    )

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        if self.image is not None and self.version is None:
            raise PydanticCustomError("spec", _VERSION_MESSAGE, {"at": ("image",)})
        return self

    @model_validator(mode="after")
    def _check_pod_template(self) -> Self:
        with_env = (TRITON_CONTAINER, AGENT_CONTAINER)
        check_containers(self.pod_template, _SERVER_CONTAINERS, with_env)
        if TRITON_CONTAINER in [
            each.name for each in self.pod_template.spec.containers if each.resources != Resources()
        ]:
            raise located("the resources of triton are server.resources", "podTemplate", "spec", "containers")
        return self


class GatewayParent(ApiValue):
    """A Gateway of the cluster's Gateway API."""

    name: Subdomain = Field(description="Name of the Gateway.")
    namespace: Subdomain | None = Field(default=None, description="Its namespace. Default: the pool's.")
    section_name: Subdomain | None = Field(default=None, description="One of its listeners. Default: all that fit.")
    port: int | None = Field(default=None, ge=1, le=65535, description="Port of its listeners. Default: all that fit.")


class Gateway(ApiValue):
    """The gateway, through which all requests to the pool's models go."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.provider) || self.provider != 'gatewayApi' || "
                    "(has(self.parentRefs) && size(self.parentRefs) > 0 && "
                    "((has(self.hostnames) && size(self.hostnames) > 0) || "
                    "(has(self.grpcHostnames) && size(self.grpcHostnames) > 0)))",
                    "message": _ROUTES_MESSAGE,
                },
                {
                    "rule": "!has(self.hostnames) || !has(self.grpcHostnames) || "
                    "!self.hostnames.exists(name, name in self.grpcHostnames)",
                    "message": _HOSTNAMES_MESSAGE,
                },
                {
                    "rule": "!has(self.tls) || !has(self.tls.redirectPort) || "
                    "self.tls.redirectPort != (has(self.port) ? self.port : 8080)",
                    "message": _REDIRECT_MESSAGE,
                },
                {
                    "rule": "!has(self.auth) || !has(self.auth.mtls) || has(self.tls)",
                    "message": _MTLS_MESSAGE,
                },
            ]
        }
    )

    provider: Literal["envoy", "gatewayApi"] = Field(
        default="envoy",
        description="envoy is the pool's own gateway alone; gatewayApi adds an HTTPRoute and a GRPCRoute to its "
        "Service, for the cluster's gateways.",
    )
    parent_refs: tuple[GatewayParent, ...] = Field(
        default=(), max_length=8, description="gatewayApi: Gateways of the routes.", json_schema_extra=_WHOLE
    )
    hostnames: Annotated[tuple[Hostname, ...], AfterValidator(check_distinct)] = Field(
        default=(), max_length=16, description="gatewayApi: host names of the HTTPRoute.", json_schema_extra=_SET
    )
    grpc_hostnames: Annotated[tuple[Hostname, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        max_length=16,
        description="gatewayApi: host names of the GRPCRoute. The Gateway API allows none that an HTTPRoute has.",
        json_schema_extra=_SET,
    )
    port: int = Field(default=8080, ge=1, le=65535, description="Port for both HTTP and gRPC.")
    auth: Auth | None = Field(
        default=None, description="Who may call. Default: every caller, without credentials; keep the network private."
    )
    tls: GatewayTls | None = Field(default=None, description="TLS for callers. Default: none.")
    access_log: AccessLog | None = Field(
        default=None,
        description="Log of requests as JSON, on standard output of the Envoy container. A change restarts the "
        "gateways one by one. Default: none.",
    )
    tracing: Tracing | None = Field(
        default=None,
        description="Traces of requests through gateway and servers, and of decisions about rollouts. Another "
        "endpoint starts a new group of servers; another ratio restarts the gateways one by one. Default: none.",
    )
    session_affinity: SessionAffinity | None = Field(
        default=None,
        description="Which id a request has; requests of one id go to one revision while a rollout's weight only "
        "grows, and to one server. Default: each request by itself.",
    )
    cors: Cors | None = Field(
        default=None,
        description="Web pages that may call the gateway. A change restarts the gateways one by one. Default: none; on "
        "your machine without auth, those of localhost.",
    )
    max_request_bytes: int = Field(
        default=64 * 1024**2, ge=65_536, le=2**31 - 1, description="Largest request in bytes; larger ones get 413."
    )
    plain_http: bool = Field(
        default=True,
        description="Whether callers may also send an image as the body of POST /v1/models/NAME:segment, for an "
        "answer in JSON. A change restarts the gateways one by one.",
    )
    request_timeout_seconds: int = Field(
        default=60, ge=1, le=3600, description="Longest duration of a request in seconds; longer ones get 504."
    )
    replicas: int = Field(default=2, ge=1, le=100, description="Number of gateway pods.")
    workers: int = Field(default=2, ge=1, le=64, description="Worker threads per gateway.")
    pod_template: PodTemplate = Field(
        default=PodTemplate(),
        description=_MERGED.format(
            pods="gateways' pods",
            containers=", ".join(_GATEWAY_CONTAINERS),
            variables="",
            defaults="Default requests, of each that has neither a request nor a limit: 100m cpu, 128Mi memory, 128Mi "
            "ephemeral-storage for envoy; 20m cpu, 96Mi memory, 64Mi ephemeral-storage for sync; 50m cpu, 64Mi "
            "ephemeral-storage, and 256Mi memory for comparator, 384Mi for capture.",
        ),
        json_schema_extra=_OPEN,
    )
    shadow: bool = Field(
        default=False,
        description="Whether gateways can compare two revisions by copies of callers' requests, which Shadow of "
        "models' rollouts needs on a cluster: each gets a comparator, which has these requests in memory.",
    )
    capture: bool | None = Field(
        default=None,
        description="Whether gateways can keep samples of callers' requests, which spec.capture of models needs on a "
        "cluster: each gets a container with the pool's credentials for artifacts, which has these requests in "
        "memory. A change restarts the gateways one by one. Default: false.",
    )
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        default="ClusterIP", description="Type of the Service."
    )
    service_annotations: Annotations = Field(
        default={}, description="Annotations of the Service, such as those for load balancers."
    )
    drain_seconds: int = Field(
        default=15,
        ge=0,
        le=3600,
        description="Seconds for which a terminating gateway still answers while callers move to others.",
    )

    @model_validator(mode="after")
    def _check_pod_template(self) -> Self:
        check_containers(self.pod_template, _GATEWAY_CONTAINERS, ())
        return self

    @model_validator(mode="after")
    def _check_routes(self) -> Self:
        if self.provider == "gatewayApi" and not (self.parent_refs and (self.hostnames or self.grpc_hostnames)):
            raise PydanticCustomError("spec", _ROUTES_MESSAGE, {"at": ("provider",)})
        if set(self.hostnames) & set(self.grpc_hostnames):
            raise PydanticCustomError("spec", _HOSTNAMES_MESSAGE, {"at": ("grpcHostnames",)})
        if self.tls is not None and self.tls.redirect_port == self.port:
            raise PydanticCustomError("spec", _REDIRECT_MESSAGE, {"at": ("tls", "redirectPort")})
        if self.auth is not None and self.auth.mtls is not None and self.tls is None:
            raise PydanticCustomError("spec", _MTLS_MESSAGE, {"at": ("auth", "mtls")})
        return self


class Notification(ApiValue):
    """Where to send notifications of rollouts. Exactly one of url and secretRef is set."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": "has(self.url) != has(self.secretRef)", "message": _ONE_ADDRESS}]
        }
    )

    url: str | None = Field(
        default=None, max_length=2048, pattern=r"^https?://", description="URL to POST notifications to."
    )
    secret_ref: SecretKey | None = Field(default=None, description="Secret that contains the URL (on a cluster).")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.url is None) == (self.secret_ref is None):
            raise located(f"{_ONE_ADDRESS}, got {'none' if self.url is None else 'both'}")
        return self


class TritonPoolSpec(ApiValue):
    """How the pool runs. On one machine there are no pods: `server`, `replicas`, `update` have no effect."""

    replicas: int = Field(default=1, ge=1, le=1000, description="Number of servers per group.")
    min_ready: CountOrShare | None = Field(
        default=None,
        description="Servers of a group (a number, or a percentage, rounded to whole servers; at least 1) that must "
        "have proved a revision before it serves. Default: 80%. A return to a revision that served needs only one.",
    )
    isolation: Literal["own", "shared"] = Field(
        default="own", description="own gives each candidate servers of its own; shared uses one group for all models."
    )
    server: Server = Field(default=Server(), description="The Triton servers.")
    update: Update = Field(default=Update(), description="How servers are replaced if their template changes.")
    artifacts: Artifacts = Field(
        default=Artifacts(), description="Permitted sources of artifacts, their credentials and signers."
    )
    gateway: Gateway = Field(
        default=Gateway(), description="The gateway, through which all requests to the pool's models go."
    )
    notifications: tuple[Notification, ...] = Field(
        default=(), max_length=8, description="Where to send notifications of rollouts.", json_schema_extra=_WHOLE
    )


class TritonPoolStatus(ApiValue):
    """Observed state of the pool."""

    observed_generation: int | None = Field(
        default=None,
        ge=UNSEEN,
        description="Generation of the spec that the status describes; -1 if no operator has seen it.",
    )
    format: int | None = Field(
        default=None, ge=1, description="Number of the format of what is stored; an operator reads only its own."
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=32,
        description="Conditions, one of each type: Ready, Progressing, Degraded, Reconciling, Stalled.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    replicas: int | None = Field(default=None, ge=0, description="Number of servers in the main group.")
    selector: str | None = Field(
        default=None, description="Label selector of the servers that get requests, for autoscalers."
    )
    url: str | None = Field(default=None, description="URL of the gateway within the cluster.")
    main_group: str | None = Field(default=None, description="Group that serves stable revisions.")
    models: int | None = Field(default=None, ge=0, description="Number of models in the pool.")
    template: TemplateStatus | None = Field(default=None, description="The template of the main group's servers.")
    waiting_since: Timestamp | None = Field(
        default=None, description="Time since which the pool is not ready; absent while it is."
    )


class TritonPool(ApiValue):
    """A pool of Triton servers that host many models behind one gateway."""

    api_version: Literal["segserve.dev/v1alpha1"] = Field(
        default="segserve.dev/v1alpha1", description="Version of the API."
    )
    kind: Literal["TritonPool"] = Field(default="TritonPool", description="Kind of resource.")
    metadata: ObjectMeta = Field(description="Name, labels and annotations.")
    spec: TritonPoolSpec = Field(default=TritonPoolSpec(), description="How the pool runs.")
    status: TritonPoolStatus = Field(default=TritonPoolStatus(), description="Observed state of the pool.")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield what tells pools apart."""
        yield None, self.metadata.name
        yield from (("replicas", self.status.replicas), ("models", self.status.models), ("url", self.status.url))
