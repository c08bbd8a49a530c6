"""Access of artifact fetches on this machine: more than on a cluster, unless the pool restricts it."""

from __future__ import annotations

from segserve_builder.sources.access import LOCAL, Access
from segserve_operator.adapters.local.files import config_folder
from segserve_operator.api.artifacts import Artifacts
from segserve_operator.mapping.artifact_access import access_of


def local_access(artifacts: Artifacts | None = None) -> Access:
    """Return the access of this user, within the limits that `artifacts` of the machine's pool set.

    In the configuration folder, `secrets/NAME` stands for a Secret, with one file per key, and `claims/NAME` for a
    volume claim. Without such a folder, the user's own credentials apply.
    """
    config = config_folder()
    pool_access = access_of(artifacts or Artifacts(), config / "secrets")
    claims = config / "claims"
    return pool_access.model_copy(
        update={
            "private": (*pool_access.private, *LOCAL.private),
            "credentials": tuple(each for each in pool_access.credentials if each.folder.is_dir()),
            "claims": claims if claims.is_dir() else None,
            "ambient": True,
        }
    )
