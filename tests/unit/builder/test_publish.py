"""Publishing into a repository: by one rename, never half, whatever fails."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segserve_builder.errors import PublishError, StepConflictError
from segserve_builder.render.repository import publish, publish_tree, remove, replace, sweep
from segserve_builder.render.tree import Tree


class Crash(BaseException):
    """The process dies: no handler of ours may run as if it were an error."""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "objects" / "artifact"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    path.chmod(0o444)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def tree(revision: str, artifact: Path) -> Tree:
    return Tree(
        steps={
            "pre": {"config.pbtxt": b"shared", "1/model.py": b"code", "1/__pycache__": b""},
            f"net-{revision}": {"config.pbtxt": b"net", "1/model.onnx": artifact},
        },
        ensemble=("coins", {"config.pbtxt": revision.encode(), "1/.keep": b""}),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_tree_is_published_whole_and_nothing_else_is_left(artifact: Path, repository: Path, tmp_path: Path) -> None:
    publish_tree(tree("r1", artifact), repository)

    assert contents(repository) == {
        "pre/config.pbtxt": b"shared",
        "pre/1/model.py": b"code",
        "pre/1/__pycache__": b"",
        "net-r1/config.pbtxt": b"net",
        "net-r1/1/model.onnx": b"weights",
        "coins/config.pbtxt": b"r1",
        "coins/1/.keep": b"",
    }
    assert list((tmp_path / ".repository-staging").iterdir()) == []


def test_publishing_again_touches_no_file(artifact: Path, repository: Path) -> None:
    """Triton takes a newer ctime for a modification and would reload what serves."""
    publish_tree(tree("r1", artifact), repository)
    before = {path: path.stat().st_ctime_ns for path in repository.rglob("*")}

    publish_tree(tree("r1", artifact), repository)

    assert {path: path.stat().st_ctime_ns for path in repository.rglob("*")} == before


def test_a_new_revision_leaves_shared_steps_and_old_ones_untouched(artifact: Path, repository: Path) -> None:
    publish_tree(tree("r1", artifact), repository)
    before = {path: path.stat().st_ctime_ns for name in ("pre", "net-r1") for path in (repository / name).rglob("*")}

    publish_tree(tree("r2", artifact), repository)

    assert {path: path.stat().st_ctime_ns for path in before} == before
    assert (repository / "coins/config.pbtxt").read_bytes() == b"r2"


def test_artifacts_share_no_inode_with_the_cache(artifact: Path, repository: Path) -> None:
    """A link made or removed elsewhere would change the ctime of the served file."""
    publish_tree(tree("r1", artifact), repository)

    assert artifact.stat().st_nlink == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("config.pbtxt", b"other", id="other content"),
        pytest.param("1/more.py", b"", id="a file more"),
        pytest.param("1/model.onnx", b"short", id="an artifact of another size"),
    ],
)
def test_an_immutable_step_is_never_overwritten(artifact: Path, repository: Path, name: str, content: bytes) -> None:
    publish_tree(tree("r1", artifact), repository)
    (repository / "net-r1" / name).write_bytes(content)

    with pytest.raises(StepConflictError, match=name):
        publish_tree(tree("r1", artifact), repository)

    assert (repository / "net-r1" / name).read_bytes() == content


def test_removing_is_whole_and_idempotent(artifact: Path, repository: Path, tmp_path: Path) -> None:
    publish_tree(tree("r1", artifact), repository)

    remove(repository / "net-r1")
    remove(repository / "net-r1")

    assert sorted(path.name for path in repository.iterdir()) == ["coins", "pre"]
    assert list((tmp_path / ".repository-staging").iterdir()) == []


class DyingDisk:
    """Counts the writes of a publication and raises `error` at write number `die_at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, die_at: int, error: BaseException) -> None:
        self.count, self._die_at, self._error = 0, die_at, error
        for owner, name in (
            (Path, "mkdir"),
            (Path, "write_bytes"),
            (shutil, "copyfile"),
            (Path, "rename"),
            (Path, "replace"),
        ):
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name)))
        # Counted, and not done: no power is cut here, and each costs milliseconds.
        monkeypatch.setattr(os, "fsync", self._wrap(lambda _: None))

    def _wrap(self, write):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == self._die_at:
                raise self._error
            return write(*args, **kwargs)

        return wrapped


def writes_of_an_update(artifact: Path, repository: Path) -> int:
    publish_tree(tree("r1", artifact), repository)
    with pytest.MonkeyPatch.context() as patch:
        disk = DyingDisk(patch, -1, Crash())
        publish_tree(tree("r2", artifact), repository)
        return disk.count


def assert_old_or_new(repository: Path, artifact: Path) -> None:
    """Each folder is complete, and the ensemble names only steps that are there."""
    held = contents(repository)
    for name in {path.split("/")[0] for path in held} - {"coins"}:
        whole = {**tree("r1", artifact).steps, **tree("r2", artifact).steps}[name]
        assert {path for path in held if path.startswith(f"{name}/")} == {f"{name}/{path}" for path in whole}
    revision = held["coins/config.pbtxt"].decode()
    assert revision in ("r1", "r2")
    assert f"net-{revision}/1/model.onnx" in held
    assert "net-r1/1/model.onnx" in held


@pytest.mark.parametrize(
    "error",
    [Crash(), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")],
    ids=["crash", "ENOSPC", "EIO"],
)
def test_failing_at_any_write_leaves_the_old_tree_or_the_new_one(
    artifact: Path, tmp_path: Path, error: BaseException
) -> None:
    total = writes_of_an_update(artifact, tmp_path / "counted")
    for die_at in range(1, total + 1):
        repository = tmp_path / f"run{die_at}" / "repository"
        publish_tree(tree("r1", artifact), repository)

        with pytest.MonkeyPatch.context() as patch:
            DyingDisk(patch, die_at, error)
            with pytest.raises(Crash if isinstance(error, Crash) else PublishError) as raised:
                publish_tree(tree("r2", artifact), repository)

        if isinstance(error, OSError):
            assert errno.errorcode[error.errno] in str(raised.value)
            assert raised.value.retryable
        assert_old_or_new(repository, artifact)
        sweep(repository)
        publish_tree(tree("r2", artifact), repository)
        assert (repository / "coins/config.pbtxt").read_bytes() == b"r2"


def test_sweeping_deletes_what_a_killed_writer_left(artifact: Path, repository: Path, tmp_path: Path) -> None:
    staging = tmp_path / ".repository-staging"
    (staging / "half" / "net-r1").mkdir(parents=True)

    sweep(repository)
    sweep(repository)

    assert not staging.exists()
    publish_tree(tree("r1", artifact), repository)


def test_models_that_share_a_step_can_be_published_at_the_same_time(artifact: Path, repository: Path) -> None:
    barrier = threading.Barrier(8)

    def one(_: int) -> None:
        barrier.wait()
        publish({"config.pbtxt": b"shared", "1/model.onnx": artifact}, repository / "shared")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))

    assert contents(repository) == {"shared/config.pbtxt": b"shared", "shared/1/model.onnx": b"weights"}


def test_a_repository_that_cannot_be_written_is_a_publish_error(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(PublishError, match="cannot be written"):
        publish({"config.pbtxt": b""}, tmp_path / "file" / "step")


def test_a_mutable_name_of_equal_content_is_not_renamed_over(repository: Path) -> None:
    files = {"config.pbtxt": b"same", "1/.keep": b""}
    replace(files, repository / "coins")
    before = (repository / "coins/config.pbtxt").stat().st_ino

    replace(files, repository / "coins")

    assert (repository / "coins/config.pbtxt").stat().st_ino == before
