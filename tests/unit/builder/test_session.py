"""Runs of a network's file: of one image, and of the images of a batch, at the same time or together."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segserve_builder.errors import BadImageError
from segserve_builder.spec.model_spec import Engine
from segserve_builder.steps.session import NetworkSession, ParallelSession, open_session
from segserve_builder.steps.step_options import NetOptions

CORES = 4


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))


def network(folder: Path, kind: str) -> Path:
    """Two convolutions with `free` or `fixed` batch; with `none`, the positions of what the first gives above 0."""
    weights = np.random.default_rng(0)
    tensors = {"w": (16, 3, 5, 5), "v": (4, 16, 3, 3)}
    values = [numpy_helper.from_array(weights.normal(size=s).astype(np.float32), name) for name, s in tensors.items()]
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["a", "v"], ["y"])]
    shape: list[Any] = [{"free": "n"}.get(kind, 1), 3, "h", "w"]
    found = helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 4, "i", "j"])
    if kind == "none":
        nodes[1:] = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("NonZero", ["b"], ["y"])]
        found = helper.make_tensor_value_info("y", TensorProto.INT64, [4, "k"])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", [given], [found], values[: len(values) - (kind == "none")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return folder / "model.onnx"


def opened(path: Path, kind: str, threads: int = 0, engine: Engine | None = None) -> NetworkSession:
    options = NetOptions(
        artifact_sha256="a" * 64,
        input="x",
        outputs=("y",),
        batched=kind != "none",
        layout="NCHW",
        inference=(),
        inference_versions=(),
        max_batch_size=8,
        intra_op_threads=threads,
        engine=engine,
    )
    return NetworkSession(path, options)


@pytest.mark.parametrize(
    ("kind", "threads", "engine"),
    [*((kind, threads, None) for kind in ("free", "fixed", "none") for threads in (0, 1)), ("fixed", 0, "openvino")],
)
def test_an_image_gets_the_answer_in_any_batch_that_it_gets_alone(
    tmp_path: Path, kind: str, threads: int, engine: Engine | None
) -> None:
    session = opened(network(tmp_path, kind), kind, threads, engine)
    images = np.random.default_rng(1).normal(size=(11, 1, 3, 40, 56)).astype(np.float32)

    alone = [session.run(image)["y"] for image in images]

    for count in (2, 4, 7, 11):
        answers = [answer["y"] for answer in session.run_each([(image,) for image in images[:count]])]
        assert all(map(np.array_equal, answers, alone[:count]))


@pytest.mark.parametrize(
    ("threads", "count", "is_parallel"), [(0, CORES - 1, False), (0, CORES, True), (1, CORES, False)]
)
def test_images_have_a_thread_each_if_there_is_one_for_each_core_and_their_number_is_open(
    tmp_path: Path, threads: int, count: int, is_parallel: bool
) -> None:
    session, before = opened(network(tmp_path, "free"), "free", threads), set(threading.enumerate())

    for images in (1, count):
        session.run(np.zeros((images, 3, 40, 56), np.float32))

    started = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("image")]
    assert bool(started) is is_parallel


@pytest.mark.parametrize(("limit", "threads", "used"), [("1", 0, 1), ("1", 3, 3), ("", 0, 0)])
def test_a_session_has_the_threads_of_the_containers_limit_unless_their_number_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, threads: int, used: int
) -> None:
    monkeypatch.setenv("SEGSERVE_CPUS", limit)

    session = open_session(network(tmp_path, "free"), threads)

    assert session.get_session_options().intra_op_num_threads == used


@pytest.mark.parametrize(
    ("images", "single", "batches"), [(1, 0, 0), (2, 2, 0), (3, 3, 0), (4, 4, 4), (5, 4, 4), (7, 7, 4), (8, 8, 8)]
)
def test_images_left_over_from_full_cores_have_all_threads(images: int, single: int, batches: int) -> None:
    session = ParallelSession(Path("unread.onnx"))

    assert [session.share(images, is_single=is_single) for is_single in (True, False)] == [single, batches]


@pytest.mark.parametrize(
    ("count", "says"), [(0, "the batch has no images"), (2, "outputs differ in shape by image .* one image a request")]
)
def test_a_batch_that_has_no_common_answer_is_its_callers_fault(tmp_path: Path, count: int, says: str) -> None:
    images = np.random.default_rng(2).normal(size=(count, 3, 40, 56)).astype(np.float32)

    with pytest.raises(BadImageError, match=says):
        opened(network(tmp_path, "none"), "none").run(images)
