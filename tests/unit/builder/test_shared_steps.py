"""Steps that many models share: what is rendered for them, and how they run their members."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fakes.triton_python import FakeRequest, triton_python
from fakes.waiting import HANG_S, until
from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.agent.server import ensemble_of
from segserve_builder.agent.state import AssignedRevision, Prepared
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.memory import STEP_LIMIT_VARIABLE
from segserve_builder.render.repository import publish_tree, remove
from segserve_builder.render.tree import LARGEST_SHARED_BYTES, Network, Sharing, Tree, render
from segserve_builder.spec.members import NOT_OPENED, OPENING, OPTIONS_FILE, member_name, selected, selectors_of
from segserve_builder.spec.model_spec import Artifact
from segserve_builder.spec.names import AGENT_REQUEST_ID
from segserve_builder.steps.crash_record import CrashRecord, crashed_members, forget_crashes, opened_members
from segserve_builder.steps.pipeline import Pipeline

SHARED = Sharing(post=True, networks=True)
IO = NetworkIO(
    TensorSpec("image", "UINT8", (None, 1, None, None)),
    "NCHW",
    (TensorSpec("logits", "FP32", (None, 2, None, None)),),
)
SPEC = {
    "model": "coins",
    "family": "semantic-logits",
    "input": {"colour": "GREY"},
    "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}],
    "preprocess": [{"decode": {}}],
    "postprocess": [{"argmax": {}}],
    "output": {},
    "runtime": {},
}


def network(folder: Path, coin: float) -> Path:
    """Write a network whose second channel is `coin` everywhere, and its first one zero."""
    logits = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "zero"], ["background"]),
        helper.make_node("Add", ["background", "coin"], ["foreground"]),
        helper.make_node("Concat", ["background", "foreground"], ["logits"], axis=1),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [1], [value]) for name, value in (("zero", 0.0), ("coin", coin))
    ]
    tensors = (("image", TensorProto.UINT8, ["b", 1, "h", "w"]), ("logits", TensorProto.FLOAT, ["b", 2, "h", "w"]))
    given, found = (helper.make_tensor_value_info(*tensor) for tensor in tensors)
    graph = helper.make_graph(logits, "g", [given], [found], constants)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    path = folder / sha256(content).hexdigest()
    path.write_bytes(content)
    onnx.checker.check_model(path)
    return path


def tree_of(path: Path, sharing: Sharing = SHARED, **changes: Any) -> Tree:
    return render(
        Pipeline.model_validate({**SPEC, "artifactSha256": path.name, **changes}), Network(IO, path), sharing=sharing
    )


def parsed(files: Any) -> ModelConfig:
    return text_format.Parse(files["config.pbtxt"].decode(), ModelConfig())


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([], id="none"),
        pytest.param(selectors_of("0123456789")[:9], id="a digit is missing"),
        pytest.param([*selectors_of("0123456789"), "MEMBER_3_f"], id="two digits at one place"),
    ],
)
def test_only_selectors_that_spell_a_single_member_select_one(names: list[str]) -> None:
    assert selected(names) is None
    assert selected(["logits", *selectors_of("0a1b2c3d4e")]) == "0a1b2c3d4e"


def test_models_that_differ_in_weights_and_names_share_their_steps_and_not_their_members(tmp_path: Path) -> None:
    coins, cells = tree_of(network(tmp_path, 1.0)), tree_of(network(tmp_path, -1.0), model="cells")

    assert coins.steps == cells.steps
    assert len(coins.members) == len(cells.members) == 2
    assert not coins.members.keys() & cells.members.keys()


def test_the_agent_reads_an_ensembles_members_from_its_configuration(tmp_path: Path) -> None:
    tree = tree_of(network(tmp_path, 1.0))

    ensemble = ensemble_of(parsed(tree.ensemble[1]))

    assert ensemble.steps == set(tree.steps)
    assert ensemble.members == set(tree.members)


def test_a_model_by_itself_is_rendered_as_ever(tmp_path: Path) -> None:
    own = tree_of(network(tmp_path, 1.0), Sharing())

    assert own.members == {}
    assert [name.split("--")[1] for name in own.steps] == ["pre", "net", "post"]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        pytest.param({}, ["pre", "net-shared", "post-shared"], id="shared"),
        pytest.param({"runtime": {"instances": 2}}, ["pre", "net", "post-shared"], id="instances of its own"),
        pytest.param({"runtime": {"intraOpThreads": 1}}, ["pre", "net", "post-shared"], id="threads of its own"),
        pytest.param(
            {"inference": [{"tile": {"height": 32, "width": 32}}]}, ["pre", "net", "post-shared"], id="many runs"
        ),
    ],
)
def test_what_was_chosen_for_one_model_or_takes_long_is_not_shared(
    tmp_path: Path, changes: dict[str, Any], kinds: list[str]
) -> None:
    tree = tree_of(network(tmp_path, 1.0), **changes)

    assert [name.split("--")[1] for name in tree.steps] == kinds
    assert ensemble_of(parsed(tree.ensemble[1])).members == set(tree.members)


def test_a_large_network_has_a_step_of_its_own(tmp_path: Path) -> None:
    path = network(tmp_path, 1.0)
    os.truncate(path, LARGEST_SHARED_BYTES + 1)

    assert [name.split("--")[1] for name in tree_of(path).steps] == ["pre", "net", "post-shared"]


@pytest.fixture
def log() -> Iterator[list[str]]:
    with triton_python() as lines:
        yield lines


class Replaced:
    """A member in place of a network's: what begins its opening, and the error of each of its requests, if any."""

    def __init__(self, begin: Callable[[], Any] = lambda: None, error: Exception | None = None) -> None:
        self.begin, self.error = begin, error

    def initialize(self, args: dict[str, str]) -> None:
        self.begin()

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = importlib.import_module("segserve_builder.backend.responses")
        if self.error is None:
            return [responses.response({}) for _ in requests]
        return [responses.error_response(self.error, request.request_id()) for request in requests]


class Server:
    """A repository, and the shared steps that run in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = folder / "repository"
        self.running: dict[str, Any] = {}
        self._monkeypatch = monkeypatch

    def instead(self, made: Callable[[], Replaced]) -> list[Replaced]:
        """Open such members from now on in place of networks; return those that were."""
        opened: list[Replaced] = []

        def step(_: Any) -> Replaced:
            opened.append(made())
            return opened[-1]

        shared = importlib.import_module("segserve_builder.backend.shared")
        self._monkeypatch.setattr(shared.SharedNetworks, "_step", step)
        return opened

    def publish(self, tree: Tree) -> None:
        publish_tree(tree, self.repository)
        for name, kind in zip(tree.steps, ("", "SharedNetworks", "SharedPostprocess"), strict=True):
            if kind and name not in self.running:
                self.start(name, kind)

    def start(self, name: str, kind: str) -> None:
        step = getattr(importlib.import_module("segserve_builder.backend.shared"), kind)()
        step.initialize({"model_repository": str(self.repository / name), "model_version": "1"})
        self.running[name] = step

    def opened(self, tree: Tree) -> dict[str, str]:
        """Return what the step of networks tells the agent."""
        return opened_members(self.repository)[tree.networks[0]]

    def net(self, tree: Tree, *, by: str = "", digest: str = "") -> Any:
        name, member = tree.networks[0], next(iter(tree.members))
        request = FakeRequest({"image": np.zeros((1, 1, 2, 2), np.uint8)}, selectors_of(digest or member), id=by)
        return self.running[name].execute([request])[0]


@pytest.fixture
def server(log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Steps whose sessions are not shared: a process that has shared ones once can have no others."""
    shared = importlib.import_module("segserve_builder.backend.shared")
    monkeypatch.setattr(shared, "share_sessions", lambda: None)
    monkeypatch.setattr(shared.SharedNetworks, "_step", lambda _: shared.net.TritonPythonModel())
    server = Server(tmp_path, monkeypatch)
    yield server
    for step in server.running.values():
        step.finalize()


SHARED_SESSIONS = """
import os, sys
import numpy as np
from segserve_builder.steps.session import open_session, share_sessions
share_sessions()
first = open_session(sys.argv[1], shared=True)
threads = len(os.listdir("/proc/self/task"))
sessions = [first, *(open_session(path, shared=True) for path in sys.argv[2:])]
image = np.zeros((1, 1, 64, 64), np.uint8)
found = [float(session.run(["logits"], {"image": image})[0].max()) for session in sessions]
print(found, len(os.listdir("/proc/self/task")) - threads)
"""


def test_shared_sessions_answer_each_by_its_own_weights_and_have_no_threads_of_their_own(tmp_path: Path) -> None:
    paths = [str(network(tmp_path, coin)) for coin in (1.0, 2.0, 3.0)]

    done = subprocess.run([sys.executable, "-c", SHARED_SESSIONS, *paths], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "[1.0, 2.0, 3.0] 0\n"), done.stderr


def test_each_request_is_run_by_the_network_that_its_ensemble_selects(server: Server, tmp_path: Path) -> None:
    trees = [tree_of(network(tmp_path, coin)) for coin in (1.0, 5.0)]
    for tree in trees:
        server.publish(tree)

    found = [float(server.net(tree).arrays()["logits"].max()) for tree in (*trees, *trees)]

    assert found == [1.0, 5.0, 1.0, 5.0]
    assert len(server.running) == 2


def test_a_request_that_selects_no_member_or_an_unknown_one_is_refused(server: Server, tmp_path: Path) -> None:
    tree = tree_of(network(tmp_path, 1.0))
    server.publish(tree)
    step = server.running[tree.networks[0]]

    alone = step.execute([FakeRequest({"image": np.zeros((1, 1, 2, 2), np.uint8)}, ["logits"])])[0]
    unknown = server.net(tree, digest="f" * 10)

    assert alone.error.code == "INVALID_ARG"
    assert "is a part of models" in alone.error.message
    assert "has no member segserve--net-member--ffffffffff" in unknown.error.message


def test_an_agents_test_waits_until_its_member_is_opened_beside_other_requests(server: Server, tmp_path: Path) -> None:
    tree, later = tree_of(network(tmp_path, 1.0)), tree_of(network(tmp_path, 2.0))
    server.publish(tree)
    until(lambda: server.net(tree, by=AGENT_REQUEST_ID).error is None, "the member is opened")
    begun, go_on = threading.Event(), threading.Event()

    def begin() -> None:
        begun.set()
        go_on.wait(HANG_S)

    server.instead(lambda: Replaced(begin))
    server.publish(later)
    assert begun.wait(HANG_S)

    first = server.net(later, by=AGENT_REQUEST_ID)

    assert (first.error.code, OPENING in first.error.message) == ("UNAVAILABLE", True)
    assert float(server.net(tree).arrays()["logits"].max()) == 1.0
    go_on.set()
    until(lambda: server.net(later, by=AGENT_REQUEST_ID).error is None, "the later member is opened")


NEVER_S = 1e6


def refuse() -> None:
    raise MemoryError("no room")


def test_a_member_that_cannot_be_opened_is_opened_again_by_no_request_and_later_by_itself(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    shared = importlib.import_module("segserve_builder.backend.shared")
    monkeypatch.setattr(shared, "RETRY_S", NEVER_S)
    monkeypatch.setattr(shared, "LONGEST_RETRY_S", NEVER_S)
    tree, opened = tree_of(network(tmp_path, 1.0)), server.instead(lambda: Replaced(begin=refuse))
    server.publish(tree)
    until(lambda: NOT_OPENED in server.net(tree, by=AGENT_REQUEST_ID).error.message, "it was tried")

    errors = {server.net(tree, by=by).error for by in (AGENT_REQUEST_ID, "", "caller") for _ in range(5)}

    said = f"{next(iter(tree.members))} {NOT_OPENED}: MemoryError: no room"
    assert {(error.code, error.message) for error in errors} == {("UNAVAILABLE", said)}
    assert len(opened) == 1
    assert server.opened(tree) == {next(iter(tree.members)): said}
    assert f"member {next(iter(tree.members))!r}: Traceback" in log[0]
    server.instead(Replaced)
    step = server.running[tree.networks[0]]
    ((name, failure),) = step._failures.items()
    step._failures[name] = replace(failure, retry_at_s=0.0)
    until(lambda: server.net(tree, by=AGENT_REQUEST_ID).error is None, "it is opened by itself")
    assert server.opened(tree) == {next(iter(tree.members)): ""}


def test_a_look_at_the_repository_that_fails_does_not_end_the_looks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    shared, is_away = importlib.import_module("segserve_builder.backend.shared"), threading.Event()
    is_away.set()
    listing = shared.SharedNetworks._list

    def failing(step: Any) -> None:
        if is_away.is_set():
            raise OSError("too many open files")
        listing(step)

    monkeypatch.setattr(shared, "RETRY_S", 0.05)
    monkeypatch.setattr(shared.SharedNetworks, "_list", failing)
    tree = tree_of(network(tmp_path, 1.0))
    server.publish(tree)
    until(lambda: "too many open files" in "".join(log), "a look has failed")

    is_away.clear()

    until(lambda: server.net(tree, by=AGENT_REQUEST_ID).error is None, "the member is opened")


def test_a_member_that_fails_the_agents_requests_is_named_and_opened_anew_while_others_answer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("segserve_builder.backend.shared"), "RENEW_S", 0.0)
    tree = tree_of(network(tmp_path, 1.0))
    opened = server.instead(lambda: Replaced(error=RuntimeError("its session is broken")))
    server.publish(tree)
    until(lambda: opened and "being opened" not in server.net(tree).error.message, "the member is opened")
    for_callers = [server.net(tree).error for _ in range(3)]
    assert len(opened) == 1
    server.instead(Replaced)

    error = server.net(tree, by=AGENT_REQUEST_ID).error

    assert (error.code, error.message) == (
        "INTERNAL",
        f"{next(iter(tree.members))}: RuntimeError: its session is broken",
    )
    assert {each.message for each in for_callers} == {error.message}
    until(lambda: server.net(tree).error is None, "another session")


