"""Signatures of artifacts: model-signing bundles, verified before anything else reads the file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from segserve_builder.errors import MissingPackageError, SignatureRejectedError
from segserve_builder.sources import fetch_unpinned
from segserve_builder.sources.access import Access, Signatures
from segserve_builder.spec.model_spec import Artifact

SUFFIX: Final = ".sig"
_MAX_BUNDLE_BYTES: Final = 4 * 2**20


def verify(artifact: Artifact, file: Path, access: Access) -> None:
    """Check that `file`, the artifact's verified copy, has a signature that `access.signatures` trusts.

    Does nothing if the artifact names no signature and `access` does not require one. The bundle is at
    `artifact.signature.uri`, by default at the artifact's URI followed by `.sig`. Raises `SignatureRejectedError`, and
    what `fetch` raises if the bundle cannot be fetched.
    """
    trusted = access.signatures
    if artifact.signature is None and not trusted.required:
        return
    if not (trusted.keys or trusted.certificates or trusted.identities):
        raise SignatureRejectedError(
            "a signature is required, but no signer is trusted: name keys, certificates or identities"
        )
    uri = artifact.signature.uri if artifact.signature is not None else artifact.uri + SUFFIX
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle.sig"
        bundle.write_bytes(fetch_unpinned(uri, access, _MAX_BUNDLE_BYTES))
        _check(file, bundle, uri, list(_verifiers(trusted, Path(folder))))


def _check(file: Path, bundle: Path, uri: str, verifiers: list[tuple[str, Callable[[], Any]]]) -> None:
    refusals = []
    for signer, verifier in verifiers:
        try:
            verifier().verify(file, bundle)
        except Exception as error:  # the library passes on any error of its parsers
            refusals.append(f"{signer}: {' '.join(str(error).split())[:200] or type(error).__name__}")
        else:
            return
    raise SignatureRejectedError(f"{uri!r} is not a signature of this file by a trusted signer: {'; '.join(refusals)}")


def _verifiers(trusted: Signatures, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield a description of each trusted signer, and the factory of its verifier."""
    for number, path in enumerate(_write_all(trusted.keys, folder, "pub"), 1):
        yield f"key {number}", partial(_config().use_elliptic_key_verifier, public_key=path)
    if trusted.certificates:
        chain = _write_all(trusted.certificates, folder, "pem")
        yield "certificates", partial(_config().use_certificate_verifier, certificate_chain=chain)
    for who in trusted.identities:
        yield who.identity, partial(_config().use_sigstore_verifier, identity=who.identity, oidc_issuer=who.issuer)


def _config() -> Any:
    try:
        from model_signing import verifying
    except ModuleNotFoundError as error:
        raise MissingPackageError("model-signing", "sources") from error
    make: Any = verifying.Config
    return make()


def _write_all(texts: Iterable[str], folder: Path, suffix: str) -> list[Path]:
    paths = [folder / f"{number}.{suffix}" for number, _ in enumerate(texts)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths
