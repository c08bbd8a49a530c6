"""Who signed an artifact: bundles of the real model-signing, keys and certificates made on the spot."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from segserve_builder.errors import ArtifactMissingError, SignatureRejectedError
from segserve_builder.sources import folder_digest
from segserve_builder.sources.access import LOCAL, Access, Signatures
from segserve_builder.sources.signatures import verify, verify_golden
from segserve_builder.spec.model_spec import Artifact, Signature

CONTENT = b"a network" * 1000


def run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)


def sign(folder: Path, *how: str) -> None:
    signer = Path(sys.executable).with_name("model_signing")
    run(str(signer), "sign", *how, "--signature", "net.onnx.sig", "net.onnx", cwd=folder)


def keys(folder: Path, name: str) -> str:
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name, cwd=folder)
    run("openssl", "ec", "-in", name, "-pubout", "-out", f"{name}.pub", cwd=folder)
    return (folder / f"{name}.pub").read_text()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    (folder / "net.onnx").write_bytes(CONTENT)
    keys(folder, "own.pem")
    keys(folder, "other.pem")
    sign(folder, "key", "--private_key", "own.pem")
    return folder


def artifact(folder: Path, *, names_it: bool = True) -> Artifact:
    bundle = Signature(uri=str(folder / "net.onnx.sig")) if names_it else None
    return Artifact(uri=str(folder / "net.onnx"), sha256=hashlib.sha256(CONTENT).hexdigest(), signature=bundle)


def access_for(**signatures: object):
    return LOCAL.model_copy(update={"signatures": Signatures(**signatures)})


def public(folder: Path, name: str) -> str:
    return (folder / f"{name}.pem.pub").read_text()


@pytest.mark.parametrize("names_it", [True, False], ids=["named by the model", "beside the artifact"])
def test_a_file_signed_by_a_trusted_key_is_accepted_whatever_the_other_keys_are(signed: Path, names_it: bool) -> None:
    trusted = access_for(required=True, keys=(public(signed, "other"), public(signed, "own")))

    verify(artifact(signed, names_it=names_it), signed / "net.onnx", trusted)


def test_a_file_signed_by_nobody_trusted_is_rejected_and_says_whose_keys_were_tried(signed: Path) -> None:
    with pytest.raises(SignatureRejectedError, match=r"net.onnx.sig.*key 1: Key mismatch"):
        verify(artifact(signed), signed / "net.onnx", access_for(keys=(public(signed, "other"),)))


def test_other_bytes_than_the_signed_ones_are_rejected(signed: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "net.onnx"
    swapped.write_bytes(CONTENT + b"!")

    with pytest.raises(SignatureRejectedError, match="Signature mismatch"):
        verify(artifact(signed), swapped, access_for(keys=(public(signed, "own"),)))


def test_a_demanded_signature_that_is_not_there_stops_the_artifact(signed: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(CONTENT)

    with pytest.raises(ArtifactMissingError, match=r"net.onnx.sig"):
        verify(
            artifact(tmp_path, names_it=False),
            tmp_path / "net.onnx",
            access_for(required=True, keys=(public(signed, "own"),)),
        )


def test_a_demand_without_anybody_trusted_is_said(signed: Path) -> None:
    with pytest.raises(SignatureRejectedError, match="no signer is trusted"):
        verify(artifact(signed), signed / "net.onnx", LOCAL)


def test_where_nobody_demands_a_signature_none_is_looked_for(tmp_path: Path) -> None:
    verify(artifact(tmp_path, names_it=False), tmp_path / "net.onnx", access_for(keys=("not even a key",)))


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00garbage", b"[" * 1000], ids=["empty", "object", "bytes", "deep"])
def test_a_bundle_that_is_none_is_rejected(signed: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx.sig").write_bytes(content)

    with pytest.raises(SignatureRejectedError, match="not a signature"):
        verify(artifact(tmp_path), signed / "net.onnx", access_for(keys=(public(signed, "own"),)))


def test_a_key_that_is_none_is_rejected_and_says_so(signed: Path) -> None:
    with pytest.raises(SignatureRejectedError, match="key 1"):
        verify(artifact(signed), signed / "net.onnx", access_for(keys=("-----BEGIN PUBLIC KEY-----",)))


def test_a_certificate_of_a_trusted_authority_is_accepted_and_another_authority_is_not(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(CONTENT)
    for name in ("ca", "stranger"):
        keys(tmp_path, f"{name}.key")
        run(
            "openssl", "req", "-x509", "-new", "-key", f"{name}.key", "-subj", f"/CN={name}", "-days", "30",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
            "-out", f"{name}.crt", cwd=tmp_path,
        )  # fmt: skip
    keys(tmp_path, "leaf.key")
    (tmp_path / "leaf.ext").write_text("keyUsage=critical,digitalSignature\nextendedKeyUsage=codeSigning\n")
    run("openssl", "req", "-new", "-key", "leaf.key", "-subj", "/CN=signer", "-out", "leaf.csr", cwd=tmp_path)
    run(
        "openssl", "x509", "-req", "-in", "leaf.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "30",
        "-extfile", "leaf.ext", "-out", "leaf.crt", cwd=tmp_path,
    )  # fmt: skip
    sign(
        tmp_path, "certificate", "--private_key", "leaf.key",
        "--signing_certificate", "leaf.crt", "--certificate_chain", "ca.crt",
    )  # fmt: skip
    authority, stranger = ((tmp_path / f"{name}.crt").read_text() for name in ("ca", "stranger"))

    verify(artifact(tmp_path), tmp_path / "net.onnx", access_for(certificates=(authority,)))
    with pytest.raises(SignatureRejectedError, match="certificates"):
        verify(artifact(tmp_path), tmp_path / "net.onnx", access_for(certificates=(stranger,)))

    earlier, later = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))
    fresh, stale = (access_for(certificates=(authority,), not_before=time) for time in (earlier, later))
    verify(artifact(tmp_path), tmp_path / "net.onnx", fresh)
    with pytest.raises(SignatureRejectedError, match="as old as its certificate"):
        verify(artifact(tmp_path), tmp_path / "net.onnx", stale)


# What the operator demands of all pools


def floored(folder: Path, name: str, **own: object) -> Access:
    floor = Signatures(required=True, keys=(public(folder, name),))
    return access_for(**own).model_copy(update={"floor": floor})


@pytest.mark.parametrize("own", [{}, {"required": True}], ids=["nothing", "a signature"])
def test_a_pool_that_demands_nothing_needs_the_signature_that_the_operator_demands(
    signed: Path, tmp_path: Path, own: dict[str, bool]
) -> None:
    verify(artifact(signed, names_it=False), signed / "net.onnx", floored(signed, "own", **own))

    (tmp_path / "net.onnx").write_bytes(CONTENT)
    with pytest.raises(ArtifactMissingError, match=r"net.onnx.sig"):
        verify(artifact(tmp_path, names_it=False), tmp_path / "net.onnx", floored(signed, "own", **own))


def test_a_pools_own_signers_do_not_count_for_what_the_operator_demands(signed: Path) -> None:
    access = floored(signed, "other", keys=(public(signed, "own"),))

    for names_it in (True, False):
        with pytest.raises(SignatureRejectedError, match="key 1"):
            verify(artifact(signed, names_it=names_it), signed / "net.onnx", access)


def test_a_golden_set_needs_a_signature_as_well(signed: Path, tmp_path: Path) -> None:
    golden, cache = tmp_path / "golden", tmp_path / "cache"
    golden.mkdir()
    (golden / "golden.json").write_text("{}")
    verify_golden(str(golden), folder_digest(golden), golden, cache, LOCAL)
    access = access_for(required=True, keys=(public(signed, "own"),))
    with pytest.raises(ArtifactMissingError, match=r"golden\.sig"):
        verify_golden(str(golden), folder_digest(golden), golden, cache, access)

    signer = str(Path(sys.executable).with_name("model_signing"))
    key = str(signed / "own.pem")
    run(signer, "sign", "key", "--private_key", key, "--signature", "golden.sig", "golden", cwd=tmp_path)
    verify_golden(str(golden), folder_digest(golden), golden, cache, access)

    (golden / "more.png").write_bytes(b"")
    with pytest.raises(SignatureRejectedError):
        verify_golden(str(golden), folder_digest(golden), golden, cache, access)


def test_a_signature_by_a_key_is_of_no_time(signed: Path) -> None:
    access = access_for(keys=(public(signed, "own"),), not_before=datetime(2026, 1, 1, tzinfo=UTC))

    with pytest.raises(SignatureRejectedError, match="a key, which has no time"):
        verify(artifact(signed), signed / "net.onnx", access)
