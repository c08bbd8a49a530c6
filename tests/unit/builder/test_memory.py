"""The memory of a step's process: its limit, what becomes of an allocation beyond it, and what comes after."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from segserve_builder.memory import (
    SERVER_MALLOC,
    STEP_LIMIT_VARIABLE,
    StepMemoryError,
    available_bytes,
    step_limit_bytes,
)

MIB = 2**20
CORES = len(os.sched_getaffinity(0))
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_limit_counts_where_it_is_less_than_the_machine_has(tmp_path: Path, file: str) -> None:
    limit = tmp_path / file
    limit.parent.mkdir(exist_ok=True)
    seen = []
    for text in (str(MACHINE // 2), str(2**63 - 4096), "max\n"):
        limit.write_text(text)
        seen.append(available_bytes(tmp_path))

    assert seen == [MACHINE // 2, MACHINE, MACHINE]


def test_a_step_gets_a_quarter_but_at_least_a_gibibyte(tmp_path: Path) -> None:
    assert step_limit_bytes({}, tmp_path) == max(MACHINE // 4, 1024 * MIB)

    (tmp_path / "memory.max").write_text(str(512 * MIB))

    assert step_limit_bytes({}, tmp_path) == 1024 * MIB


def test_the_environment_decides_a_steps_limit() -> None:
    assert step_limit_bytes({STEP_LIMIT_VARIABLE: str(300 * MIB)}) == 300 * MIB


@pytest.mark.parametrize("text", ["", "2Gi", "-1", "1e9", "100", "\u0663"])
def test_a_limit_that_is_no_number_of_bytes_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(
        StepMemoryError, match=f"{re.escape(repr(text))}; allowed are numbers of bytes from 268435456 on"
    ):
        step_limit_bytes({STEP_LIMIT_VARIABLE: text})


RUN = """
import sys
from pathlib import Path
import numpy as np
from segserve_builder.memory import is_out_of_memory, limit_allocations
from segserve_builder.steps.session import NetworkSession
from segserve_builder.steps.step_options import NetOptions

def resident():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

options = NetOptions(
    artifact_sha256="a" * 64, input="x", outputs=("y",), batched=True, layout="NCHW", inference=(),
    inference_versions=(), max_batch_size=8, intra_op_threads=int(sys.argv[2]),
)
session = NetworkSession(Path(sys.argv[1]), options)
before = resident()
print("limit", limit_allocations())
for size in map(int, sys.argv[4:]):
    if sys.argv[3] != "1":
        try:
            session.run_each([[np.ones((1, 1, size, size), np.float32)]] * int(sys.argv[3]))
        except MemoryError:
            pass
    try:
        answer = session.run(np.ones((1, 1, size, size), np.float32))["y"].shape
    except MemoryError as error:
        answer = "refused" if is_out_of_memory(error) else repr(error)
    print(size, answer, "" if resident() - before < 64 else "held")
"""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network that needs 256 bytes a pixel: 64 channels of FP32 between its input and its output."""
    widen = helper.make_tensor("w", TensorProto.FLOAT, (64, 1, 1, 1), [1.0] * 64)
    narrow = helper.make_tensor("n", TensorProto.FLOAT, (1, 64, 1, 1), [1.0] * 64)
    shape = (None, 1, None, None)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["a", "n"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [widen, narrow],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def run(network: Path, *sizes: int, limit_bytes: int = 512 * MIB, threads: int = 1, batch: int = 1) -> list[str]:
    environment = {**os.environ, STEP_LIMIT_VARIABLE: str(limit_bytes)}
    command = [sys.executable, "-c", RUN, str(network), *map(str, (threads, batch, *sizes))]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_an_input_beyond_the_limit_is_refused_and_its_memory_is_given_back_and_smaller_ones_are_answered(
    network: Path,
) -> None:
    assert run(network, 256, 4096, 4096, 8192, 512) == [
        f"limit {512 * MIB}",
        "256 (1, 1, 256, 256) ",
        "4096 refused ",
        "4096 refused ",
        "8192 refused ",
        "512 (1, 1, 512, 512) held",
    ]


def test_whether_an_input_is_refused_does_not_depend_on_those_before_it(network: Path) -> None:
    # 1,100 x 1,100 takes 310 MB of 512: beside the remains of other sizes it would not find room.
    answered = "1100 (1, 1, 1100, 1100) held"

    assert run(network, 1100)[1:] == [answered]
    assert run(network, 100, 500, 300, 900, 700, 1000, 1100)[-1] == answered


@pytest.mark.parametrize("threads", [0, 1])
def test_an_image_is_answered_alone_after_a_batch_that_found_no_room(network: Path, threads: int) -> None:
    # 1,100 x 1,100 takes 310 MB of 512.
    single = onnx.load(network)
    for tensor in (*single.graph.input, *single.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(single, network)

    answers = run(network, 1100, 1100, threads=threads, batch=2 * CORES)[1:]

    assert [answer.split(")")[0] for answer in answers] == [f"{n} (1, 1, {n}, {n}" for n in (1100, 1100)]


FREE = """
import sys
from segserve_builder.memory import keep_freed_memory, process_bytes

if sys.argv[1] == "step":
    keep_freed_memory()
before = process_bytes("VmRSS")
image = b"1" * 16 * 2**20
del image
print("kept" if process_bytes("VmRSS") - before > 8 * 2**20 else "returned")
"""


@pytest.mark.parametrize(
    ("process", "environment", "freed"),
    [
        ("server", {}, "returned"),
        ("step", {}, "kept"),
        ("step", {"MALLOC_MMAP_THRESHOLD_": str(8 * MIB)}, "returned"),
    ],
    ids=["Triton", "step", "step of a user with another threshold"],
)
def test_a_step_keeps_an_images_memory_for_the_next_one_and_triton_returns_it(
    process: str, environment: dict[str, str], freed: str
) -> None:
    variables = {**os.environ, **SERVER_MALLOC, **environment}
    command = [sys.executable, "-c", FREE, process]
    assert subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.split() == [freed]


INSTANCE = """
import fcntl, json, os, sys, threading
import numpy as np
from segserve_builder.memory import InstanceMemory

def room():
    sizes = []
    for mib in range(16, 1024, 16):
        try:
            np.ones(mib << 20, np.uint8)
        except MemoryError:
            return mib - 16
memory = InstanceMemory({"model_repository": sys.argv[1], "model_config": sys.argv[2]})
print(memory.is_divided, room(), flush=True)
for _ in range(2):
    with memory.whole():
        print(room(), flush=True)
print(room(), flush=True)
"""


@pytest.mark.parametrize(("instances", "part"), [(1, range(470, 513)), (2, range(90, 129)), (4, range(40, 65))])
def test_an_instance_has_its_part_of_half_the_limit_and_one_at_a_time_has_all_of_it(
    tmp_path: Path, instances: int, part: range
) -> None:
    environment = {**os.environ, STEP_LIMIT_VARIABLE: str(512 * MIB)}
    config = json.dumps({"instance_group": [{"count": instances}]})
    command = [sys.executable, "-c", INSTANCE, str(tmp_path), config]
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        is_divided, alone = process.stdout.readline().split()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # another instance has the whole limit
        os.close(other)
        first, second, after = map(int, process.stdout)

    assert is_divided == str(instances > 1)
    assert int(alone) in part
    # In steps of 16 MiB, of which the process itself takes some.
    assert first in range(470, 513)
    assert second in range(470, 513)
    assert after in part
