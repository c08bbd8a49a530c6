"""Random edits on a real cluster: wherever they lead, the end is that of applying the last spec alone.

    PYTHONPATH=tests python -m bench.operator_mutations [SEQUENCES] [SEED] [--go-on] [--at-once N]

The way of `tests/convergence/test_mutations.py` (Acto: Gu et al., SOSP 2023) with real parts: API server, kubelet,
agents, Triton, gateways. Draws sequences of valid and invalid edits, of requests by annotation and of disturbances,
applies them to the models of one pool, four at a time, and afterwards the last specs alone to those of another pool.
Writes bench/out/operator_mutations.json and its line in bench/out/reliability.md after each four; the exit status
is 1 if an end differs. `--go-on` leaves out those that have a good result of this seed, and `--at-once` runs so many
pairs of pools side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.operator_faults import DOCUMENT
from bench.smoke import output, sized
from fakes.api_proxy import ApiProxy
from fakes.cluster import Cluster, running_cluster
from fakes.cluster_models import model, smallest
from fakes.cluster_pool import ClusterPool, name_of, small_pool
from fakes.mutations import Edit, edited, edits, spec_schema
from fakes.operator_process import OperatorProcess
from segserve_common.api_errors import InvalidError, UnavailableError
from segserve_common.kube.kinds import MODELS, POOLS, Kind
from segserve_operator.core.world.requests import VERBS

Json: TypeAlias = dict[str, Any]

OUT: Final = output("bench/out/operator_mutations.json")
SEQUENCES: Final = sized(200, 4)
AT_ONCE: Final = 4
EDITS: Final = 6
WITHIN_S: Final = 240.0
POLL_S: Final = 0.5
LOOKS: Final = 10
PROMOTE_EVERY_S: Final = 5.0
WORDS: Final = "<!-- mutations: written by make prove -->", "<!-- end of mutations -->"
FEW: Final = {"instances": 2, "intraOpThreads": 2, "maxBatchSize": 8}
"""What a machine has to pay for: their maximum here."""
OF_HISTORY: Final = {"keepPrevious": "0s", "allowClassChanges": True}
OF_TIME: Final = ("progressDeadline",)
"""What a last spec says of earlier ones is nothing, and of how long it may take neither."""
BRIEF: Final = {"bakeTime": "10s"}
"""Of each spec: nobody can ask for the end of a bake, and one that has begun goes on as its spec said then."""
OF_POOL: Final = ("replicas", "isolation", "minReady", "update")
CONDITIONS: Final = ("ArtifactVerified", "RevisionLoaded", "GoldenPassed", "Ready", "Progressing", "Degraded")
_OF_ANOTHER_TYPE: Final = "failed to create typed patch object"
STAGES: Final = ("Pending", "Golden", "Shadow", "Progressing", "Quarantined", "Baking")


def base_spec(area: int = 150) -> Json:
    """Return a spec that is served."""
    spec: Json = model(postprocess=smallest(area), **OF_HISTORY)["spec"]
    spec.pop("expose", None)
    return spec


def artifact(**changed: str) -> Edit:
    """Return an edit of the network's file."""
    return Edit(("artifact",), base_spec()["artifact"] | changed)


def model_schema() -> Json:
    """Return the schema of a model's spec, with fewer instances than it allows."""
    schema = spec_schema("SegmentationModel")

    def limit(at: Any) -> None:
        for name, child in at.items():
            if name in FEW and isinstance(child, dict) and "maximum" in child:
                child["maximum"] = FEW[name]
            if isinstance(child, dict):
                limit(child)

    limit(schema)
    return schema


@dataclass(frozen=True, slots=True)
class Request:
    """An annotation about a rollout; `of` is a role, whose revision it names, or no revision."""

    verb: str
    of: str


