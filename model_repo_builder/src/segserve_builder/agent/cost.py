"""Costs of revisions on their server: CPU, GPU and memory, in shares that add up to what the processes use."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from segserve_builder.agent.processes import ProcessUse, ServerUse
from segserve_builder.agent.server import StepCounts, TritonError
from segserve_common.files import read_file, replace_file

COSTS_FILE: Final = "costs.json"
"""Name of a ledger's file in the folder of a group on one machine."""
PERIOD_S: Final = 10.0
LONGEST_PERIOD_S: Final = 300.0
LOOK_SHARE: Final = 0.01
"""CPU of the time that looks may take: with thousands of models they are rarer."""
MOST_FORMER: Final = 500
"""Revisions whose costs are kept although the server has them no more; the one that came first goes first."""
_LOG = logging.getLogger(__name__)


class Owner(NamedTuple):
    """The model and revision of a cost; both are empty for what belongs to none, such as an empty server's."""

    model: str = ""
    revision: str = ""


NOBODY: Final = Owner()


@dataclass(frozen=True, slots=True)
class ServedRevision:
    """A revision that a server has, with its steps in the order of processing; `native` ones run in the server.

    `counter` is the model whose requests are only the revision's: by default its last step.
    """

    owner: Owner
    steps: tuple[str, ...]
    native: frozenset[str] = frozenset()
    counter: str = ""

    @property
    def counted(self) -> str:
        """The name of that model."""
        return self.counter or self.steps[-1]