MEMORY = """
import sys, threading, time
from pathlib import Path
from fakes.triton_python import triton_python
from fakes.waiting import HANG_S
from segserve_builder.memory import process_bytes, total_allowed
repository, name, members, is_busy = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
with triton_python():
    from segserve_builder.backend.shared import SharedPostprocess
    class Step(SharedPostprocess):
        def _open(self, member):
            self._runs += is_busy  # as beside a request
            super()._open(member)
            self._runs += is_busy
    step = Step()
    step.initialize({"model_repository": str(repository / name), "model_version": "1"})
    until_s = time.monotonic() + HANG_S
    while len(step._members) < members:
        if time.monotonic() > until_s:
            sys.exit(f"{len(step._members)} members; {step._failures}")
        time.sleep(0.1)
    with step._opening:
        print(max(member.allowed_bytes for member in step._members.values()))
        print(total_allowed() - process_bytes("VmData"), [each.name for each in threading.enumerate()].count("metrics"))
    step.finalize()
    time.sleep(0.1)
"""


@pytest.mark.parametrize("is_busy", [pytest.param(False, id="idle"), pytest.param(True, id="beside requests")])
def test_what_requests_may_need_and_the_thread_of_metrics_are_the_same_for_many_members(
    tmp_path: Path, is_busy: bool
) -> None:
    trees = [tree_of(network(tmp_path, 1.0), model=f"coins-{number}") for number in range(20)]
    for tree in trees:
        publish_tree(tree, tmp_path / "repository")
    limit = 256 * 2**20
    environment = {**os.environ, STEP_LIMIT_VARIABLE: str(limit), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "repository"), tuple(trees[0].steps)[-1], str(len(trees))]
    command.append(str(is_busy))

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    largest, left, threads = map(int, done.stdout.split())
    assert threads == 1
    # No member has the thread of metrics, of 8 MiB, and takes it away when it goes.
    assert largest < 8 * 2**20
    # The first answer's limit, but for what the step's thread takes: 8 MiB.
    assert left == pytest.approx(limit, abs=24 * 2**20)


REFUSED = """
import resource, sys
from pathlib import Path
import numpy as np
from segserve_builder.memory import allow_allocations
from segserve_builder.steps.session import NetworkSession, share_sessions
from segserve_builder.steps.step_options import NetOptions
share_sessions()
options = NetOptions(
    artifact_sha256="a" * 64, input="image", outputs=("logits",), batched=True, layout="NCHW", inference=(),
    inference_versions=(), max_batch_size=1, intra_op_threads=0,
)
session = NetworkSession(Path(sys.argv[1]), options, shared=True)
image = np.zeros((1, 1, 2000, 2000), np.uint8)
for mib in (16, 512):  # others have the rest, and let go of it
    allow_allocations(mib * 2**20)
    try:
        print(session.run(image)["logits"].shape[-1])
    except MemoryError:
        print("refused")
"""


def test_an_image_for_which_others_left_no_memory_is_answered_once_they_do(tmp_path: Path) -> None:
    command = [sys.executable, "-c", REFUSED, str(network(tmp_path, 1.0))]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.split()) == (0, ["refused", "2000"]), done.stderr