_BOXES: Final = model("coins-instances")["spec"]["artifact"]
OTHERS: Final = [
    *(Edit(("postprocess",), smallest(area)) for area in (150, 151, 152, 100_000)),
    artifact(),
    artifact(sha256="0" * 64),
    # Of a digest that no server has in its cache: else it depends on the server whether this can be served.
    artifact(uri="absent.onnx", sha256="1" * 64),
    artifact(**{key: _BOXES[key] for key in ("uri", "sha256")}),
    *(Edit(("rollout",), policy) for policy in ({}, {"strategy": "blueGreen"}, {"strategy": "immediate"})),
    Edit(("rollout",), {"gates": [], "steps": [{"weight": 50}]}),
]
"""Other revisions, networks that cannot be served, ways to roll out."""
DISTURBANCES: Final = ("nothing", "nothing", "operator restarted", "server deleted", "model made anew")
REQUESTS: Final = st.builds(Request, st.sampled_from(VERBS), st.sampled_from(("stable", "candidate", "nobody")))
ANY_EDIT: Final = edits(model_schema(), but=("pool",)) | st.sampled_from(OTHERS)
STEPS: Final = st.lists(ANY_EDIT | st.sampled_from(OTHERS) | REQUESTS, min_size=1, max_size=EDITS)
POOL_SCHEMA: Final = spec_schema("TritonPool", replicas=2)
POOL_EDITS: Final = st.lists(
    edits(POOL_SCHEMA, but=[name for name in POOL_SCHEMA["properties"] if name not in OF_POOL]), max_size=2
)
BETWEEN: Final = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(DISTURBANCES)), min_size=EDITS, max_size=EDITS)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Steps of each model, edits of their pool, and after each how long to wait (half seconds) and what happens."""

    models: list[list[Edit | Request]]
    pool: list[Edit]
    between: list[tuple[int, str]]


def draw(rounds: int, seed_number: int) -> list[Drawn]:
    """Return so many stories, always the same ones for a seed."""
    found: list[Drawn] = []

    generated = settings(
        max_examples=rounds + 1,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    @seed(seed_number)
    @generated
    @given(st.lists(STEPS, min_size=AT_ONCE, max_size=AT_ONCE), POOL_EDITS, BETWEEN)
    def collect(models: list[list[Edit | Request]], pool: list[Edit], between: list[tuple[int, str]]) -> None:
        found.append(Drawn(models, pool, between))

    collect()
    return found[1 : rounds + 1]  # the first is the least that there can be


@dataclass
class Side:
    """A namespace with a pool and models; `specs` are those that the API server took."""

    pool: ClusterPool
    specs: dict[str, Json] = field(default_factory=dict)
    of_pool: Json = field(default_factory=dict)
    served: dict[str, set[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    promoted_s: float = float("-inf")

    def put(self, name: str, spec: Json) -> None:
        """Apply a model, unless the API server refuses it."""
        if isinstance(spec.get("rollout"), dict):
            spec = spec | {"rollout": spec["rollout"] | BRIEF}
        if self._put(MODELS, {"metadata": {"name": name}, "spec": spec}):
            self.specs[name] = spec

    def put_pool(self, spec: Json) -> None:
        """Apply the pool, unless the API server refuses it."""
        if self._put(POOLS, {"metadata": {"name": "default"}, "spec": small_pool()["spec"] | spec}):
            self.of_pool = spec

    def _put(self, kind: Kind, manifest: Json) -> bool:
        whole = {"apiVersion": kind.api_version, "kind": kind.name, **manifest}
        client, namespace = self.pool.cluster.client, self.pool.namespace
        self.counts["edits"] += 1
        try:
            client.apply(kind, whole, namespace=namespace, force=True)
        except (InvalidError, UnavailableError) as error:
            # A value of another type than the schema's is refused as an error of the server.
            if isinstance(error, UnavailableError) and _OF_ANOTHER_TYPE not in str(error):
                raise
            self.counts["refused by the API server"] += 1
            return False
        return True

    def annotate(self, name: str, verb: str, revision: str) -> None:
        """Ask for something of a rollout."""
        patch = {"metadata": {"annotations": {f"segserve.dev/{verb}": f"{revision}@bench/{time.time_ns()}"}}}
        self.pool.cluster.client.patch(MODELS, name, patch, namespace=self.pool.namespace)

    def status(self, name: str) -> Json:
        """Return a model's status; nothing if its conditions are about a former spec."""
        found = self._live(name)
        status: Json = found.get("status") or {}
        # That of the status lags until a rollout has ended, of one whose file is missing for ten minutes.
        seen = {condition["observedGeneration"] for condition in status.get("conditions", ())}
        return status if seen == {found["metadata"]["generation"]} else {}

    def _live(self, name: str) -> Json:
        found: Json = self.pool.cluster.get(self.pool.namespace, "segmentationmodel", name) or {}
        stable = ((found.get("status") or {}).get("roles") or {}).get("stable")
        if stable:
            self.served.setdefault(name, set()).add(stable["revision"])
        return found

    def promote(self) -> None:
        """Promote the rollouts in progress, for which there are no requests here; ask for it every few seconds."""
        # Each request is a write in the next pass: a pool that is asked at every look is slowed down by the operator.
        if time.monotonic() < self.promoted_s + PROMOTE_EVERY_S:
            return
        self.promoted_s = time.monotonic()
        for name in self.specs:
            # A rollout in progress is of a spec that does not count as observed yet.
            rollout = (self._live(name).get("status") or {}).get("rollout") or {}
            if rollout.get("phase") in STAGES:
                self.annotate(name, "promote", rollout["revision"])

    def clear(self) -> None:
        """Delete all models, and return once they are gone."""
        for name in self.specs:
            self.pool.delete("segmentationmodel", name)
        self.pool.wait("no model is left", lambda: not self.pool.cluster.get(self.pool.namespace, "segm"), WITHIN_S)
        self.specs, self.served = {}, {}

    def state(self, name: str) -> Json:
        """Return what is to be seen of a model, without times, addresses and names of groups."""
        status = self.status(name)
        roles = status.get("roles") or {}
        shares = self.pool.routes().get(name, {}).get("shares", ())
        conditions = {each["type"]: [each["status"], each["reason"]] for each in status.get("conditions", ())}
        return {
            "conditions": {kind: conditions.get(kind) for kind in CONDITIONS},
            "roles": {role: held["revision"] for role, held in roles.items() if held},
            "shares": {share["revision"]: [share["weight"], len(share["endpoints"])] for share in shares},
        }


def is_decided(state: Json) -> bool:
    """Tell whether a model serves what it says and nothing is under way, or it is known that it cannot."""
    ready, progressing, degraded = (state["conditions"][kind] for kind in ("Ready", "Progressing", "Degraded"))
    if ready is None or progressing is None or degraded is None:
        return False
    return degraded[0] == "True" or (ready[0] == "True" and progressing[0] == "False")


def different(seen: Json, alone: Json, served: set[str]) -> str:
    """Return how an end differs; one that is refused alone is refused so, and what served goes on."""
    if alone["conditions"]["Ready"] == ["True", "Serving"] and "candidate" not in alone["roles"]:
        return "" if seen == alone else f"{seen}, not {alone}"
    if seen["conditions"]["Degraded"] != alone["conditions"]["Degraded"]:
        return f"Degraded is {seen['conditions']['Degraded']}, not {alone['conditions']['Degraded']}"
    if "stable" not in seen["roles"]:
        return ""
    goes_on = seen["conditions"]["Ready"] == ["True", "Serving"] and sum(w for w, _ in seen["shares"].values()) == 100
    return "" if goes_on and seen["roles"]["stable"] in served else f"what served does not go on: {seen}"


@dataclass
class Story:
    """The pool with all edits, the one with the last specs alone, and their operator."""

    seen: Side
    alone: Side
    operator: OperatorProcess
    proxy: ApiProxy

    def tell(self, drawn: Drawn) -> list[str]:
        """Make a story's edits, and return how its ends differ."""
        names = [f"model-{number}" for number in range(len(drawn.models))]
        self.seen.put_pool({})
        for name in names:
            self.seen.put(name, base_spec())
        self.settle(self.seen)
        for number, (halves, disturbance) in enumerate(drawn.between):
            for name, steps in zip(names, drawn.models, strict=True):
                if number < len(steps):
                    self._take(name, steps[number])
            if number < len(drawn.pool):
                self.seen.put_pool(edited(self.seen.of_pool, drawn.pool[number]))
            time.sleep(halves * POLL_S)
            self._disturb(disturbance, names[0])
            for name in names:
                self.seen.status(name)
        for name, steps in zip(names, drawn.models, strict=True):
            spec = {key: value for key, value in self.seen.specs[name].items() if key not in OF_TIME} | OF_HISTORY
            if any(isinstance(step, Request) for step in steps):
                spec["postprocess"] = smallest(160)  # what a person has refused is not tried again
            self.seen.put(name, spec)
        self.alone.put_pool(self.seen.of_pool)
        for name in names:
            self.alone.put(name, self.seen.specs[name])
        self.settle(self.alone)
        return self._differences(names)

    def settle(self, side: Side) -> None:
        """Return once a side has come to rest."""
        former: list[Json] = []

        def rests() -> bool:
            side.promote()
            former.append({name: side.state(name) for name in side.specs})
            moving = {name: said for name, said in former[-1].items() if not is_decided(said)}
            assert not moving, moving
            return len(former) > LOOKS and all(each == former[-1] for each in former[-LOOKS:])

        side.pool.wait("nothing changes any more", rests, WITHIN_S)

    def _differences(self, names: Sequence[str]) -> list[str]:
        """Return how the ends differ, once they no longer do, or after a while."""
        found: list[str] = []

        def same() -> bool:
            self.seen.promote()
            self.alone.promote()
            ends = {name: (self.seen.state(name), self.alone.state(name)) for name in names}
            assert all(is_decided(state) for both in ends.values() for state in both), ends
            lines = {name: different(*both, self.seen.served.get(name, set())) for name, both in ends.items()}
            found[:] = [f"{name}: {line}" for name, line in lines.items() if line]
            assert not found, found
            return True

        try:
            self.seen.pool.cluster.wait("both ends are the same", same, WITHIN_S)
            self._calm()
        except AssertionError as error:
            moving = {name: self.seen.pool.model(name) for name in names if not self.seen.status(name)}
            return found or [f"{str(error)[:4000]}; without a status of their last spec: {moving}"]
        return []

    def _calm(self) -> None:
        """Return once the operator has looked at everything and written nothing."""

        def rests() -> bool:
            seen = len(self.proxy.writes)
            for _ in range(2):
                passes = self.operator.passes()
                for side in (self.seen, self.alone):
                    side.pool.touch()
                self.seen.pool.cluster.wait("passes", lambda former=passes: self.operator.passes() >= former + 2)
            last = self.proxy.writes[-5:]
            assert len(self.proxy.writes) == seen, f"it never rests: {last}"
            return True

        self.seen.pool.cluster.wait("the operator rests", rests)

    def _take(self, name: str, step: Edit | Request) -> None:
        if isinstance(step, Edit):
            self.seen.put(name, edited(self.seen.specs[name], step))
            return
        held = (self.seen.status(name).get("roles") or {}).get(step.of) or {}
        self.seen.annotate(name, step.verb, held.get("revision", "nobody"))
        self.seen.counts["requests"] += 1

    def _disturb(self, disturbance: str, first: str) -> None:
        self.seen.counts[disturbance] += 1
        if disturbance == "operator restarted":
            self.operator.restart()
        elif disturbance == "server deleted":
            for pod in self.seen.pool.servers()[:1]:
                self.seen.pool.delete("pod", name_of(pod))
        elif disturbance == "model made anew":
            spec = self.seen.specs[first]
            self.seen.pool.cluster.kubectl("-n", self.seen.pool.namespace, "delete", "segm", first)
            self.seen.put(first, spec)


