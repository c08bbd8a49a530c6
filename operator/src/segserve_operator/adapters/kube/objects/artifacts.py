"""Access of a group's agents to artifacts, and the Secrets and volume claims that are mounted for it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from kubernetes.aio.client import V1PersistentVolumeClaimVolumeSource, V1Volume, V1VolumeMount

from segserve_common.kube.names import CLAIMS_FOLDER, SECRETS_FOLDER
from segserve_operator.adapters.kube.objects import pods
from segserve_operator.mapping import artifact_access
from segserve_operator.mapping.quantities import number

if TYPE_CHECKING:
    from segserve_builder.sources.access import Access
    from segserve_operator.adapters.kube.objects.context import PoolContext
    from segserve_operator.api.artifacts import Artifacts

_KEPT_SHARE: Final = 0.8
"""Part of the cache volume for complete artifacts: downloads also need room, and a pod that exceeds it is evicted."""


def base_of(context: PoolContext) -> str | None:
    """Return the base URI of the pool's relative URIs, or None."""
    return context.spec.artifacts.base or context.defaults.artifact_base


def access_of(context: PoolContext) -> Access:
    """Return the access of the pool's agents, with the folders where Secrets and claims are mounted.

    The operator's schemes and hosts hold for all pools: a pool's own lists restrict them further. Files are read only
    below the pool's and the operator's base, if these are folders: authors of models must not be able to read other
    files of a container.
    """
    spec, defaults = context.spec, context.defaults
    own = artifact_access.access_of(spec.artifacts, Path(SECRETS_FOLDER))
    bases = [base for base in (spec.artifacts.base, defaults.artifact_base) if base]
    room = number(spec.server.cache.size)
    return own.model_copy(
        update={
            "schemes": _common(own.schemes, defaults.artifact_schemes),
            "hosts": own.hosts or defaults.artifact_hosts,
            "floor": defaults.artifact_signatures,
            "ceiling": defaults.artifact_hosts if own.hosts or own.endpoints else (),
            "private": (*own.private, *defaults.artifact_private_hosts, *_hosts(spec.artifacts, bases)),
            "folders": tuple(Path(unquote(urlsplit(base).path)) for base in bases if base.startswith("file:")),
            "claims": Path(CLAIMS_FOLDER) if spec.artifacts.claims else None,
            "max_cache_bytes": int(float(room) * _KEPT_SHARE) if room is not None else None,
        }
    )


def _common(wanted: tuple[str, ...] | None, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the schemes that both the pool and the operator allow, None for all; neither list means all."""
    if not wanted or not allowed:
        return wanted or allowed or None
    return tuple(scheme for scheme in wanted if scheme in allowed)


def volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of Secrets and claims."""
    claims = [
        V1Volume(
            name=_volume_name("claim", name),
            persistent_volume_claim=V1PersistentVolumeClaimVolumeSource(claim_name=name, read_only=True),
        )
        for name in context.spec.artifacts.claims
    ]
    return [*secret_volumes(context), *claims]


def secret_volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of Secrets."""
    # Optional: models that need no credentials are served even if the Secret is missing.
    return [
        pods.secret_volume(_volume_name("secret", name), name, context.defaults.pod_user)
        for name in _secrets(context.spec.artifacts)
    ]


def mounts(artifacts: Artifacts) -> list[V1VolumeMount]:
    """Return the agent's mounts of these volumes, each in a folder of its own name."""
    return [*secret_mounts(artifacts), *(_mount("claim", name, CLAIMS_FOLDER) for name in artifacts.claims)]


def secret_mounts(artifacts: Artifacts) -> list[V1VolumeMount]:
    """Return the mounts of the volumes of Secrets."""
    return [_mount("secret", name, SECRETS_FOLDER) for name in _secrets(artifacts)]


def _mount(kind: str, name: str, folder: str) -> V1VolumeMount:
    return V1VolumeMount(name=_volume_name(kind, name), mount_path=f"{folder}/{name}", read_only=True)


def _hosts(artifacts: Artifacts, bases: list[str]) -> list[str]:
    # In URIs of other schemes a bucket, an organisation or a claim takes the place of the host.
    urls = [urlsplit(base) for base in bases if base.startswith(("http:", "https:", "oci:"))]
    hosts = (url.hostname for url in (*urls, *map(urlsplit, artifacts.endpoints.values())))
    return list(dict.fromkeys(host for host in hosts if host))


def _secrets(artifacts: Artifacts) -> list[str]:
    return list(dict.fromkeys(each.secret_ref.name for each in artifacts.credentials))


def _volume_name(kind: str, name: str) -> str:
    """Return a name for a volume; names of Secrets and claims may be too long for one, and may have dots."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
