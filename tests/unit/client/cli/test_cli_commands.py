"""Commands on any platform: what they print, how they end, and that a user's mistake is no traceback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
from rich.text import Text

from segserve_platform.cli import doctor, options, resources
from segserve_platform.platforms.advice import ADVICE
from segserve_platform.platforms.errors import ControlError, NotFoundError
from segserve_platform.platforms.port import MODEL, POOL, DoctorCheck, Json, ParsedResource

from .conftest import Command, conditions, model


@dataclass
class FakePlatform:
    """A platform in memory; each look at a model is the next of its `scenes`, the last one for good."""

    scenes: dict[str, list[Json]] = field(default_factory=dict)
    applied: list[tuple[str, bool]] = field(default_factory=list)
    findings: list[DoctorCheck] = field(default_factory=list)
    deleted: list[tuple[str, str]] = field(default_factory=list)

    def apply(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[str]:
        self.applied += [(written.title, force) for written in resources]
        return ["created" for _ in resources]

    def check_namespace(self, resources: Iterable[ParsedResource]) -> None:
        pass

    def delete(self, kind: str, name: str) -> str:
        self.deleted.append((kind, name))
        if kind == MODEL:
            self.model(name)
        return "deleted"

    def runs(self) -> bool:
        return True

    def models(self) -> list[Json]:
        return [self.model(name) for name in self.scenes]

    def model(self, name: str) -> Json:
        if name not in self.scenes:
            raise NotFoundError(f"no SegmentationModel {name!r}; there are: {', '.join(self.scenes) or 'none'}")
        return self.scenes[name].pop(0) if len(self.scenes[name]) > 1 else self.scenes[name][0]

    def pools(self) -> list[Json]:
        return []

    def last_words(self, model: str) -> str:
        return "; its log ends: no memory"

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        while (kind, name) not in self.deleted:
            yield self.model(name)
        yield None

    def gateway(self, model: str) -> AbstractContextManager[str | None]:
        raise ControlError(f"no gateway for {model}")

    def checks(self) -> Iterator[DoctorCheck]:
        yield from self.findings


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FakePlatform:
    fake = FakePlatform({"coins": [model()]})
    for module in (resources, doctor, options):
        monkeypatch.setattr(module, "selected_platform", lambda _: fake)
    monkeypatch.setattr(resources, "frames", lambda *_, **how: map(Text, ("one", "one", "two")))
    return fake


DEFAULT_POOL = "apiVersion: segserve.dev/v1alpha1\nkind: TritonPool\nmetadata: {name: default}\nspec: {}\n"


def test_apply_says_what_became_of_each_and_force_is_passed_on(
    command: Command, here: FakePlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pool.yaml").write_text(DEFAULT_POOL)
    monkeypatch.setattr("sys.stdin", StringIO(DEFAULT_POOL.replace("default", "second")))

    told = command("apply", "-f", tmp_path / "pool.yaml", "-f", "-", "--force-conflicts")

    assert told == (0, "tritonpool/default created\ntritonpool/second created\n", "")
    assert here.applied == [("tritonpool/default", True), ("tritonpool/second", True)]


def test_get_prints_a_table_without_colours_where_nobody_looks(command: Command, here: FakePlatform) -> None:
    code, printed, _ = command("get", "coins")

    assert code == 0
    assert [line.split() for line in printed.splitlines()][1][:3] == ["coins", "True", "coins-1111111111"]
    assert "\x1b" not in printed


def test_a_watch_that_is_piped_prints_each_picture_that_differs(command: Command, here: FakePlatform) -> None:
    assert command("get", "-w") == (0, "one\n\ntwo\n", "")


def test_a_watch_has_no_machine_readable_form(command: Command, here: FakePlatform) -> None:
    code, _, complaint = command("get", "-w", "-o", "json")

    assert code == 2
    assert "-w supports only -o table and -o wide" in complaint


def test_wait_ends_when_the_newest_spec_serves(command: Command, here: FakePlatform) -> None:
    starting = model(conditions=conditions("Starting", "a group starts", Progressing="True", Ready="False"))
    ready = conditions("Serving", "it gets all requests", Ready="True") + conditions(Progressing="False")
    switching = conditions("Switching", "not yet", Ready="True") + conditions(Progressing="False")
    scenes = [starting, model(conditions=switching), model(conditions=ready)]
    here.scenes["coins"] = scenes

    assert command("wait", "coins") == (0, "coins: it gets all requests\n", "")
    assert len(here.scenes["coins"]) == 1


WAITS: dict[str, tuple[list[dict[str, str]], str]] = {
    "what cannot come to serve ends it at once": (
        conditions("GoldenFailed", "IoU 0.2", Degraded="True"),
        f"error: coins: GoldenFailed: IoU 0.2; {ADVICE['GoldenFailed']}\n",
    ),
    "what may heal is waited for, and named": (
        conditions("Unschedulable", "0 of 3 nodes", Degraded="True"),
        "error: coins is not ready after 0s: Unschedulable: 0 of 3 nodes; its log ends: no memory\n",
    ),
}


@pytest.mark.parametrize("waited", WAITS)
def test_wait_fails_with_the_cause(command: Command, here: FakePlatform, waited: str) -> None:
    said, complaint = WAITS[waited]
    here.scenes["coins"] = [model(conditions=said)]

    assert command("wait", "coins", "--timeout", "0s") == (1, "", complaint)


def test_delete_takes_models_before_their_pools_and_waits(command: Command, here: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(DEFAULT_POOL)
    printed = "segmentationmodel/coins deleted\ntritonpool/default deleted\n"

    assert command("delete", "coins", "-f", tmp_path / "pool.yaml") == (0, printed, "")
    assert here.deleted == [(MODEL, "coins"), (POOL, "default")]


def test_doctor_fails_where_something_is_not_good_and_says_how_to_mend_it(command: Command, here: FakePlatform) -> None:
    here.findings = [
        DoctorCheck("API server", good=True, seen="v1.36 [new]"),
        DoctorCheck("operator", False, "none", "helm install"),
    ]

    code, printed, complaint = command("doctor")

    assert (code, complaint) == (1, "")
    assert printed.endswith("ok  API server: v1.36 [new]\nbad operator: none\n    helm install\n")


MISTAKES: dict[str, tuple[list[str], int, str]] = {
    "an unknown model": (["describe", "roads"], 1, "error: no SegmentationModel 'roads'; there are: coins\n"),
    "a gateway that is not there": (
        ["predict", "coins", "a.png", "-n", "lab"], 1, "error: no gateway for coins\n",
    ),
    "an unknown option": (["get", "--nope"], 2, "No such option"),
    "an unknown format": (["get", "-o", "xml"], 2, "Invalid value"),
    "a timeout that is none": (["wait", "coins", "--timeout", "soon"], 2, "such as 1h, 90s or 1h30m"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_without_a_traceback(command: Command, here: FakePlatform, mistake: str) -> None:
    arguments, expected, said = MISTAKES[mistake]

    code, printed, complaint = command(*arguments)

    assert (code, printed) == (expected, "")
    assert said in complaint
    assert "Traceback" not in complaint
