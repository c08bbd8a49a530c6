"""Two pools: one that says nothing, and one that says everything that a pool can say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from segserve_builder.agent.protocol import AssignedModel
from segserve_operator.adapters.kube.objects import Defaults, PoolContext
from segserve_operator.api.loading import load

DEFAULTS = Defaults(
    server_image="segserve/server:1",
    triton_version="26.04",
    envoy_image="envoyproxy/envoy:v1.40.0",
    operator_image="segserve/operator:1",
    operator_namespace_labels={"kubernetes.io/metadata.name": "segserve-system"},
)
MINIMAL = """\
apiVersion: segserve.dev/v1alpha1
kind: TritonPool
metadata: {name: default, namespace: vision, uid: 0a1b}
"""
FULL = """\
apiVersion: segserve.dev/v1alpha1
kind: TritonPool
metadata: {name: gpus, namespace: vision, uid: 2c3d}
spec:
  replicas: 3
  minReady: 75%
  isolation: shared
  update:
    strategy: RollingUpdate
    maxUnavailable: 1
    maxSurge: 0
    paused: true
  server:
    image: example.com/triton:26.05
    version: "26.05"
    resources:
      limits: {cpu: 4, memory: 16Gi, nvidia.com/mig-1g.10gb: 1}
      requests: {cpu: 500m, memory: 1024Mi}
    sharedMemory: 2Gi
    cache: {persistentVolumeClaim: artifacts}
    podTemplate:
      metadata:
        labels: {team: vision, segserve.dev/pool: other}
        annotations: {example.com/note: seen}
      spec:
        imagePullSecrets: [{name: registry}]
        nodeSelector: {nvidia.com/gpu.product: A100}
        tolerations:
          - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
          - {key: team, value: vision, effect: NoExecute, tolerationSeconds: 0}
        affinity:
          nodeAffinity:
            requiredDuringSchedulingIgnoredDuringExecution:
              nodeSelectorTerms:
                - matchExpressions: [{key: gpu.example.com/memory, operator: Gt, values: ["20"]}]
        topologySpreadConstraints: [{maxSkew: 2, topologyKey: rack, whenUnsatisfiable: ScheduleAnyway}]
        schedulerName: own
        runtimeClassName: nvidia
        priorityClassName: serving
        containers:
          - name: triton
            env: [{name: OMP_NUM_THREADS, value: "2"}, {name: TZ}]
          - name: agent
            resources: {limits: {cpu: "0.5", memory: 1Gi}}
            env: [{name: OMP_NUM_THREADS, value: "2"}, {name: TZ}]
    serviceAccountAnnotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::1:role/models"}
    drainSeconds: 20
    exitTimeoutSeconds: 60
  artifacts:
    base: https://models.example.com/
    schemes: [https, s3, pvc]
    hosts: [models.example.com, "models-*"]
    privateHosts: ["*.svc.cluster.local", 10.0.0.0/8]
    endpoints: {s3: "http://minio.storage:9000"}
    credentials:
      - {scheme: s3, host: "models-*", secretRef: {name: bucket.reader}}
      - {scheme: https, secretRef: {name: web-reader}}
      - {scheme: oci, secretRef: {name: web-reader}}
    workloadIdentity: true
    claims: [models, shared.models]
    maxSize: 2Gi
    signatures:
      required: true
      keys: ["-----BEGIN PUBLIC KEY-----\\nMFkw\\n-----END PUBLIC KEY-----\\n"]
      certificates: ["-----BEGIN CERTIFICATE-----\\nMIIB\\n-----END CERTIFICATE-----\\n"]
      identities: [{identity: ci@example.com, issuer: "https://accounts.google.com"}]
  gateway:
    provider: gatewayApi
    parentRefs: [{name: public, namespace: infra, sectionName: https, port: 443}]
    hostnames: [masks.example.com]
    grpcHostnames: ["*.grpc.example.com"]
    port: 80
    tls: {secretName: masks-tls, minVersion: "1.3", redirectPort: 8080}
    auth:
      jwt:
        - issuer: https://issuer.example.com
          audiences: [masks]
          jwks: {secretRef: {name: issuer, key: jwks.json}}
          nameClaim: email
      apiKeys: [{secretRef: {name: callers, key: htpasswd}}]
      mtls: {caSecretRef: {name: callers-ca, key: ca.crt}}
      anonymous: true
    sessionAffinity: {header: x-camera, cookie: visitor, caller: true}
    cors: {origins: ["https://app.example.com", "http://localhost:3000"]}
    accessLog: {samplingRatio: 0.01}
    tracing: {endpoint: "http://collector.observability:4318", samplingRatio: 0.5}
    maxRequestBytes: 1048576
    plainHttp: false
    requestTimeoutSeconds: 10
    replicas: 3
    workers: 4
    shadow: true
    capture: true
    serviceType: LoadBalancer
    serviceAnnotations: {example.com/internal: "true"}
    podTemplate:
      metadata:
        labels: {team: vision}
        annotations: {example.com/note: seen}
      spec:
        imagePullSecrets: [{name: registry}]
        nodeSelector: {kubernetes.io/os: linux}
        tolerations: [{operator: Exists}]
        affinity:
          podAntiAffinity:
            preferredDuringSchedulingIgnoredDuringExecution:
              - {weight: 1, podAffinityTerm: {topologyKey: kubernetes.io/hostname}}
        topologySpreadConstraints:
          - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}
        schedulerName: own
        priorityClassName: serving
        containers:
          - {name: envoy, resources: {requests: {cpu: 1, memory: 256Mi}, limits: {memory: 0.5Gi}}}
          - {name: sync, resources: {requests: {cpu: 10m}}}
          - {name: comparator, resources: {limits: {memory: 1Gi}}}
          - {name: capture, resources: {limits: {memory: 2Gi}}}
    drainSeconds: 30
  notifications:
    - {url: "https://hooks.example.com/rollouts"}
    - {secretRef: {name: hooks, key: chat}}