@dataclass
class Proof:
    """Stories that are still to be told, by several threads, and the results of all by number."""

    cluster: Cluster
    folder: Path
    result: Json
    stories: deque[tuple[int, Drawn]]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, worker: int) -> None:
        """Tell stories until none is left, in new namespaces after each that ended otherwise."""
        folder = self.folder / f"worker-{worker}"
        folder.mkdir()
        cluster = replace(self.cluster)  # with connections of its own
        while self.stories:
            with (
                cluster.namespace("edits") as first,
                cluster.namespace("alone") as second,
                ApiProxy(cluster.kubeconfig).in_thread() as proxy,
            ):
                kubeconfig = proxy.write_kubeconfig(folder / "proxy.conf", first)
                operator = OperatorProcess(kubeconfig, (first, second), cluster.images, folder / "operator.log")
                seen, alone = (Side(ClusterPool(cluster, each, operator.tail)) for each in (first, second))
                with operator.running():
                    while self.stories and self._tell(Story(seen, alone, operator, proxy)):
                        pass
        cluster.close()

    def _tell(self, story: Story) -> bool:
        number, drawn = self.stories.popleft()
        story.seen.counts.clear()
        began_s = time.monotonic()
        try:
            found = story.tell(drawn)
            story.seen.clear()
            story.alone.clear()
        except AssertionError as error:
            (self.folder / f"story-{number}.log").write_text(str(error))
            found = [str(error)[:4000]]
        with self.lock:
            self.result["stories"][str(number)] = {
                "sequences": len(drawn.models),
                "counts": {key: count for key, count in story.seen.counts.items() if key != "nothing"},
                "ended_otherwise": [f"{line}; {drawn}" for line in found],
                "seconds": round(time.monotonic() - began_s),
            }
            publish(self.result)
            Console().print(f"story {number}: {found or 'the same'}; {len(self.stories)} left")
        return not found