@dataclass(frozen=True, slots=True)
class RevisionCost:
    """The cost of a revision since its ledger began.

    `step_cpu_s` is the time of its steps' processes, and of the server while it computes the network; `server_cpu_s`
    is its share of all other time. `gpu_s` is the time in which its network computed, on a server with GPUs. Requests
    are answered ones, including the agent's own.
    """

    step_cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    gpu_s: float = 0.0
    memory_byte_s: float = 0.0
    requests: float = 0.0

    def __add__(self, other: RevisionCost) -> RevisionCost:
        return RevisionCost(*(mine + more for mine, more in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class ServerLook:
    """One look at a server: the use of its processes, and the counts of its Triton by step; all count upwards.

    `at_s` is Unix time, but within a process steps of the clock do not matter to it. A process that belongs to no step
    has the step "".
    """

    at_s: float
    processes: Mapping[str, ProcessUse]
    counts: Mapping[str, StepCounts]
    gpus: int = 0


Weights: TypeAlias = Mapping[Owner, float]


def costs_between(before: ServerLook, now: ServerLook, served: Sequence[ServedRevision]) -> dict[Owner, RevisionCost]:
    """Return what each revision cost between two looks.

    A step's process belongs to the revisions that share the step, in proportion to their requests. Native networks get
    at most the time that they computed of the server's own CPU, as it also uses some while idle; the rest belongs to
    the revisions in proportion to the CPU of their steps. The CPU of all is exactly what the processes used.
    """
    counts = {name: now.counts[name].since(before.counts.get(name)) for name in now.counts}
    requests = {each.owner: counts[each.counted].requests if each.counted in counts else 0.0 for each in served}
    users: defaultdict[str, list[Owner]] = defaultdict(list)
    for each in served:
        for step in each.steps:
            users[step].append(each.owner)
    cpu_s: defaultdict[str, float] = defaultdict(float)
    memory_bytes: defaultdict[str, float] = defaultdict(float)
    for key, use in now.processes.items():
        former = before.processes.get(key)
        cpu_s[use.step] += max(use.cpu_s - (0.0 if former is None else former.cpu_s), 0.0)
        memory_bytes[use.step] += use.memory_bytes
    of_steps = _by_owner(cpu_s, users, requests)
    computed_s = _by_owner(
        {step: counts[step].computed_s for each in served for step in each.native if step in counts}, users, requests
    )
    own, everyone = cpu_s.get("", 0.0), dict.fromkeys((each.owner for each in served), 1.0)
    native_s = min(own, sum(computed_s.values()))
    for owner, part in _split(native_s, computed_s).items() if native_s else ():
        of_steps[owner] = of_steps.get(owner, 0.0) + part
    server = _split(own - native_s, of_steps if any(of_steps.values()) else everyone)
    memory = _by_owner(memory_bytes, users, dict.fromkeys(everyone, 1.0))
    shared_memory = _split(memory_bytes.get("", 0.0), memory if any(memory.values()) else everyone)
    seconds = seconds_between(before, now)
    return {
        owner: RevisionCost(
            step_cpu_s=of_steps.get(owner, 0.0),
            server_cpu_s=server.get(owner, 0.0),
            gpu_s=computed_s.get(owner, 0.0) if now.gpus else 0.0,
            memory_byte_s=seconds * (memory.get(owner, 0.0) + shared_memory.get(owner, 0.0)),
            requests=requests.get(owner, 0.0),
        )
        for owner in {*everyone, *of_steps, *server, *shared_memory}
    }


def seconds_between(before: ServerLook, now: ServerLook) -> float:
    """Return the time between two looks, zero if the clock went back while no process looked."""
    return max(now.at_s - before.at_s, 0.0)


def _by_owner(amounts: Mapping[str, float], users: Mapping[str, list[Owner]], weights: Weights) -> dict[Owner, float]:
    """Return the steps' amounts by the revisions that use them; the server's own, "", is left out."""
    total: defaultdict[Owner, float] = defaultdict(float)
    for step, amount in amounts.items():
        if step and amount:
            owners = users.get(step, ())
            for owner, part in _split(amount, {each: weights.get(each, 0.0) for each in owners}).items():
                total[owner] += part
    return dict(total)


def _split(amount: float, weights: Weights) -> dict[Owner, float]:
    """Divide an amount in proportion to the weights, evenly if all are zero; without weights it is `NOBODY`'s."""
    if not weights:
        return {NOBODY: amount} if amount else {}
    total = sum(weights.values())
    return {owner: amount * (weight / total if total else 1 / len(weights)) for owner, weight in weights.items()}


@dataclass(slots=True)
class CostLedger:
    """Sums of costs by revision. With a `file` a later process continues them; usage in the meantime also counts.

    `seconds` is the time in which they were counted.
    """

    file: Path | None = None
    costs: dict[Owner, RevisionCost] = field(default_factory=dict)
    seconds: float = 0.0
    _last: ServerLook | None = None

    def __post_init__(self) -> None:
        if self.file is not None:
            with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
                stored = read_file(self.file, json.loads)
                last = stored["last"]
                processes = {key: ProcessUse(*use) for key, use in last["processes"].items()}
                counts = {name: StepCounts(*each) for name, each in last["counts"].items()}
                self.costs, self.seconds = read_costs(stored), float(stored.get("seconds", 0.0))
                self._last = ServerLook(float(last["at_s"]), processes, counts)

    def add(self, look: ServerLook, served: Sequence[ServedRevision]) -> None:
        """Add what was used since the last look; the first look only says where counting begins."""
        if self._last is not None:
            self.seconds += seconds_between(self._last, look)
            for owner, cost in costs_between(self._last, look, served).items():
                self.costs[owner] = self.costs.get(owner, RevisionCost()) + cost
        left = self.costs.keys() - {each.owner for each in served}
        for owner in [each for each in self.costs if each in left][: max(len(left) - MOST_FORMER, 0)]:
            del self.costs[owner]
        self._last = look
        if self.file is not None:
            listed = [{**owner._asdict(), **asdict(cost)} for owner, cost in self.costs.items()]
            replace_file(self.file, json.dumps({"costs": listed, "seconds": self.seconds, "last": asdict(look)}))


def read_costs(stored: Mapping[str, Iterable[Mapping[str, float | str]]]) -> dict[Owner, RevisionCost]:
    """Return the costs in the content of a ledger's file; fields of a later release are left out."""
    known = RevisionCost.__dataclass_fields__
    return {
        Owner(str(each["model"]), str(each["revision"])): RevisionCost(
            **{name: float(value) for name, value in each.items() if name in known}
        )
        for each in stored["costs"]
    }


class CostAccountant:
    """Looks at a server every few seconds, in a thread of its own, and keeps a ledger.

    `uses` returns the use of the server's processes (None if that is not known), `counts` what its Triton counted,
    `served` its revisions.
    """

    def __init__(
        self,
        ledger: CostLedger,
        uses: Callable[[], ServerUse | None],
        counts: Callable[[], Mapping[str, StepCounts]],
        served: Callable[[], Sequence[ServedRevision]],
    ) -> None:
        self.ledger = ledger
        self._uses, self._counts, self._served = uses, counts, served
        self._began_s = time.time() - time.monotonic()

    def start(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        threading.Thread(target=self._run, args=(stop,), name="cost", daemon=True).start()

    def _run(self, stop: threading.Event) -> None:
        failing, took_s = False, 0.0
        while not stop.wait(period_s(took_s)):
            began_s, elsewhere_s = time.thread_time(), 0.0
            try:
                elsewhere_s = self.look()
                failing = False
            except TritonError:
                pass  # the server does not answer; what it uses counts at the next look
            except Exception:
                if not failing:
                    _LOG.exception("costs are not counted")
                failing = True
            took_s = time.thread_time() - began_s + elsewhere_s

    def look(self) -> float:
        """Look once, and return the CPU time that it took in another process."""
        found = self._uses()
        if found is None:
            return 0.0
        processes, gpus, look_cpu_s = found
        own = {"agent": ProcessUse("", time.process_time(), 0.0)}
        at_s = self._began_s + time.monotonic()
        self.ledger.add(ServerLook(at_s, {**processes, **own}, self._counts(), gpus), self._served())
        return look_cpu_s


def period_s(took_s: float) -> float:
    """Return the time until the next look, if the last one took so much CPU time."""
    return min(max(PERIOD_S, took_s / LOOK_SHARE), LONGEST_PERIOD_S)
