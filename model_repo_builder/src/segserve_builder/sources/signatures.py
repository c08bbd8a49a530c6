"""Who signed an artifact: model-signing bundles, checked before anything reads the file."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import MissingPackageError, SignatureRejectedError
from segserve_builder.sources import fetch_unpinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from segserve_builder.sources.access import Access, Signatures
    from segserve_builder.spec.model_spec import Artifact

SUFFIX: Final = ".sig"
_LARGEST: Final = 4 * 2**20


def verify(artifact: Artifact, file: Path, access: Access) -> None:
    """Check that `file`, the artifact's verified copy, was signed by one of those whom `access.signatures` trusts.

    Does nothing where neither the artifact names a signature nor `access` demands one. The bundle is at
    `artifact.signature.uri`, else at the artifact's URI with `.sig` behind it. Raises `SignatureRejectedError`, and
    what `fetch` raises where the bundle cannot be had.
    """
    trusted = access.signatures
    if artifact.signature is None and not trusted.required:
        return
    if not (trusted.keys or trusted.certificates or trusted.identities):
        raise SignatureRejectedError(
            "a signature is demanded, and nobody is trusted: name keys, certificates or identities"
        )
    uri = artifact.signature.uri if artifact.signature is not None else artifact.uri + SUFFIX
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle.sig"
        bundle.write_bytes(fetch_unpinned(uri, access, _LARGEST))
        _check(file, bundle, uri, list(_verifiers(trusted, Path(folder))))


def _check(file: Path, bundle: Path, uri: str, verifiers: list[tuple[str, Callable[[], Any]]]) -> None:
    refusals = []
    for who, verifier in verifiers:
        try:
            verifier().verify(file, bundle)
        except Exception as error:  # the library raises whatever its parsers do
            refusals.append(f"{who}: {' '.join(str(error).split())[:200] or type(error).__name__}")
        else:
            return
    raise SignatureRejectedError(f"{uri!r} is no signature of this file by anybody trusted: {'; '.join(refusals)}")


def _verifiers(trusted: Signatures, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield who may have signed, in words, with what makes the library's verifier of it."""
    for number, path in enumerate(_written(trusted.keys, folder, "pub"), 1):
        yield f"key {number}", partial(_config().use_elliptic_key_verifier, public_key=path)
    if trusted.certificates:
        chain = _written(trusted.certificates, folder, "pem")
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


def _written(texts: Iterable[str], folder: Path, suffix: str) -> list[Path]:
    paths = [folder / f"{number}.{suffix}" for number, _ in enumerate(texts)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths
