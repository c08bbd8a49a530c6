"""Files of a hub. None can be reached from a test: a fake stands in, which the hub's own client reads the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.hub import Hub, hub
from segserve_builder.errors import ArtifactMissingError, SourceDeniedError, SourceUnauthorizedError
from segserve_builder.sources import Access, RetryPolicy, fetch, fetch_folder, folder_digest
from segserve_builder.sources.access import LOCAL, Credential

NET = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(NET).hexdigest()
ONCE = RetryPolicy(tries=1)
TOKEN = "hf_of-somebody-who-accepted"
GOLDEN = {"golden.json": b"{}", "images/a b.png": b"x", "images/b.png": NET, "images/c.png": b"z"}
FILES = {
    ("onnx/model.onnx", "main"): NET,
    ("config.json", "main"): b"{}",
    ("onnx/model.onnx", "v1.0"): NET[1:],
    ("onnx/model.onnx", "refs/pr/1"): NET[2:],
}


@pytest.fixture
def served() -> Iterator[Hub]:
    repositories = {
        "coins/net": FILES,
        "coins/gated": {("model.onnx", "main"): NET},
        "datasets/coins/set": {(f"v1/{path}", "main"): content for path, content in GOLDEN.items()},
    }
    with hub(Hub(repositories, gated=frozenset({"coins/gated"}), tokens=frozenset({TOKEN}))) as running:
        yield running


@pytest.fixture
def access(served: Hub) -> Access:
    """Return what reaches the hub by its endpoint, and its storage by name."""
    return Access(endpoints={"hf": served.url}, private=("127.0.0.2",))


def with_token(access: Access, folder: Path, token: str = TOKEN) -> Access:
    folder.mkdir()
    (folder / "token").write_text(f"{token}\n")
    return access.model_copy(update={"credentials": (Credential(scheme="hf", host="coins", folder=folder),)})


def test_the_fake_is_a_hub_to_the_hubs_own_client(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    got = hf_hub_download("coins/net", "onnx/model.onnx", cache_dir=tmp_path, endpoint=served.url)
    assert Path(got).read_bytes() == NET
    gated = hf_hub_download("coins/gated", "model.onnx", cache_dir=tmp_path, endpoint=served.url, token=TOKEN)
    assert Path(gated).read_bytes() == NET
    with pytest.raises(GatedRepoError):
        hf_hub_download("coins/gated", "model.onnx", cache_dir=tmp_path / "2", endpoint=served.url, token="hf_other")
    listed = HfApi(served.url).list_repo_tree("coins/set", "v1", repo_type="dataset", recursive=True)
    assert {f"v1/{path}" for path in GOLDEN} <= {entry.path for entry in listed}


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("hf://coins/net/onnx/model.onnx", NET),
        ("hf://coins/net@main/onnx/model.onnx", NET),
        ("hf://coins/net@v1.0/onnx/model.onnx", NET[1:]),
        ("hf://coins/net@refs%2Fpr%2F1/onnx/model.onnx", NET[2:]),
        ("hf://coins/net/config.json", b"{}"),
        ("hf://datasets/coins/set/v1/images/a%20b.png", b"x"),
    ],
)
def test_a_file_of_a_revision_is_fetched_from_wherever_the_hub_keeps_it(
    uri: str, content: bytes, access: Access, tmp_path: Path
) -> None:
    digest = hashlib.sha256(content).hexdigest()

    assert fetch(uri, digest, tmp_path, access, retry_policy=ONCE).read_bytes() == content


def test_the_token_is_for_the_hub_and_not_for_its_storage(served: Hub, access: Access, tmp_path: Path) -> None:
    allowed = with_token(access, tmp_path / "secret")

    assert fetch("hf://coins/gated/model.onnx", SHA256, tmp_path, allowed, retry_policy=ONCE).read_bytes() == NET
    assert [headers["Authorization"] for _, headers in served.seen] == [f"Bearer {TOKEN}"]
    assert [headers["Authorization"] for _, headers in served.stored] == [None]


@pytest.mark.parametrize("token", [None, "hf_of-somebody-else"])
def test_a_gated_repository_says_what_to_do(access: Access, token: str | None, tmp_path: Path) -> None:
    asking = with_token(access, tmp_path / "secret", token) if token else access

    with pytest.raises(SourceUnauthorizedError, match="accept its conditions on its page, and name a credential") as e:
        fetch("hf://coins/gated/model.onnx", SHA256, tmp_path, asking, retry_policy=ONCE)

    assert token is None or token not in str(e.value)


def test_the_users_own_token_counts_where_the_users_own_do(
    served: Hub, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", served.url)

    assert fetch("hf://coins/gated/model.onnx", SHA256, tmp_path, LOCAL, retry_policy=ONCE).read_bytes() == NET
    with pytest.raises(SourceUnauthorizedError):
        fetch("hf://coins/gated/model.onnx", SHA256, tmp_path / "other", access, retry_policy=ONCE)


@pytest.mark.parametrize(
    ("uri", "error", "seen"),
    [
        ("hf://coins/net/none.onnx", ArtifactMissingError, "404"),
        ("hf://coins/net@v9/onnx/model.onnx", ArtifactMissingError, "404"),
        ("hf://coins/nobody/model.onnx", SourceUnauthorizedError, "private, gated or not there"),
        ("hf://coins/net", ArtifactMissingError, "names a repository"),
        ("hf://model.onnx", ArtifactMissingError, "expected hf://org/repo"),
        ("hf://coins/net/../../x/model.onnx", ArtifactMissingError, "is not a file of a hub"),
        ("hf://coins/net/%2e%2e/model.onnx", ArtifactMissingError, "is not a file of a hub"),
    ],
)
def test_what_is_not_there_is_said(uri: str, error: type[Exception], seen: str, access: Access, tmp_path: Path) -> None:
    with pytest.raises(error, match=seen):
        fetch(uri, SHA256, tmp_path, access, retry_policy=ONCE)


def test_a_golden_set_is_a_folder_of_a_dataset(access: Access, tmp_path: Path) -> None:
    for path, content in GOLDEN.items():
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).write_bytes(content)
    digest = folder_digest(tmp_path / "set")

    found = fetch_folder("hf://datasets/coins/set/v1", digest, tmp_path / "cache", access, retry_policy=ONCE)

    assert folder_digest(found) == digest


def test_a_storage_that_is_not_allowed_is_not_asked(served: Hub, access: Access, tmp_path: Path) -> None:
    for changed in ({"private": ()}, {"hosts": ("coins",)}):
        with pytest.raises(SourceDeniedError, match=r"127\.0\.0\.2"):
            fetch("hf://coins/net/onnx/model.onnx", SHA256, tmp_path, access.model_copy(update=changed))
    with pytest.raises(SourceDeniedError, match="'others' is not allowed"):
        fetch("hf://others/net/x.onnx", SHA256, tmp_path, access.model_copy(update={"hosts": ("coins",)}))
    assert served.stored == []


def test_an_organisation_that_is_allowed_is_so_for_its_datasets(access: Access, tmp_path: Path) -> None:
    allowed = access.model_copy(update={"hosts": ("coins",)})

    got = fetch("hf://datasets/coins/set/v1/golden.json", hashlib.sha256(b"{}").hexdigest(), tmp_path, allowed)

    assert got.read_bytes() == b"{}"
    with pytest.raises(SourceDeniedError, match="'others' is not allowed"):
        fetch("hf://datasets/others/set/x.onnx", SHA256, tmp_path, allowed)
