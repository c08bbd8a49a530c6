"""The source `pvc`: files of a pool's persistent volume claims, mounted by its servers: `pvc://claim/path`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from segserve_builder.errors import SourceDeniedError
from segserve_builder.sources.access import Access
from segserve_builder.sources.file import LocalFiles

_CLAIM: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class PvcSource(LocalFiles):
    """Files of claims. Symbolic links are followed within their claim, and refused if they lead out of it."""

    def allowed(self, uri: str, access: Access) -> Path:
        """Return the path if it is in a claim of the pool."""
        claim, _, rest = uri.partition("://")[2].partition("/")
        access.check_uri("pvc", claim)
        root = _root(claim, access)
        parts = unquote(rest).split("/")
        if any(part == ".." or "\0" in part for part in parts):
            raise SourceDeniedError(f"{uri!r} leaves its claim; a path has no '..' and no NUL")
        path = root.joinpath(*parts).resolve()
        if not path.is_relative_to(root):
            raise SourceDeniedError(f"{uri!r} leaves its claim by a symbolic link")
        return path


def _root(claim: str, access: Access) -> Path:
    if access.claims is None:
        raise SourceDeniedError(
            "no claims are mounted here; pvc: is read by the servers of a pool whose spec.artifacts.claims lists the "
            "claim. On one machine, name the file by its path, or make the folder claims/NAME in ~/.config/segserve"
        )
    root = (access.claims / claim).resolve()
    if not _CLAIM.fullmatch(claim) or not root.is_dir():
        there = sorted(path.name for path in access.claims.iterdir()) if access.claims.is_dir() else []
        raise SourceDeniedError(
            f"the claim {claim!r} is not one of the pool's; spec.artifacts.claims names: {', '.join(there) or 'none'}"
        )
    return root
