"""A step that is all of a model: what its instances pass on, turns of its images, and its answers."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from fakes.docs import ROOT
from fakes.pipelines import pipeline_of
from fakes.triton_python import FakeRequest, triton_python
from segserve_builder.backend.link import DeadInstanceError, InstanceLink, InstanceListener, socket_folder
from segserve_builder.errors import BusyError
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.render.tree import CONFIG_FILE, Network, Tree, render
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.image_session import PATIENCE_S, ImageSession, Places, Turns
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.inference import network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.session import NetworkSession
from segserve_builder.steps.step_options import MODEL_FILE, NetOptions, PipelineOptions
from segserve_operator.api.loading import load
from segserve_operator.api.segmentation_model import SegmentationModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COINS = ROOT / "examples/coins"
MODEL = load((COINS / "model.yaml").read_text(), "model.yaml")[0]
assert isinstance(MODEL, SegmentationModel)
PIPELINE = MODEL.spec.pipeline("coins")
ARTIFACT = COINS / MODEL.spec.artifact.uri
STEP = "segserve--pipeline--0123456789"
TWO_CORES = replace(EMBEDDED, cpus=2)
SMOOTHED = ({"temporalSmoothing": {"method": "exponential", "alpha": 0.4, "sceneCut": 1}}, {"argmax": {}})
STREAMS = {"postprocess": pipeline_of(postprocess=SMOOTHED).postprocess}


def rendered(target: RenderTarget = TWO_CORES, *, apart: bool = False, **changes: Any) -> Tree:
    pipeline = PIPELINE.model_copy(update=changes)
    return render(
        pipeline, Network(network_io(pipeline, read_signature(ARTIFACT)), ARTIFACT), target=target, apart=apart
    )


def with_runtime(**changes: Any) -> dict[str, Any]:
    return {"runtime": PIPELINE.runtime.model_copy(update=changes)}


def test_a_network_with_defaults_is_in_one_step_with_an_instance_for_each_core_and_one_more() -> None:
    tree = rendered()

    (step,) = tree.steps
    assert tree.networks == (step,)
    assert tree.instances == {step: 3}
    assert rendered(replace(EMBEDDED, cpus=64)).instances.popitem()[1] == 17


@pytest.mark.parametrize(
    ("target", "changes"),
    [
        pytest.param(EMBEDDED, {}, id="cores are not known"),
        pytest.param(replace(TWO_CORES, backend="onnxruntime", has_gpu=True), {}, id="a GPU of Triton's own backend"),
        pytest.param(TWO_CORES, {"apart": True}, id="the network is public"),
        *(
            pytest.param(TWO_CORES, with_runtime(**{name: value}), id=name)
            for name, value in (("instances", 2), ("intra_op_threads", 1), ("engine", "openvino"), ("device", "gpu"))
        ),
    ],
)
def test_other_networks_have_a_step_of_their_own(target: RenderTarget, changes: dict[str, Any]) -> None:
    tree = rendered(target, **changes)

    assert len(tree.steps) == 3
    assert tree.ensemble[1].keys() == rendered().ensemble[1].keys()


@pytest.mark.parametrize(
    ("cpus", "changes", "instances"),
    [
        pytest.param(2, {}, [2, 1, 2], id="two cores"),
        pytest.param(64, {}, [8, 1, 8], id="many cores"),
        pytest.param(None, {}, [1, 1, 1], id="cores are not known"),
        pytest.param(2, STREAMS, [2, 1, 1], id="it keeps streams"),
        pytest.param(2, with_runtime(device="cpu", instances=2), [1, 2, 1], id="the network is on the CPU"),
    ],
)
def test_the_steps_around_a_network_on_a_gpu_have_a_process_for_each_core(
    cpus: int | None, changes: dict[str, Any], instances: list[int]
) -> None:
    tree = rendered(replace(EMBEDDED, cpus=cpus, backend="onnxruntime", has_gpu=True), **changes)

    assert [tree.instances[step] for step in tree.steps] == instances


@pytest.mark.same
def test_the_configuration_of_the_step_equals_the_golden_file() -> None:
    """Write it anew with `make write`, and read the difference before committing it."""
    golden = ROOT / "tests/golden/pbtxt"
    tree = rendered()
    for name, files in (("joined-pipeline", next(iter(tree.steps.values()))), ("joined-ensemble", tree.ensemble[1])):
        content, path = files[CONFIG_FILE], golden / f"{name}.pbtxt"
        assert isinstance(content, bytes)
        if os.environ.get("SEGSERVE_WRITE_GOLDEN"):
            path.write_bytes(content)
        assert content == path.read_bytes(), path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the sockets, which has a long name."""
    repository = tmp_path / ("long" * 30) / "repository"
    repository.mkdir(parents=True)
    return socket_folder(repository)


@pytest.fixture
def listening(folder: Path) -> Iterator[Callable[..., InstanceListener]]:
    opened = []

    def listen(answer: Callable[[Any], Any], instances: int = 2) -> InstanceListener:
        opened.append(InstanceListener(folder, STEP, instances, answer))
        opened[-1].listen()
        return opened[-1]

    yield listen
    for each in opened:
        each.close()


@pytest.fixture
def linked(folder: Path) -> Iterator[Callable[[], InstanceLink]]:
    opened = []

    def link() -> InstanceLink:
        opened.append(InstanceLink(folder, STEP))
        return opened[-1]

    yield link
    for each in opened:
        each.close()


@pytest.mark.parametrize("columns", [slice(None), slice(0, 20), slice(None, None, 2)])
def test_arrays_arrive_as_they_were_sent(
    linked: Callable[[], InstanceLink], listening: Callable[..., InstanceListener], columns: slice
) -> None:
    listening(lambda value: value)
    array = np.arange(6_000_000, dtype=np.uint16).reshape(1000, 6000)[:, columns]
    names = np.array([b"\xff", b""], np.object_)

    given = linked().ask({"PIXELS": array, "NAMES": names})

    assert np.array_equal(given["PIXELS"], array)
    assert given["NAMES"].tolist() == names.tolist()


def test_sockets_are_among_temporary_files_where_nothing_can_be_written_beside_the_repository(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = folder.parent / "repository"
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (repository.parent, os.W_OK))

    sockets = socket_folder(repository)

    assert sockets.parent == Path(tempfile.gettempdir())
    assert sockets == socket_folder(repository) != socket_folder(folder.parent / "another")


def test_only_the_own_user_reaches_the_socket(folder: Path, listening: Callable[..., InstanceListener]) -> None:
    listening(lambda value: value)

    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_request_that_cannot_be_answered_fails_by_itself(
    linked: Callable[[], InstanceLink], listening: Callable[..., InstanceListener]
) -> None:
    def answer(value: int) -> int:
        if value < 0:
            raise MemoryError
        return value

    listening(answer)
    link = linked()
    for _ in range(10):  # more often than there are threads
        with pytest.raises(DeadInstanceError):
            link.ask(-1)

    assert [link.ask(value) for value in (1, 2)] == [1, 2]


SERVE = """
import os, sys, time
from pathlib import Path
from segserve_builder.backend.link import InstanceListener

def answer(value):
    if value == "end":
        os._exit(1)
    return (os.getpid(), value)

InstanceListener(Path(sys.argv[1]), "STEP", 2, answer).listen()
print("listens", flush=True)
time.sleep(600)
"""


@pytest.fixture
def process(folder: Path) -> Iterator[Callable[[], int]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> int:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", SERVE.replace("STEP", STEP), str(folder)], stdout=subprocess.PIPE, text=True
            )
        )
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "listens\n"
        return started[-1].pid

    yield start
    for each in started:
        each.kill()
        each.communicate()


def test_a_process_that_ends_fails_what_it_ran_alone_and_the_next_one_is_found(
    linked: Callable[[], InstanceLink], process: Callable[[], int]
) -> None:
    links = [linked(), linked()]
    with pytest.raises(DeadInstanceError):
        links[0].ask(1)
    first = process()
    assert [link.ask(2) for link in links] == [(first, 2)] * 2

    with pytest.raises(DeadInstanceError):
        links[0].ask("end")
    with pytest.raises(DeadInstanceError):
        links[1].ask(3)

    second = process()
    assert [link.ask(4) for link in links] == [(second, 4)] * 2


def test_a_step_that_is_loaded_again_takes_over_and_what_was_asked_before_is_answered(
    linked: Callable[[], InstanceLink], listening: Callable[..., InstanceListener]
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(value: Any) -> Any:
        begun.set()
        may_end.wait(60)
        return f"first {value}"

    former, link = listening(slow), linked()
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(link.ask, 1)
        begun.wait(60)
        listening(lambda value: f"second {value}")
        assert linked().ask(2) == "second 2"
        closing = pool.submit(former.close)
        may_end.set()
        assert asked.result(60) == "first 1"
        closing.result(60)

    assert link.ask(3) == "second 3"


def test_an_image_that_runs_alone_waits_for_the_others_and_they_wait_for_it() -> None:
    turns, order = Turns(4), list[str]()
    inside, may_end, waits = threading.Barrier(3), threading.Event(), threading.Event()

    def beside(name: str) -> None:
        with turns.beside():
            inside.wait(60)
            may_end.wait(60)
            order.append(name)

    def alone() -> None:
        waits.set()
        with turns.alone():
            order.append("alone")

    def late() -> None:
        with turns.beside() as running:
            order.append(f"late {running}")

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(beside, "beside") for _ in range(2)]
        inside.wait(60)
        runs.append(pool.submit(alone))
        waits.wait(60)
        while not turns._alone:
            pass
        runs.append(pool.submit(late))
        may_end.set()
        for run in runs:
            run.result(60)

    assert order == ["beside", "beside", "alone", "late 1"]


def test_after_an_image_found_no_memory_fewer_run_beside_each_other_for_a_while() -> None:
    turns, full = Turns(3), threading.Barrier(3)

    def fail() -> None:
        with suppress(MemoryError), turns.beside():
            full.wait(60)
            raise MemoryError

    def most_beside() -> int:
        most = []
        with ThreadPoolExecutor(6) as pool:
            for _ in pool.map(lambda _: run(most), range(6)):
                pass
        return max(most)

    def run(most: list[int]) -> None:
        with turns.beside() as running:
            most.append(running)
            time.sleep(0.01)

    assert most_beside() == 3
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: fail(), range(3)))
    assert most_beside() == 1
    for _ in range(200):
        with turns.beside():
            pass
    assert most_beside() == 3


LARGE = 20_000
"""Pixels of which 1000 have taken 0.1 s."""


@pytest.fixture
def now_s() -> list[float]:
    return [0.0]


@pytest.fixture
def places(now_s: list[float]) -> Places:
    """Three places, which have had an image of 1000 pixels."""
    places = Places(3, clock=lambda: now_s[0])
    with places.taken(1000):
        now_s[0] += 0.1
    return places


def test_the_last_place_is_for_images_that_do_not_take_long(places: Places, now_s: list[float]) -> None:
    with places.taken(LARGE), places.taken(LARGE):
        now_s[0] += PATIENCE_S
        with pytest.raises(BusyError, match="one of 20000 pixels takes about 2 s, and 2 are computed; try again later"):
            places.taken(LARGE).__enter__()

        with places.taken(9000):
            pass


def test_an_image_that_takes_long_gets_the_place_of_another_that_ends(places: Places) -> None:
    def run() -> str:
        with places.taken(LARGE):
            return "run"

    with ThreadPoolExecutor(1) as pool, places.taken(LARGE):
        with places.taken(LARGE):
            waiting = pool.submit(run)

        assert waiting.result(60) == "run"


def test_each_kind_of_work_has_its_own_measure(places: Places, now_s: list[float]) -> None:
    with places.taken(LARGE), places.taken(LARGE), places.taken(LARGE, "drawings"):
        now_s[0] += 2
    with places.taken(LARGE, "drawings"), places.taken(LARGE, "drawings"):
        now_s[0] += PATIENCE_S
        with pytest.raises(BusyError, match="one of 20000 drawings takes about 2 s, and 2 are computed"):
            places.taken(LARGE, "drawings").__enter__()


def test_a_request_keeps_its_place_for_the_next_long_work_and_gives_it_up_for_quick_work(
    places: Places, now_s: list[float]
) -> None:
    with places.taken(LARGE, "drawings"):
        now_s[0] += 2
    with places.taken(LARGE) as first, places.taken(LARGE):
        now_s[0] += 2
        first.take(LARGE, "drawings")
        now_s[0] += PATIENCE_S
        with pytest.raises(BusyError):
            places.taken(LARGE).__enter__()
        first.take(10, "pixels")

        with places.taken(LARGE):
            pass


@pytest.mark.parametrize("is_known", [False, True])
def test_one_request_that_is_quick_or_known_does_not_make_all_quick(
    places: Places, now_s: list[float], is_known: bool
) -> None:
    with places.taken(1000, "drawings"):
        now_s[0] += 0.1
    with places.taken(LARGE, "drawings"):
        now_s[0] += 8
    for _ in range(9 if is_known else 2):
        with places.taken(LARGE, "drawings") as place:
            if is_known:
                place.forget()

    with places.taken(LARGE, "drawings"), places.taken(LARGE, "drawings"):
        now_s[0] += PATIENCE_S
        with pytest.raises(BusyError):
            places.taken(LARGE, "drawings").__enter__()


def test_images_that_once_waited_for_a_core_are_not_long_and_those_that_always_do_are(
    places: Places, now_s: list[float]
) -> None:
    def run() -> None:
        with places.taken(1000):
            now_s[0] += 9

    run()
    with places.taken(1000), places.taken(1000), places.taken(1000):
        pass
    with places.taken(1000):
        now_s[0] += 0.1

    for _ in range(4):
        run()
    with places.taken(1000), places.taken(1000):
        now_s[0] += PATIENCE_S
        with pytest.raises(BusyError):
            places.taken(1000).__enter__()


def test_a_failure_makes_no_work_quick(places: Places, now_s: list[float]) -> None:
    with pytest.raises(ValueError, match="damaged"), places.taken(LARGE):
        raise ValueError("damaged")

    with places.taken(LARGE), places.taken(LARGE):
        now_s[0] += PATIENCE_S
        with pytest.raises(BusyError):
            places.taken(LARGE).__enter__()


def test_images_that_turn_out_quick_are_not_long_any_more(places: Places, now_s: list[float]) -> None:
    with places.taken(LARGE):
        now_s[0] += 0.2

    with places.taken(LARGE), places.taken(LARGE), places.taken(LARGE):
        pass


def options() -> NetOptions:
    return NetOptions.of(PIPELINE, network_io(PIPELINE, read_signature(ARTIFACT)))


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_images_beside_each_other_get_the_answers_that_they_get_alone(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    session, exact = ImageSession(ARTIFACT, options()), NetworkSession(ARTIFACT, options())
    images = np.random.default_rng(0).integers(0, 255, (8, 1, 1, 64, 96), np.uint8)
    (name,) = options().outputs
    expected = [exact.run(image)[name] for image in images]

    with ThreadPoolExecutor(8) as pool:
        running = count(1)
        answers = list(pool.map(lambda image: session.run(image, next(running))[name], images))
    alone = session.run_alone(images[0])[name]

    assert all(np.allclose(one, other, atol=1e-4) for one, other in zip(answers, expected, strict=True))
    assert np.allclose(alone, expected[0], atol=1e-4)


@pytest.fixture
def log() -> Iterator[list[str]]:
    with triton_python() as lines:
        yield lines


@pytest.fixture
def instances(log: list[str], tmp_path: Path) -> Iterator[list[Any]]:
    """The instances of the step of `coins`, in one process; what they log."""
    tree = rendered()
    (step,) = tree.steps
    folder = tmp_path / "repository" / step
    (folder / "1").mkdir(parents=True)
    (folder / "1" / MODEL_FILE).symlink_to(ARTIFACT)
    io = network_io(PIPELINE, read_signature(ARTIFACT))
    tree_options = pipeline_options(io)
    config = {
        "parameters": {"segserve": {"string_value": tree_options.to_parameter()}},
        "instance_group": [{"count": 3}],
        "input": [{"name": "IMAGE"}, {"name": "PIXELS"}],
    }
    module = importlib.import_module("segserve_builder.backend.pipeline")
    started = []
    for number in range(3):
        started.append(module.TritonPythonModel())
        started[-1].initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(folder),
                "model_version": "1",
                "model_instance_name": f"{step}_0_{number}",
            }
        )
    yield started
    for each in reversed(started):
        each.finalize()


def pipeline_options(io: Any) -> PipelineOptions:
    from segserve_builder.spec.model_spec import COUNTED
    from segserve_builder.steps.step_options import PostOptions, PreOptions

    post = PostOptions.of(PIPELINE, io, None, COUNTED)
    return PipelineOptions(
        pre=PreOptions.of(PIPELINE, io, measures=post.measures), net=NetOptions.of(PIPELINE, io), post=post
    )


def request(content: bytes, *outputs: str) -> FakeRequest:
    return FakeRequest({"IMAGE": np.array([content], np.object_)}, list(outputs), json.dumps({"encoding": "rle"}))


def test_each_instance_gives_the_answer_of_the_three_steps(instances: list[Any], log: list[str]) -> None:
    photo = (COINS / "coins.png").read_bytes()
    expected = InProcessModel(PIPELINE, ARTIFACT).answer(photo, RequestOptions(encoding="rle"))
    names = sorted({*expected, "REVISION"})

    def answers_of(instance: Any) -> list[Any]:
        return [instance.execute([request(photo, *names)])[0] for _ in range(4)]

    with ThreadPoolExecutor(3) as pool:
        answers = [answer for found in pool.map(answers_of, instances) for answer in found]

    for answer in answers:
        arrays = answer.arrays()
        assert arrays.keys() == set(names)
        assert arrays["REVISION"].tolist() == [PIPELINE.revision.encode()]
        assert arrays["SIZE"].tolist() == expected["SIZE"].tolist()
        assert arrays["MASKS"].tolist() == expected["MASKS"].tolist()
    assert log == []


def test_an_image_that_fails_does_so_alone_and_as_in_the_three_steps(instances: list[Any], log: list[str]) -> None:
    photo = (COINS / "coins.png").read_bytes()

    for instance in instances:
        bad, good = instance.execute([request(b"no image", "SIZE"), request(photo, "SIZE")])
        assert bad.error.code == "INVALID_ARG"
        assert good.arrays().keys() == {"SIZE"}
    assert log == []


def test_a_fault_of_ours_is_internal_and_in_the_log(
    instances: list[Any], log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(instances[0]._steps._post, "_postprocess", broken)

    errors = [
        instance.execute([request((COINS / "coins.png").read_bytes(), "SIZE")])[0].error for instance in instances
    ]

    assert [error.code for error in errors] == ["INTERNAL"] * 3
    assert len(log) == 3


def test_an_image_that_finds_no_memory_beside_others_is_answered_alone(
    instances: list[Any], log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = instances[0]._steps._session

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(session, "run", full)
    photo = (COINS / "coins.png").read_bytes()
    assert instances[1].execute([request(photo, "SIZE")])[0].arrays()["SIZE"].tolist() == list(
        cv2.imread(str(COINS / "coins.png")).shape[:2]
    )

    monkeypatch.setattr(session, "run_alone", full)
    error = instances[1].execute([request(photo, "SIZE")])[0].error

    assert error.code == "INVALID_ARG"
    assert "the network's input of" in error.message


def test_the_other_instances_load_no_network_and_no_stages() -> None:
    code = (
        "import sys, types\n"
        "sys.modules['triton_python_backend_utils'] = types.ModuleType('triton_python_backend_utils')\n"
        "from segserve_builder.backend import pipeline\n"
        "print(sorted({'cv2', 'numba', 'onnxruntime', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
