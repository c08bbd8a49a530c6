"""Engines of TensorRT outlive a pod's server, and no engine that is cut off or of another GPU breaks a start."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.agent.runner import ActionResult, ActionRunner
from segserve_builder.agent.server import Repository, TritonRefusedError, TritonServer, TritonUnreachableError
from segserve_builder.agent.state import AssignedRevision, LoadStep, Prepare, Prepared, Prove, Remove
from segserve_builder.render.target import RenderTarget
from segserve_builder.sources.cache import JUST_FETCHED_S, FileLocks, evict
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_common.files import file_sha256

COINS = Path(__file__).parents[4] / "examples/coins/coins-unet.onnx"
T4, OTHER_DRIVER = (
    "Tesla T4, driver 550.54.15, compute capability 7.5",
    "Tesla T4, driver 575.51, compute capability 7.5",
)
A10 = "NVIDIA A10G, driver 550.54.15, compute capability 8.6"
WHOLE = b"engine" * 1000


def revision(**runtime: Any) -> AssignedRevision:
    pipeline = {
        "model": "coins",
        "artifactSha256": file_sha256(COINS),
        "family": "semantic-logits",
        "input": {"colour": "GREY"},
        "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}],
        "preprocess": [{"decode": {}}, {"resize": {"mode": "keep", "multipleOf": 16, "padding": "edge"}}],
        "postprocess": [],
        "output": {},
        "runtime": {"engine": "tensorrt", **runtime},
    }
    artifact = {"uri": COINS.as_uri(), "sha256": file_sha256(COINS)}
    return AssignedRevision.of(AssignedModel.model_validate({"pipeline": pipeline, "artifact": artifact}))


@cache
def answer(image: bytes) -> dict[str, Any]:
    return InProcessModel(revision().spec.pipeline, COINS).answer(image, RequestOptions(encoding="rle"))


class Pod:
    """A pod whose Triton loads a network as ONNX Runtime does: it reads an engine that is there, or builds one in
    place, and refuses one that is not whole.
    """

    def __init__(self, folder: Path, cache: Path, gpus: Sequence[str] = (T4,), **runtime: Any) -> None:
        self.folder, self.builds, self.dies = folder, 0, False
        self.assigned = revision(**runtime)
        self.runner = ActionRunner(
            cast(TritonServer, self),
            Repository(folder / "repository"),
            cache,
            folder / "log",
            RenderTarget.named("26.04", "onnxruntime"),
            gpus=lambda: tuple(gpus),
            gpu_count=lambda: 1,
        )
        prepared = self.carry_out(Prepare(self.assigned.revision, "coins")).prepared
        assert prepared is not None
        self.prepared: Prepared = prepared
        (self.net,) = prepared.tree.networks

    def carry_out(self, action: Any) -> ActionResult:
        return self.runner.carry_out(action, self.assigned, getattr(self, "prepared", None))

    @property
    def engines(self) -> Path:
        config = text_format.Parse((self.folder / "repository" / self.net / "config.pbtxt").read_text(), ModelConfig())
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        return Path(accelerator.parameters["trt_engine_cache_path"])

    def start(self) -> list[str]:
        """Load the network and prove the model; return the messages of what failed."""
        results = [self.carry_out(LoadStep(self.net))]
        if results[0].failure is None:
            results.append(self.carry_out(Prove(self.assigned.revision, "coins")))
        return [each.failure.message for each in results if each.failure is not None]

    def load(self, name: str) -> None:
        if self.dies:
            (self.engines / "net_sm75.engine").write_bytes(WHOLE[:100])
            raise TritonUnreachableError("killed")
        found = list(self.engines.glob("*.engine"))
        if any(engine.read_bytes() != WHOLE for engine in found):
            raise TritonRefusedError("INTERNAL", f"TensorRT EP could not deserialize engine from cache: {found[0]}")
        if not found:
            self.builds += 1
            for name, content in {"net_sm75.engine": WHOLE, "net_sm75.profile": b"p", "cache_sm75.timing": b""}.items():
                (self.engines / name).write_bytes(content)

    def infer(self, model: str, image: bytes, parameters: Any, timeout_s: float) -> Any:
        return {**answer(image), "REVISION": np.array([self.assigned.revision.encode()], np.object_)}

    def devices(self, step: str) -> tuple[str, ...]:
        return ("gpu",)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path: Path, kept: Path) -> Path:
    """What the cache has after one pod's server has proved the model."""
    first = Pod(tmp_path / "first", kept)
    assert (first.start(), first.builds) == ([], 1)
    (found,) = (kept / "engines").iterdir()
    return found


@pytest.mark.usefixtures("archive")
def test_the_next_pod_of_the_same_kind_builds_no_engine(tmp_path: Path, kept: Path) -> None:
    pod = Pod(tmp_path / "next", kept)

    assert (pod.start(), pod.builds) == ([], 0)
    assert {path.name for path in pod.engines.iterdir()} == {"net_sm75.engine", "net_sm75.profile", "cache_sm75.timing"}
    assert pod.engines.stat().st_mode & 0o777 == 0o775  # Triton is another user of the agent's group