"""
COINS = """\
apiVersion: segserve.dev/v1alpha1
kind: SegmentationModel
metadata: {name: coins, namespace: vision, uid: 4e5f}
spec:
  artifact: {uri: coins.onnx, sha256: 0f00000000000000000000000000000000000000000000000000000000000abc}
  family: semantic-logits
  classes: [{id: 0, name: background}, {id: 1, name: coin, colour: "#ffcc00"}]
  preprocess: [{decode: {}}]
  postprocess: [{argmax: {}}]
"""


def pods_with(containers: dict[str, dict[str, Any]] | None = None, **spec: Any) -> dict[str, Any]:
    """Return the part of a pool's server or gateway that merges a PodSpec, and containers by name, into its pods."""
    named = [{"name": name, **each} for name, each in (containers or {}).items()]
    return {"podTemplate": {"spec": {**spec, **({"containers": named} if named else {})}}}


def labelled(labels: dict[str, str]) -> dict[str, Any]:
    """Return the part of a pool's server or gateway that labels its pods."""
    return {"podTemplate": {"metadata": {"labels": labels}}}


VARIABLE = pods_with({"agent": {"env": [{"name": "TZ", "value": "Europe/Berlin"}]}})
"""The part of a pool's server that gives the agent a variable."""


def pool_context(text: str, **spec: Any) -> PoolContext:
    """Return the context of the pool in a file; `spec` replaces fields of its spec, given as the file has them."""
    value = yaml.safe_load(text)
    value["spec"] = {**value.get("spec", {}), **spec}
    (pool,) = load(yaml.safe_dump(value), "pool.yaml")
    meta = pool.metadata
    return PoolContext(meta.namespace, meta.name, meta.uid or "", pool.spec, DEFAULTS)


def with_defaults(context: PoolContext, **changed: Any) -> PoolContext:
    """Return the context with other defaults of the operator."""
    return replace(context, defaults=replace(context.defaults, **changed))


def coins() -> AssignedModel:
    """Return a model as agents are told of it."""
    (model,) = load(COINS, "coins.yaml")
    return model.assigned
