"""An apply, an edit and a delete on a real cluster, whose operator dies or meets errors at a chosen call."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fakes.api_proxy import ApiProxy
from fakes.api_proxy_rules import Answer, Call, Hang, Kill, Rule
from fakes.cluster import Cluster
from fakes.cluster_pool import ClusterPool, coins_manifest, small_pool
from fakes.operator_process import OperatorProcess

Json = dict[str, Any]

STAGES = ("apply", "edit", "delete")
WITHIN_S = 300.0
LONG_FAULT = "every answer 5 s late, and every tenth a 500, for ten minutes"
LONG_FAULT_S = 600.0
AREAS = (150, 151)


@dataclass(frozen=True, slots=True)
class Point:
    """A moment to die at: before or after the operator's n-th write of a stage."""

    stage: str
    write: int
    after: bool

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} write {self.write} of the {self.stage}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a stage: after how many seconds it was as undisturbed, and how often something went wrong."""

    seconds: float
    hits: int


@dataclass
class Story:
    """One pool that stays, and a model that comes, changes and goes again. The operator sees the API by a proxy.

    `area` is what the model says at present (its smallest region), None where there is no model. An edit goes to the
    other of two such areas. `leader` makes the passes where that is not `operator`.
    """

    pool: ClusterPool
    proxy: ApiProxy
    operator: OperatorProcess
    leader: OperatorProcess | None = None
    area: int | None = None
    undisturbed: dict[int | None, Json] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)

    def learn(self) -> None:
        """Note how each stage ends, and how many writes it takes, when nothing goes wrong."""
        for stage in STAGES:
            first, before = len(self.proxy.writes), self.pool.final_state()
            self.act(stage)
            self.pool.wait(f"the {stage} has begun", lambda before=before: self.pool.final_state() != before)
            self.pool.wait(f"the {stage} is done", self._is_done, WITHIN_S)
            self._calm(first)
            self.undisturbed[self.area], self.writes[stage] = self.pool.final_state(), len(self.proxy.writes) - first

    def act(self, stage: str) -> None:
        """Do what the user does."""
        self.area = {"apply": AREAS[0], "edit": sum(AREAS) - (self.area or 0), "delete": None}[stage]
        if self.area is None:
            self.pool.delete("segmentationmodel", "coins")
        else:
            self.pool.apply(coins_manifest(min_area=self.area, keepPrevious="0s"))

    def reach(self, stage: str) -> None:
        """Undisturbed, go where a stage can begin."""
        if stage == "apply" and self.area is not None:
            self.run("delete")
        elif stage != "apply" and self.area is None:
            self.run("apply")

    def run(self, stage: str, *rules: Rule) -> Outcome:
        """Make a stage with something going wrong; return once all is as undisturbed and stays so.

        AssertionError where it does not come to that.
        """
        hits, first = [0], len(self.proxy.writes)
        self.proxy.add(*(_counted(rule, hits) for rule in rules))
        seconds = self._end(stage)
        self.proxy.heal()
        self._calm(first)
        assert self._is_as_undisturbed()
        return Outcome(round(seconds, 1), hits[0])

    def endure(self, seconds: float) -> Outcome:
        """Make one stage after the other while `LONG_FAULT` lasts; the outcome has the time of the slowest."""
        hits, first, slowest_s = [0], len(self.proxy.writes), 0.0
        until_s = time.monotonic() + seconds
        self.proxy.latency_s = 5.0
        self.proxy.add(_counted(Rule(Answer(500), times=None, fits=_every_tenth()), hits))
        for stage in itertools.cycle(STAGES):
            slowest_s = max(slowest_s, self._end(stage, seconds))
            if time.monotonic() > until_s:
                break
        self.proxy.heal()
        self._calm(first)
        assert self._is_as_undisturbed()
        return Outcome(round(slowest_s, 1), hits[0])

    def _end(self, stage: str, within_s: float = WITHIN_S) -> float:
        """Make a stage, and return after how many seconds it has ended as undisturbed."""
        began_s = time.monotonic()
        self.act(stage)
        self.pool.wait(f"the {stage} ends as undisturbed", self._is_as_undisturbed, within_s)
        return time.monotonic() - began_s

    def die(self, point: Point) -> Outcome:
        """Make a stage in which the operator is killed at a point, and started again at once."""
        return self.run(point.stage, Rule(Kill(self.operator.restart, point.after), nth=point.write))

    def meet(self, fault: str, stage: str) -> Outcome:
        """Make a stage in which the API server does one of `FAULTS`."""
        rules = FAULTS[fault](self.proxy)
        outcome = self.run(stage, *rules)
        assert outcome.hits or not rules, f"{fault}: no call was hit"
        return outcome

    def _is_done(self) -> bool:
        found = self.pool.final_state()
        model = found["models"].get("SegmentationModel coins")
        if self.area is None:
            return model is None and not found["weights"] and not _revisions(found)
        conditions = {name: each[0] for name, each in model["conditions"].items()} if model else {}
        idle = conditions.get("Ready") == "True" and conditions.get("Progressing") == "False"
        assert idle, f"conditions: {conditions}"
        of_pool = found["models"]["TritonPool default"]["conditions"]
        assert of_pool["Progressing"][0] == "False", of_pool
        assert set(model["roles"]) == {"stable"}, model["roles"]
        return model["current"] and len(found["held"]) == len(_revisions(found)) == 1

    def _is_as_undisturbed(self) -> bool:
        found, wanted = self.pool.final_state(), self.undisturbed[self.area]
        different = {key: (found[key], wanted[key]) for key in wanted if found[key] != wanted[key]}
        assert not different, f"(found, wanted): {different}"
        return True

    def _calm(self, first: int) -> None:
        """Return once the operator has been woken, has looked at everything, and has written nothing."""

        leader = self.leader or self.operator

        def rests() -> bool:
            seen = len(self.proxy.writes)
            for _ in range(2):  # the first pass that is seen may have begun before
                process, passes = leader.pid, leader.passes()
                self.pool.touch()
                self.pool.wait("a pass of the operator", partial(_has_passed, leader, process, passes))
            last = self.proxy.writes[first:][-5:]
            assert len(self.proxy.writes) == seen, f"it never rests: {last}"
            return True

        self.pool.wait("the operator rests", rests)


def _has_passed(leader: OperatorProcess, process: int, passes: int) -> bool:
    """Tell whether a process has made more passes than it had, or has been succeeded by another."""
    assert leader.is_alive, "the operator has ended by itself"
    assert leader.passes() > passes or leader.pid != process, f"{leader.passes()} passes, {passes} of them before"
    return True


def _revisions(found: Json) -> list[str]:
    return [name for name in found["objects"] if name.startswith("ControllerRevision ")]


def _counted(rule: Rule, hits: list[int]) -> Rule:
    """Return the rule; each time that it strikes is counted."""

    def count() -> None:
        hits[0] += 1

    if isinstance(rule.action, Kill):
        strike = rule.action.strike

        def counted() -> None:
            count()
            strike()

        return Rule(Kill(counted, rule.action.after), rule.nth, rule.times, rule.fits)
    seen = [0]

    def fits(call: Call) -> bool:
        if not rule.fits(call):
            return False
        seen[0] += 1
        if seen[0] >= rule.nth and (rule.times is None or seen[0] < rule.nth + rule.times):
            count()
        return True

    return Rule(rule.action, rule.nth, rule.times, fits)


def _first_write_of_each() -> Callable[[Call], bool]:
    """Return what fits the first write to each object, by method."""
    seen: set[tuple[str, str]] = set()

    def fits(call: Call) -> bool:
        if not call.writes or (call.method, call.path) in seen:
            return False
        seen.add((call.method, call.path))
        return True

    return fits


def _every_tenth() -> Callable[[Call], bool]:
    """Return what fits each tenth call."""
    numbers = itertools.count(1)
    return lambda _: next(numbers) % 10 == 0


def _each(action: Answer) -> Callable[[ApiProxy], tuple[Rule, ...]]:
    return lambda _: (Rule(action, times=None, fits=_first_write_of_each()),)


def _second(action: Hang) -> Callable[[ApiProxy], tuple[Rule, ...]]:
    return lambda _: (Rule(action, nth=2),)


def _late(proxy: ApiProxy) -> tuple[Rule, ...]:
    proxy.watch_delay_s = 5.0
    return ()


def _swallowed(proxy: ApiProxy) -> tuple[Rule, ...]:
    """Lose what all watches are told for ten seconds; those that lost something stay dead until they are given up."""
    proxy.watch_silent = True
    timer = threading.Timer(10, setattr, (proxy, "watch_silent", False))
    timer.daemon = True
    timer.start()
    return ()


def _reset(proxy: ApiProxy) -> tuple[Rule, ...]:
    proxy.reset_watches()
    return ()


def _expired(proxy: ApiProxy) -> tuple[Rule, ...]:
    proxy.expire_watches()
    return ()


FAULTS: Mapping[str, Callable[[ApiProxy], tuple[Rule, ...]]] = {
    "403 to the first write of each object": _each(Answer(403)),
    "409 to the first write of each object": _each(Answer(409)),
    "410 to the first write of each object": _each(Answer(410)),
    "422 to the first write of each object": _each(Answer(422)),
    "429 with Retry-After to the first write of each object": _each(Answer(429, retry_after_s=1)),
    "500 to the first write of each object": _each(Answer(500)),
    "500 to the first write of each object, which was done": _each(Answer(500, landed=True)),
    "no answer to the second write": _second(Hang(60.0)),
    "no answer to the second write, which was done": _second(Hang(60.0, landed=True)),
    "every event 5 s late": _late,
    "the watches' connections reset": _reset,
    "the watches told 410": _expired,
    "the watches silent for 10 s, and dead after": _swallowed,
}


@contextmanager
def story(cluster: Cluster, folder: Path) -> Iterator[Story]:
    """Make a namespace with one server and one gateway, and an operator behind a proxy; `folder` gets its log."""
    with ApiProxy(cluster.kubeconfig).in_thread() as proxy, cluster.namespace("points") as namespace:
        kubeconfig = proxy.write_kubeconfig(folder / "proxy.conf", namespace)
        operator = OperatorProcess(kubeconfig, (namespace,), cluster.images, folder / "operator.log")
        pool = ClusterPool(cluster, namespace, operator.tail)
        with operator.running():
            pool.apply(small_pool())
            pool.wait("the pool is whole", lambda: _is_up(pool), WITHIN_S)
            yield Story(pool, proxy, operator)


def _is_up(pool: ClusterPool) -> bool:
    conditions = pool.final_state()["models"]["TritonPool default"]["conditions"]
    assert conditions.get("Ready", [""])[0] == "True", conditions
    return conditions["Progressing"][0] == "False"
