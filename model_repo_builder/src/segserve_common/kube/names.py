"""Names of labels, containers, ports, folders and objects that operator, agents and gateway sidecars share."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

DOMAIN: Final = "segserve.dev"
POOL_LABEL: Final = f"{DOMAIN}/pool"
GROUP_LABEL: Final = f"{DOMAIN}/group"
MODEL_LABEL: Final = f"{DOMAIN}/model"
REVISION_LABEL: Final = f"{DOMAIN}/revision"
ROLLOUT_LABEL: Final = f"{DOMAIN}/rollout"
ROLE_LABEL: Final = f"{DOMAIN}/role"
"""Role of a ControllerRevision's revision: stable, previous, candidate, or refused."""
OUTCOME_LABEL: Final = f"{DOMAIN}/outcome"
"""Phase in which a SegmentationRollout ended."""
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
MANAGED_LABELS: Final = {"app.kubernetes.io/managed-by": "segserve", "app.kubernetes.io/part-of": "segserve"}
FINALIZER: Final = f"{DOMAIN}/traffic"
ROLE_ANNOTATION: Final = f"{DOMAIN}/role-details"
"""Since when a revision has its role, in which group, why it was refused, and which annotations were handled."""
OUTCOME_ANNOTATION: Final = f"{DOMAIN}/outcome-message"
POOL_FINALIZER: Final = f"{DOMAIN}/models"
"""Keeps a pool that is being deleted while it has models."""

FORCE_DELETE: Final = f"{DOMAIN}/force-delete"
"""Annotation of a pool that may be deleted although it has models: `true`."""

FIELD_MANAGER: Final = "segserve"

SERVER: Final = "server"
GATEWAY: Final = "gateway"
TRITON_CONTAINER: Final = "triton"
AGENT_CONTAINER: Final = "agent"
ENVOY_CONTAINER: Final = "envoy"
SYNC_CONTAINER: Final = "sync"
COMPARATOR_CONTAINER: Final = "comparator"
CAPTURE_CONTAINER: Final = "capture"

HTTP_PORT: Final = 8000
GRPC_PORT: Final = 8001
METRICS_PORT: Final = 8002
AGENT_PORT: Final = 8010
SYNC_PORT: Final = 8011
INTERNAL_PORT: Final = 8081
REDIRECT_PORT: Final = 8082
SHEETS_PORT: Final = 8083
"""Port of loopback in a gateway's pod: only `pods/portforward` reaches it."""

POD_USER: Final = 1000
"""User and group of the images; the volumes of pods belong to the group."""

REPORT_KEY: Final = "report"
"""Key of a pod's report in a ConfigMap of its own."""
REPORTS_KEY: Final = "reports"
"""Key, in the first shard of an assignment, whose value `OWN_REPORTS` makes agents use ConfigMaps of their own."""
OWN_REPORTS: Final = "own"

RUN_FOLDER: Final = "/run/segserve"
CACHE_FOLDER: Final = "/var/cache/segserve"
SECRETS_FOLDER: Final = "/mnt/segserve/secrets"
CLAIMS_FOLDER: Final = "/mnt/segserve/claims"
CERTIFICATE_FOLDER: Final = "/mnt/segserve/certificate"
CLIENT_CA_FOLDER: Final = "/mnt/segserve/client-ca"
"""Where the sidecar of a gateway finds the certificate of its listener, and the authority of callers' certificates."""

SHARDS: Final = 4
"""Number of ConfigMaps over which an assignment or a plan is spread: Kubernetes stores at most 1 MiB in each."""

# A pod's name is its Deployment's and 17 characters more, and a host's name has at most 63.
_LONGEST: Final = 46


@lru_cache(maxsize=65536)
def object_name(pool: str, *parts: str) -> str:
    """Return the name of an object of a pool; names of models and pools have no `--`, so that no two are equal.

    One that would be too long is cut and ends with a digest of the whole.
    """
    name = "--".join([f"segserve-{pool}", *parts])
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 11].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def assignment_name(pool: str, group: str, shard: int) -> str:
    """Return the name of the ConfigMap that holds one shard of a group's assignment."""
    return object_name(pool, group, f"assignment-{shard}")


def plan_name(pool: str, shard: int) -> str:
    """Return the name of the ConfigMap that holds one shard of a gateway's plan."""
    return object_name(pool, GATEWAY, f"plan-{shard}")


def reports_name(pool: str, group: str) -> str:
    """Return the name of the ConfigMap that the pods of a group (or of `GATEWAY`) share for their reports."""
    return object_name(pool, group, "reports")


def report_name(pod: str) -> str:
    """Return the name of the ConfigMap that holds one pod's report, where its group's reports are too many for one."""
    return f"{pod}-report"


def chunk_name(rollout: str, number: int) -> str:
    """Return the name of the ConfigMap that holds a chunk of a rollout's oldest evidence."""
    return f"{rollout}-{number}"
