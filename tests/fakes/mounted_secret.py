"""A Secret as the kubelet mounts it: all files are replaced at once, by the rename of a link."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path

import trustme


class MountedSecret:
    """A folder whose files are links to those of the present version, which a hidden link names."""

    def __init__(self, folder: Path, content: Mapping[str, bytes] | None = None) -> None:
        self.folder = folder
        self._versions = itertools.count()
        folder.mkdir()
        if content is not None:
            self.write(content)

    def write(self, content: Mapping[str, bytes]) -> None:
        """Replace all files, and remove the former version."""
        version = self.folder / f"..version-{next(self._versions)}"
        version.mkdir()
        for name, data in content.items():
            (version / name).write_bytes(data)
        link, staged = self.folder / "..data", self.folder / "..data_tmp"
        former = link.resolve() if link.exists() else None
        staged.symlink_to(version.name)
        staged.rename(link)
        for name in content:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        if former is not None:
            shutil.rmtree(former)


def tls_secret(certificate: trustme.LeafCert) -> dict[str, bytes]:
    """Return the content of a Secret of the type kubernetes.io/tls."""
    chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    return {"tls.crt": chain, "tls.key": certificate.private_key_pem.bytes()}
