"""Files of mounted claims: whole, resumable, and never outside of their claim."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from segserve_builder.errors import ArtifactMissingError, SourceDeniedError
from segserve_builder.sources.access import Access
from segserve_builder.sources.file import PvcSource

SOURCE = PvcSource()


@pytest.fixture
def access(tmp_path: Path) -> Access:
    """Two claims, and a secret of the machine beside them."""
    claims = tmp_path / "claims"
    for path, content in (("models/a/net.onnx", "network"), ("models/a b.txt", "spaced"), ("other/x", "other")):
        (claims / path).parent.mkdir(parents=True, exist_ok=True)
        (claims / path).write_text(content)
    (tmp_path / "secret").write_text("secret")
    return Access(claims=claims)


def read(uri: str, access: Access, start: int = 0) -> bytes:
    with SOURCE.open(uri, access, start) as stream:
        return stream.read(100)


def test_files_are_read_from_any_place_on(access: Access) -> None:
    assert read("pvc://models/a/net.onnx", access) == b"network"
    assert read("pvc://models/a/net.onnx", access, 3) == b"work"
    assert read("pvc://models/a%20b.txt", access) == b"spaced"


def test_a_folder_names_its_files(access: Access) -> None:
    assert sorted(SOURCE.files("pvc://models", access)) == ["a b.txt", "a/net.onnx"]
    assert list(SOURCE.files("pvc://models/a/", access)) == ["net.onnx"]
    with pytest.raises(ArtifactMissingError):
        list(SOURCE.files("pvc://models/gone", access))


@pytest.mark.parametrize("path", ["gone", "a", ""])
def test_what_is_no_file_is_missing(access: Access, path: str) -> None:
    with pytest.raises(ArtifactMissingError, match="an artifact is a regular file"):
        read(f"pvc://models/{path}", access)


@pytest.mark.parametrize(
    "uri",
    [
        "pvc://models/../other/x",
        "pvc://models/%2e%2e/other/x",
        "pvc://models/a/../a/net.onnx",
        "pvc://models/x%00y",
        "pvc://../secret",
        "pvc://./models/a/net.onnx",
        "pvc://%2e%2e/secret",
        "pvc:///models/a/net.onnx",
        "pvc://unlisted/x",
    ],
)
def test_what_leaves_a_claim_is_denied(access: Access, uri: str) -> None:
    for use in (read, lambda *asked: list(SOURCE.files(*asked))):
        with pytest.raises(SourceDeniedError):
            use(uri, access)


@pytest.mark.parametrize("target", ["{root}/secret", "../../secret", "../other/x", "{root}"])
def test_a_link_out_of_a_claim_is_denied(access: Access, tmp_path: Path, target: str) -> None:
    (tmp_path / "claims/models/link").symlink_to(target.format(root=tmp_path))

    for path in ("link", "link/secret"):
        with pytest.raises(SourceDeniedError, match="leaves its claim by a symbolic link"):
            read(f"pvc://models/{path}", access)


def test_a_link_within_a_claim_is_followed(access: Access, tmp_path: Path) -> None:
    (tmp_path / "claims/models/current").symlink_to("a")

    assert read("pvc://models/current/net.onnx", access) == b"network"


def test_special_files_are_no_artifacts(access: Access, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "claims/models/pipe")

    with pytest.raises(ArtifactMissingError, match="a special file"):
        read("pvc://models/pipe", access)


def test_claims_are_allowed_by_name(access: Access) -> None:
    with pytest.raises(SourceDeniedError, match="'other' is not allowed; allowed: models"):
        read("pvc://other/x", access.model_copy(update={"hosts": ("models",)}))


def test_an_unknown_claim_is_told_with_those_there_are(access: Access) -> None:
    with pytest.raises(SourceDeniedError, match=r"'mine' is not one of the pool's; .* models, other"):
        read("pvc://mine/x", access)
