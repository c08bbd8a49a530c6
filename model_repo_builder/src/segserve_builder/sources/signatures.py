"""Signatures of files that servers fetch: model-signing bundles, verified before anything else reads the file."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from segserve_builder.errors import MissingPackageError, SignatureRejectedError
from segserve_builder.sources import fetch, fetch_unpinned
from segserve_builder.sources.access import Access, Signatures
from segserve_builder.sources.archives import is_archive
from segserve_builder.spec.model_spec import Artifact

SUFFIX: Final = ".sig"
_MAX_BUNDLE_BYTES: Final = 4 * 2**20


def verify(artifact: Artifact, file: Path, access: Access) -> None:
    """Check that `file`, the artifact's verified copy, has a signature that `access.signatures` trusts.

    Does nothing if the artifact names no signature and `access` does not require one. The bundle is at
    `artifact.signature.uri`, by default at the artifact's URI followed by `.sig`. `access.floor` also holds: what it
    requires, no pool can do without. Raises `SignatureRejectedError`, and what `fetch` raises if the bundle cannot be
    fetched.
    """
    uri = artifact.signature.uri if artifact.signature is not None else artifact.uri + SUFFIX
    _verify(uri, file, access, is_named=artifact.signature is not None)


def verify_golden(uri: str, sha256: str, folder: Path, cache: Path, access: Access) -> None:
    """Check the signature of a golden set at `uri`, whose verified copy is `folder`, if `access` requires one.

    It is beside the set, with `.sig` after its URI, and of the folder or of the file of an archive. Raises as `verify`
    does.
    """
    if access.signatures.required or access.floor.required:
        signed = fetch(uri, sha256, cache, access) if is_archive(uri) else folder
        _verify(uri.rstrip("/") + SUFFIX, signed, access, is_named=False)


def _verify(uri: str, signed: Path, access: Access, *, is_named: bool) -> None:
    demands = [access.signatures] if is_named or access.signatures.required else []
    demands += [access.floor] if access.floor.required else []
    if not demands:
        return
    # If the operator's settings name trusted signers, a pool that only demands a signature need not name any.
    if not _names_signers(demands[-1]):
        raise SignatureRejectedError(
            "a signature is required, but no signer is trusted: name keys, certificates or identities"
        )
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle.sig"
        bundle.write_bytes(fetch_unpinned(uri, access, _MAX_BUNDLE_BYTES))
        for number, trusted in enumerate(filter(_names_signers, demands)):
            own = Path(folder) / str(number)
            own.mkdir()
            _check(signed, bundle, uri, list(_verifiers(trusted, own)))
            _check_time(bundle, uri, trusted)


def _names_signers(trusted: Signatures) -> bool:
    return bool(trusted.keys or trusted.certificates or trusted.identities)


def _check_time(bundle: Path, uri: str, trusted: Signatures) -> None:
    """Raise `SignatureRejectedError` unless the signer's certificate began at `trusted.not_before` or later.

    The signature is not older than that. The certificates of sigstore are made for one signature.
    """
    if trusted.not_before is None:
        return
    from cryptography.x509 import load_der_x509_certificate

    material = json.loads(bundle.read_bytes())["verificationMaterial"]
    chain = material.get("x509CertificateChain", {}).get("certificates", [material.get("certificate")])
    if not chain or chain[0] is None:
        raise SignatureRejectedError(f"{uri!r} is by a key, which has no time; notBefore needs a certificate")
    began = load_der_x509_certificate(base64.b64decode(chain[0]["rawBytes"])).not_valid_before_utc
    if began < trusted.not_before:
        raise SignatureRejectedError(
            f"{uri!r} may be as old as its certificate, of {began:%Y-%m-%d}; allowed from {trusted.not_before:%Y-%m-%d}"
        )


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
