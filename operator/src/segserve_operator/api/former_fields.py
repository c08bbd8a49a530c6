"""Fields that earlier versions of v1alpha1 had, and what to write now: errors about one of them name it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

RENAMED: Final[Mapping[str, str]] = {
    "bake": "bakeTime",
    "every": "interval",
    "long": "longWindow",
    "maximum": "maxDuration",
    "maximumClassDrop": "maxClassDrop",
    "maximumMemoryGrowthPercent": "maxMemoryGrowthPercent",
    "maximumQueueSeconds": "maxQueueSeconds",
    "maximumRestarts": "maxRestarts",
    "minimum": "minDuration",
    "minimumAp": "minAp",
    "minimumClassIou": "minClassIou",
    "minimumIou": "minIou",
    "minimumRecall": "minRecall",
    "share": "alphaShare",
    "handledRequests": "handledAnnotations",
    "saw": "inputs",
}
"""Present names by former ones."""

_OTHER_MODEL: Final = "the network is a SegmentationModel of its own, which is named here: {model: NAME}"
_POD: Final = "write it into podTemplate, as in a pod template of Kubernetes"
_CONTAINER: Final = "write it into podTemplate, as resources of the container "
_PODS: Final = {
    "nodeSelector": _POD,
    "tolerations": _POD,
    "affinity": _POD,
    "topologySpreadConstraints": _POD,
    "schedulerName": _POD,
    "runtimeClassName": _POD,
    "priorityClassName": _POD,
    "imagePullSecrets": _POD,
    "podLabels": _POD,
    "podAnnotations": _POD,
}
REPLACED: Final[Mapping[str, Mapping[str, str]]] = {
    "spec.instances": dict.fromkeys(("artifact", "family", "postprocess", "runtime"), _OTHER_MODEL),
    "spec.cascade.light": dict.fromkeys(
        ("artifact", "family", "preprocess", "inference", "postprocess", "runtime"), _OTHER_MODEL
    ),
    "spec.rollout": {
        "holdback": "remove it: a canary's predecessor keeps 5 % of the requests while its successor bakes",
        "selfTest": "remove it: segserve no longer compares stable with itself",
        "maxQuarantines": "remove it: after three quarantines a rollout waits for a person",
    },
    "spec.drift": {"tolerance": "remove it: the share of a bucket may be 0.05 beyond the reference's own windows"},
    "spec.server": _PODS
    | {
        "agentResources": f"{_CONTAINER}agent",
        "env": "write it into podTemplate, as env of the containers triton and agent",
        "imagePullPolicy": "remove it: the chart's images.pullPolicy holds for all pods",
    },
    "spec.gateway": _PODS
    | {
        "resources": f"{_CONTAINER}envoy",
        "syncResources": f"{_CONTAINER}sync",
        "comparatorResources": f"{_CONTAINER}comparator",
        "captureResources": f"{_CONTAINER}capture",
    },
    "spec.gateway.callerMetrics": {"most": "remove it: 50 callers, and slices, are counted by name"},
}
"""What to write instead of a former field, by the part of the spec that had it."""


def replacement_of(path: str) -> str | None:
    """Return what to write instead of a field that earlier versions had, None for any other field."""
    parent, _, name = path.rpartition(".")
    return REPLACED.get(parent, {}).get(name)