def prove(sequences: int, result: Json, folder: Path, at_once: int) -> None:
    """Draw so many sequences, apply those that have no good result, and add what became of them."""
    drawn = enumerate(draw(-(-sequences // AT_ONCE), result["seed"]), 1)
    good = {number for number, told in result["stories"].items() if not told["ended_otherwise"]}
    with running_cluster() as cluster, ThreadPoolExecutor(at_once) as pool:
        proof = Proof(cluster, folder, result, deque(each for each in drawn if str(each[0]) not in good))
        for done in [pool.submit(proof.work, worker) for worker in range(at_once)]:
            done.result()


def publish(result: Mapping[str, Any]) -> None:
    """Write the results and their line."""
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    told = result["stories"].values()
    total: Counter[str] = sum((Counter(each["counts"]) for each in told), Counter())
    counts = ", ".join(f"{count} x {name}" for name, count in sorted(total.items()))
    line = (
        f"Seed {result['seed']}: {sum(each['sequences'] for each in told)} sequences of {SEQUENCES} in "
        f"{sum(each['seconds'] for each in told) / 60:.0f} minutes ({counts}); "
        f"{sum(len(each['ended_otherwise']) for each in told)} ended otherwise."
    )
    begin, end = WORDS
    head, rest = DOCUMENT.read_text().split(begin)
    DOCUMENT.write_text("\n".join([head + begin, "", line, "", end + rest.split(end)[1]]))


def main() -> None:
    """Run the sequences; the exit status is 1 if one ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", nargs="?", type=int, default=SEQUENCES)
    parser.add_argument("seed", nargs="?", type=int, default=1)
    parser.add_argument("--go-on", action="store_true")
    parser.add_argument("--at-once", type=int, default=1)
    chosen = parser.parse_args()
    result: Json = {"seed": chosen.seed, "stories": {}}
    if chosen.go_on and OUT.exists() and (kept := json.loads(OUT.read_text()))["seed"] == chosen.seed:
        result = kept
    with tempfile.TemporaryDirectory() as name:
        prove(chosen.sequences, result, Path(name), chosen.at_once)
    if otherwise := [line for told in result["stories"].values() for line in told["ended_otherwise"]]:
        sys.exit("\n".join(otherwise))


if __name__ == "__main__":
    main()
