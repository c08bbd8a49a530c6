"""Advice on a model that does not serve its newest spec, by the reason of its condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# docs/troubleshooting.md has the long form of each.
ADVICE: Final[Mapping[str, str]] = {
    "ArtifactMissing": "correct spec.artifact.uri, or put the file there",
    "ArtifactTooLarge": "raise spec.artifacts.maxSize of the pool",
    "DigestMismatch": "if the new file is intended, correct spec.artifact.sha256 and apply",
    "EngineUnavailable": "choose another spec.runtime, or servers that have it",
    "GoldenFailed": "if the change is intended, record the golden set again: `segserve golden record FOLDER -f FILE`",
    "LoadFailed": "Triton's log has the rest: `segserve logs {name} -c triton`",
    "MissingPackage": "install the extra on the servers",
    "NoComparator": "set spec.gateway.shadow of the pool to true, or remove spec.rollout.shadow",
    "NobodyAdmitted": "add spec.gateway.auth to the pool, or correct spec.access",
    "NonFinite": "check spec.preprocess and the network's precision",
    "NothingCaptured": "set spec.gateway.capture of the pool to true, or correct spec.capture",
    "OtherVersion": "update the pool's servers; on one machine `segserve down`, then `segserve up`",
    "PoolNotFound": "create the TritonPool, or correct spec.pool",
    "RelativeUri": "set spec.artifacts.base of the pool, or use an absolute address",
    "SignatureMismatch": "choose another spec.family, or export the network again",
    "SignatureRejected": "sign the file, or add its signer to the pool",
    "SourceDenied": "extend spec.artifacts of the pool, or move the file",
    "SourceUnauthorized": "correct the credentials",
    "UnknownName": "correct the name, or upgrade the servers",
    "UnsafeArtifact": "export it as a single file",
}


def advice(condition: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Return what to do about the condition of a model; empty if its message already names the command."""
    if "`segserve " in (condition.get("message") or ""):
        return ""
    name, rollout = manifest["metadata"]["name"], (manifest.get("status") or {}).get("rollout") or {}
    if rollout.get("phase") in ("RolledBack", "Quarantined", "Cancelled") and condition["reason"] not in ADVICE:
        return f"`segserve rollout status {name}` shows why, `segserve rollout retry {name}` tries it again"
    return ADVICE.get(condition["reason"], "`segserve describe {name}` has the details").format(name=name)