def test_a_network_that_is_not_what_its_name_stands_for_is_not_run(server: Server, tmp_path: Path) -> None:
    tree, other = tree_of(network(tmp_path, 1.0)), network(tmp_path, 2.0)
    server.publish(tree)
    until(lambda: server.net(tree).error is None, "the member is opened")
    changed = tree_of(network(tmp_path, 3.0))
    forged = server.repository / next(iter(changed.members))
    publish_tree(tree_of(other), server.repository)
    (forged / "1").mkdir(parents=True)
    options = next(iter(changed.members.values()))["options.json"]
    assert isinstance(options, bytes)
    (forged / "options.json").write_bytes(options)
    (forged / "1" / "model.onnx").write_bytes(other.read_bytes())

    error = server.net(changed).error

    assert error is not None
    assert "is not the artifact" in error.message


def test_a_member_whose_folder_goes_answers_what_was_begun_and_is_closed_later(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(network(tmp_path, 1.0))
    server.publish(tree)
    until(lambda: server.net(tree).error is None, "the member is opened")

    remove(server.repository / next(iter(tree.members)))

    assert server.net(tree).error is None
    monkeypatch.setattr(importlib.import_module("segserve_builder.backend.shared"), "KEPT_S", 0.0)
    until(lambda: "has no member" in str(getattr(server.net(tree).error, "message", "")), "the member is closed")
    until(lambda: server.opened(tree) == {}, "the agent is told")


_ENDING = """
import os, sys
from contextlib import ExitStack
from pathlib import Path
from segserve_builder.steps.crash_record import CrashRecord
record = CrashRecord(Path(sys.argv[1]), sys.argv[2])
with ExitStack() as stack:
    for pair in sys.argv[3:]:
        doing, member = pair.split("=")
        stack.enter_context(getattr(record, doing)(member))
    os._exit(1)
"""


def end_process(repository: Path, step: str, **members: str) -> None:
    """End a shared step's process, which is a child of the same server as the next one, at this moment."""
    pairs = [f"{doing}={member}" for doing, member in members.items()]
    subprocess.run([sys.executable, "-c", _ENDING, str(repository), step, *pairs], check=False)


def crashed_at_next(repository: Path, step: str) -> frozenset[str]:
    """Return the members that ended a process, once a next one has read the record."""
    end_process(repository, step)
    return crashed_members(repository)


STEP = "segserve--net-shared--0"


def test_a_member_that_ended_a_process_is_known_to_the_next_one(tmp_path: Path) -> None:
    member = member_name("net", {"a": 1})
    end_process(tmp_path / "repository", STEP, running=member)

    assert crashed_at_next(tmp_path / "repository", STEP) == {member}


def test_members_that_ended_a_process_are_forgotten_when_another_server_is_started(tmp_path: Path) -> None:
    end_process(tmp_path / "repository", STEP, running=member_name("net", {"a": 1}))
    assert crashed_at_next(tmp_path / "repository", STEP)

    forget_crashes(tmp_path / "repository")

    assert crashed_at_next(tmp_path / "repository", STEP) == frozenset()


def test_a_member_that_ends_the_process_while_it_is_opened_is_blamed_and_not_the_one_that_runs(tmp_path: Path) -> None:
    opened, running = member_name("net", {"a": 1}), member_name("net", {"a": 2})
    end_process(tmp_path / "repository", STEP, running=running, opening=opened)

    assert crashed_at_next(tmp_path / "repository", STEP) == {opened}


def test_a_process_that_is_replaced_while_it_lives_blames_nobody_and_leaves_the_next_ones_record(
    tmp_path: Path,
) -> None:
    former_member, member = member_name("net", {"a": 1}), member_name("net", {"a": 2})
    former = CrashRecord(tmp_path / "repository", STEP)
    with former.running(former_member):
        after = CrashRecord(tmp_path / "repository", STEP)
        written = after.running(member)
        written.__enter__()

    assert after.crashed == frozenset()
    record = (tmp_path / ".repository-running" / STEP).read_bytes()
    assert member.encode() in record
    assert former_member.encode() not in record


def test_a_process_whose_disk_is_full_leaves_nothing_of_what_the_former_one_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CrashRecord(tmp_path / "repository", STEP).opened("former")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        record = CrashRecord(tmp_path / "repository", STEP)
    record.opened("later")

    assert opened_members(tmp_path / "repository") == {}


def test_a_step_that_can_tell_only_a_part_of_what_it_opened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = CrashRecord(tmp_path / "repository", STEP)
    record.opened("first")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, content: write(file, content[:5]))
        record.opened("second")
    record.opened("third")

    assert opened_members(tmp_path / "repository") == {}
    assert not list((tmp_path / ".repository-running").glob("*.members"))


