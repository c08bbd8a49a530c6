"""What a group's agents may fetch, and what they have mounted for it: Secrets and claims of the pool's namespace."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from kubernetes.aio.client import V1PersistentVolumeClaimVolumeSource, V1SecretVolumeSource, V1Volume, V1VolumeMount

from segserve_common.kube.names import CLAIMS_FOLDER, SECRETS_FOLDER
from segserve_operator.mapping import artifact_access
from segserve_operator.mapping.quantities import number

if TYPE_CHECKING:
    from segserve_builder.sources.access import Access
    from segserve_operator.adapters.kube.objects.context import PoolContext
    from segserve_operator.api.artifacts import Artifacts

_KEPT_SHARE: Final = 0.8
"""Of the cache's own folder: what arrives needs room too, and a pod that fills more than its folder is evicted."""


def base_of(context: PoolContext) -> str | None:
    """Return what relative URIs of the pool are relative to."""
    return context.spec.artifacts.base or context.defaults.artifact_base


def access_of(context: PoolContext) -> Access:
    """Return what the pool's agents may reach, with Secrets and claims where they are mounted.

    Files are read below the pool's base and the operator's, where these are folders: models are written by people who
    may not read what else a container has.
    """
    spec, defaults = context.spec, context.defaults
    own = artifact_access.access_of(spec.artifacts, Path(SECRETS_FOLDER))
    bases = [base for base in (spec.artifacts.base, defaults.artifact_base) if base]
    room = number(spec.server.cache.size)
    return own.model_copy(
        update={
            "schemes": own.schemes or defaults.artifact_schemes or None,
            "hosts": own.hosts or defaults.artifact_hosts,
            "private": (*own.private, *defaults.artifact_private_hosts, *_hosts(spec.artifacts, bases)),
            "folders": tuple(Path(unquote(urlsplit(base).path)) for base in bases if base.startswith("file:")),
            "claims": Path(CLAIMS_FOLDER) if spec.artifacts.claims else None,
            "max_cache_bytes": int(float(room) * _KEPT_SHARE) if room is not None else None,
        }
    )


def access_without_secrets(context: PoolContext, folder: Path | None) -> Access:
    """Return what the operator itself may reach for the pool: it reads no Secrets, and files below `folder` alone."""
    folders = (folder,) if folder is not None else ()
    update = {"folders": folders, "claims": None, "credentials": (), "ambient": False, "max_cache_bytes": None}
    return access_of(context).model_copy(update=update)


def volumes(artifacts: Artifacts) -> list[V1Volume]:
    """Return the Secrets and claims. A pod starts without a Secret, for the models that need none."""
    secrets = [
        V1Volume(
            name=_volume_name("secret", name),
            secret=V1SecretVolumeSource(secret_name=name, optional=True, default_mode=0o440),
        )
        for name in _secrets(artifacts)
    ]
    claims = [
        V1Volume(
            name=_volume_name("claim", name),
            persistent_volume_claim=V1PersistentVolumeClaimVolumeSource(claim_name=name, read_only=True),
        )
        for name in artifacts.claims
    ]
    return [*secrets, *claims]


def mounts(artifacts: Artifacts) -> list[V1VolumeMount]:
    """Return where the agent has them, each in a folder of its name."""
    secrets = [("secret", name, SECRETS_FOLDER) for name in _secrets(artifacts)]
    claims = [("claim", name, CLAIMS_FOLDER) for name in artifacts.claims]
    return [
        V1VolumeMount(name=_volume_name(kind, name), mount_path=f"{folder}/{name}", read_only=True)
        for kind, name, folder in (*secrets, *claims)
    ]


def _hosts(artifacts: Artifacts, bases: list[str]) -> list[str]:
    # Of other bases, what follows the scheme is no host: a bucket, an organisation, a claim.
    urls = [urlsplit(base) for base in bases if base.startswith(("http:", "https:", "oci:"))]
    places = (url.hostname for url in (*urls, *map(urlsplit, artifacts.endpoints.values())))
    return list(dict.fromkeys(host for host in places if host))


def _secrets(artifacts: Artifacts) -> list[str]:
    return list(dict.fromkeys(each.secret_ref.name for each in artifacts.credentials))


def _volume_name(kind: str, name: str) -> str:
    """Return a volume's name, which has no dots: what it mounts may be called longer, and with dots."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
