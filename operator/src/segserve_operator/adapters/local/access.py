"""What fetches of this machine's user may reach: more than a cluster's, less where a pool says so."""

from __future__ import annotations

from segserve_builder.sources.access import LOCAL, Access
from segserve_operator.adapters.local.files import config_folder
from segserve_operator.api.artifacts import Artifacts
from segserve_operator.mapping.artifact_access import access_of


def local_access(artifacts: Artifacts | None = None) -> Access:
    """Return what the user may reach, as far as `artifacts` of the machine's pool allow it.

    A Secret is the folder `secrets/NAME` of the configuration with a file a key, a claim the folder `claims/NAME`.
    Where there is no such folder, the user's own credentials count.
    """
    config = config_folder()
    own = access_of(artifacts or Artifacts(), config / "secrets")
    claims = config / "claims"
    return own.model_copy(
        update={
            "private": (*own.private, *LOCAL.private),
            "credentials": tuple(each for each in own.credentials if each.folder.is_dir()),
            "claims": claims if claims.is_dir() else None,
            "ambient": True,
        }
    )