def test_a_record_that_goes_while_it_is_read_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda _: True)  # the folder goes right after this look

    assert opened_members(tmp_path / "repository") == {}


def test_each_of_two_networks_of_a_model_is_opened_by_the_step_that_it_names(tmp_path: Path) -> None:
    second_io = replace(IO, outputs=(replace(IO.outputs[0], name="other", shape=(None, 8, None)),))
    second_io = replace(second_io, outputs=(*second_io.outputs, TensorSpec("masks", "FP32", (None, 2, 16, 16))))
    panoptic = {
        "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin", "thing": True}],
        "preprocess": [{"decode": {}}, {"resize": {"mode": "stretch", "height": 64, "width": 64}}],
        "postprocess": [{"argmax": {}}, {"panopticFusion": {"stuffArea": 0}}],
        "instances": {
            "artifactSha256": "b" * 64,
            "family": "yolo-seg",
            "postprocess": [{"scoreThreshold": {"threshold": 0.5}}, {"nms": {}}, {"cropMasks": {}}],
        },
    }
    path, second = network(tmp_path, 1.0), network(tmp_path, 2.0)
    pipeline = Pipeline.model_validate({**SPEC, "artifactSha256": path.name, **panoptic})
    tree = render(pipeline, Network(IO, path), Network(second_io, second), sharing=SHARED)
    opened: dict[str, dict[str, str]] = {step: {} for step in tree.member_steps.values()}
    assert len(opened) == len(tree.members) == 3
    for member, files in tree.members.items():
        content = files[OPTIONS_FILE]
        assert isinstance(content, bytes)
        opened[json.loads(content)["step"]][member] = ""
    spec = AssignedModel(pipeline=pipeline, artifact=Artifact(uri="file:///network.onnx", sha256=path.name))

    prepared = Prepared(AssignedRevision.of(spec), tree, dict.fromkeys(tree.steps, 1), None)

    assert prepared.outcomes(opened) == dict.fromkeys(tree.members, "")


ENDS = """
import os, sys, time
from pathlib import Path
import numpy as np
from fakes.triton_python import FakeRequest, triton_python
from fakes.waiting import HANG_S
from segserve_builder.spec.members import selectors_of
repository, name, member, place = Path(sys.argv[1]), *sys.argv[2:]
def end(*_):
    os._exit(17)
with triton_python():
    from segserve_builder.backend import shared
    class Bad:
        initialize = end if place == "initialize" else lambda self, args: None
        execute = end
    shared.SharedNetworks._step = lambda self: Bad()
    if place == "file":
        shared.hashlib.file_digest = end
    step = shared.SharedNetworks()
    step.initialize({"model_repository": str(repository / name), "model_version": "1"})
    request = FakeRequest({"image": np.zeros((1, 1, 2, 2), np.uint8)}, selectors_of(member))
    until_s = time.monotonic() + HANG_S
    while place == "execute" and time.monotonic() < until_s:
        step.execute([request])
    time.sleep(HANG_S)
"""


@pytest.mark.parametrize("place", ["file", "initialize", "execute"])
def test_a_shared_step_that_a_member_ends_has_recorded_it(tmp_path: Path, place: str) -> None:
    tree, repository = tree_of(network(tmp_path, 1.0)), tmp_path / "repository"
    publish_tree(tree, repository)
    (name,), member = tree.networks, next(iter(tree.members))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", ENDS, str(repository), name, member, place]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 17, done.stderr
    assert crashed_at_next(repository, name) == {member}


def test_a_process_that_ended_between_requests_says_nothing_about_a_member(tmp_path: Path) -> None:
    end_process(tmp_path / "repository", STEP)

    assert crashed_at_next(tmp_path / "repository", STEP) == frozenset()


def test_a_network_that_crashed_its_process_is_refused_there_and_its_neighbours_are_not(
    server: Server, tmp_path: Path
) -> None:
    bad, good = tree_of(network(tmp_path, 1.0)), tree_of(network(tmp_path, 2.0))
    server.publish(bad)
    server.publish(good)
    name = bad.networks[0]
    server.running.pop(name).finalize()
    end_process(server.repository, name, running=next(iter(bad.members)))
    end_process(server.repository, name)
    server.start(name, "SharedNetworks")

    assert "a process ended while it ran" in server.net(bad).error.message
    assert float(server.net(good).arrays()["logits"].max()) == 2.0