@pytest.mark.parametrize(
    ("gpus", "runtime"),
    [
        ([A10], {}),
        ([OTHER_DRIVER], {}),
        ([f"2 x {T4}"], {}),
        ([T4], {"precision": "fp16"}),
        ([T4], {"maxBatchSize": 2}),
        ([], {}),
    ],
    ids=["another GPU", "another driver", "two GPUs", "another precision", "another batch", "a driver without answer"],
)
@pytest.mark.usefixtures("archive")
def test_a_pod_of_another_kind_builds_its_own_beside_it(
    tmp_path: Path, kept: Path, gpus: list[str], runtime: dict[str, Any]
) -> None:
    pod = Pod(tmp_path / "other", kept, gpus, **runtime)

    assert (pod.start(), pod.builds) == ([], 1)
    assert len(list((kept / "engines").iterdir())) == (2 if gpus else 1)


def test_the_name_of_a_step_is_the_same_on_every_node(tmp_path: Path, kept: Path) -> None:
    names = set()
    for gpu in (T4, A10):
        pod = Pod(tmp_path / "pod", kept, [gpu])
        assert pod.engines.parent == tmp_path / "pod/engines"
        names.add(pod.net)
        shutil.rmtree(tmp_path / "pod")
    assert len(names) == 1


def test_an_engine_is_kept_once_it_has_passed_a_proof(tmp_path: Path, kept: Path) -> None:
    pod = Pod(tmp_path / "pod", kept)

    pod.carry_out(LoadStep(pod.net))

    assert pod.builds == 1
    assert not (kept / "engines").exists()


def test_a_server_that_dies_while_it_writes_an_engine_loads_after_its_restart(tmp_path: Path, kept: Path) -> None:
    pod = Pod(tmp_path / "pod", kept)
    pod.dies = True
    pod.carry_out(LoadStep(pod.net))
    assert (pod.engines / "net_sm75.engine").read_bytes() == WHOLE[:100]

    pod.dies = False

    assert (pod.start(), pod.builds) == ([], 1)


def flipped(content: bytes) -> bytes:
    place = content.index(WHOLE)
    return content[:place] + b"E" + content[place + 1 :]


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: b"",
        lambda content: content[:2000],
        lambda content: content[:-40],
        flipped,
        lambda _: b"x" * 9999,
    ],
    ids=["empty", "cut off", "without its end", "another byte", "something else"],
)
def test_a_damaged_archive_costs_a_build_and_is_replaced(
    tmp_path: Path, kept: Path, archive: Path, damaged: Callable[[bytes], bytes]
) -> None:
    archive.write_bytes(damaged(archive.read_bytes()))

    pod, after = Pod(tmp_path / "next", kept), Pod(tmp_path / "after", kept)

    assert (pod.start(), pod.builds) == ([], 1)
    assert (after.start(), after.builds) == ([], 0)


def test_an_engine_that_tensorrt_refuses_is_built_again_at_the_next_attempt(tmp_path: Path, kept: Path) -> None:
    first, pod = Pod(tmp_path / "first", kept), Pod(tmp_path / "pod", kept)
    first.dies = True
    first.carry_out(LoadStep(first.net))
    first.runner.engines.keep([first.net])  # whole as an archive, and not as an engine

    (failure,) = pod.start()

    assert "could not deserialize engine" in failure
    assert (pod.start(), pod.builds) == ([], 1)


def test_a_link_that_triton_leaves_among_its_engines_is_not_followed(tmp_path: Path, kept: Path) -> None:
    pod, secret = Pod(tmp_path / "pod", kept), tmp_path / "token"
    secret.write_text("secret")
    pod.carry_out(LoadStep(pod.net))
    (pod.engines / "token.profile").symlink_to(secret)
    (pod.engines / "token").write_text("no engine")

    assert pod.carry_out(Prove(pod.assigned.revision, "coins")).failure is None
    assert not list((kept / "engines").iterdir())


def test_a_cache_that_cannot_be_written_fails_no_proof(tmp_path: Path, kept: Path) -> None:
    kept.mkdir()
    (kept / "engines").write_text("not a folder")

    pod = Pod(tmp_path / "pod", kept)

    assert (pod.start(), pod.builds) == ([], 1)


def test_engines_that_no_revision_names_are_evicted_as_artifacts_are(tmp_path: Path, kept: Path) -> None:
    pod, locks = Pod(tmp_path / "pod", kept), FileLocks()
    pod.start()
    (archive,) = pod.runner.engines.archives.values()
    unused_s = time.time() - JUST_FETCHED_S - 100
    os.utime(archive, (unused_s, unused_s))

    locks.keep(pod.runner.engines.archives.values())
    assert archive not in evict(kept, 0)

    pod.carry_out(Remove(pod.net))
    locks.keep(pod.runner.engines.archives.values())
    assert archive in evict(kept, 0)
    assert not archive.exists()
