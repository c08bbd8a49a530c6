"""Random edits on a real cluster: wherever they lead, the end is that of applying the last spec alone.

    PYTHONPATH=tests python -m bench.operator_mutations [SEQUENCES] [SEED]

The way of `tests/convergence/test_mutations.py` (Acto: Gu et al., SOSP 2023) with real parts: API server, kubelet,
agents, Triton, gateways. Draws sequences of valid and invalid edits, of requests by annotation and of disturbances,
applies them to the models of one pool, four at a time, and afterwards the last specs alone to those of another pool.
Writes bench/out/operator_mutations.json and its line in docs/evidence/reliability.md; the exit status is 1 where an end
differs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.operator_faults import DOCUMENT, a_cluster
from bench.platform import ROOT
from fakes.api_proxy import ApiProxy
from fakes.cluster_models import model, smallest
from fakes.cluster_pool import ClusterPool, name_of, pool_manifest
from fakes.mutations import Edit, edited, edits, spec_schema
from fakes.operator_process import OperatorProcess
from segserve_common.api_errors import InvalidError, UnavailableError
from segserve_common.kube.kinds import MODELS, POOLS, Kind
from segserve_operator.core.models.requests import VERBS

Json: TypeAlias = dict[str, Any]

OUT: Final = ROOT / "bench/out/operator_mutations.json"
SEQUENCES: Final = 200
AT_ONCE: Final = 4
EDITS: Final = 6
WITHIN_S: Final = 240.0
POLL_S: Final = 0.5
LOOKS: Final = 10
WORDS: Final = "<!-- mutations: written by make prove -->", "<!-- end of mutations -->"
FEW: Final = {"instances": 2, "intraOpThreads": 2, "maxBatchSize": 8}
"""What a machine has to pay for: their maximum here."""
OF_HISTORY: Final = {"keepPrevious": "0s", "allowClassChanges": True}
OF_TIME: Final = ("progressDeadline",)
"""What a last spec says of earlier ones is nothing, and of how long it may take neither."""
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
    artifact(uri="absent.onnx"),
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

    def put(self, name: str, spec: Json) -> None:
        """Apply a model, unless the API server refuses it."""
        if self._put(MODELS, {"metadata": {"name": name}, "spec": spec}):
            self.specs[name] = spec

    def put_pool(self, spec: Json) -> None:
        """Apply the pool, unless the API server refuses it."""
        whole = pool_manifest(gateway={"replicas": 1, "drainSeconds": 0}, server={"drainSeconds": 0})
        if self._put(POOLS, {"metadata": {"name": "default"}, "spec": whole["spec"] | spec}):
            self.of_pool = spec

    def _put(self, kind: Kind, manifest: Json) -> bool:
        whole = {"apiVersion": kind.api_version, "kind": kind.name, **manifest}
        client, namespace = self.pool.cluster.client, self.pool.namespace
        self.counts["edits"] += 1
        try:
            client.apply(kind, whole, namespace=namespace, force=True)
        except (InvalidError, UnavailableError) as error:
            # A value of another type than the schema's is refused as an error of the server (Kubernetes 1.20).
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
        """Return a model's status; nothing if it is about a former spec."""
        found = self._live(name)
        status: Json = found.get("status") or {}
        return status if status.get("observedGeneration") == found["metadata"]["generation"] else {}

    def _live(self, name: str) -> Json:
        found: Json = self.pool.cluster.get(self.pool.namespace, "segmentationmodel", name) or {}
        stable = ((found.get("status") or {}).get("roles") or {}).get("stable")
        if stable:
            self.served.setdefault(name, set()).add(stable["revision"])
        return found

    def promote(self) -> None:
        """Promote the rollouts in progress, for which there are no requests here."""
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
            return found or [str(error)[:4000]]
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


def prove(sequences: int, seed_number: int, folder: Path) -> Json:
    """Draw and apply so many sequences, and return what became of them."""
    with (
        a_cluster() as cluster,
        cluster.namespace("edits") as first,
        cluster.namespace("alone") as second,
        ApiProxy(cluster.kubeconfig).in_thread() as proxy,
    ):
        kubeconfig = proxy.write_kubeconfig(folder / "proxy.conf", first)
        operator = OperatorProcess(kubeconfig, (first, second), cluster.images, folder / "operator.log")
        sides = [Side(ClusterPool(cluster, each, operator.tail)) for each in (first, second)]
        with operator.running():
            return _rounds(Story(*sides, operator, proxy), draw(-(-sequences // AT_ONCE), seed_number), seed_number)


def _rounds(story: Story, stories: Sequence[Drawn], seed_number: int) -> Json:
    ended: list[str] = []
    began_s = time.monotonic()
    for number, drawn in enumerate(stories, 1):
        try:
            found = story.tell(drawn)
        except AssertionError as error:
            found = [str(error)[:4000]]
        ended += [f"story {number}: {line}; {drawn}" for line in found]
        Console().print(f"{number} of {len(stories)} after {time.monotonic() - began_s:.0f} s: {found or 'the same'}")
        story.seen.clear()
        story.alone.clear()
    counts = Counter({key: count for key, count in story.seen.counts.items() if key != "nothing"})
    return {
        "seed": seed_number,
        "sequences": sum(len(drawn.models) for drawn in stories),
        "counts": dict(counts),
        "ended_otherwise": ended,
        "seconds": round(time.monotonic() - began_s),
    }


def publish(result: Mapping[str, Any]) -> None:
    """Write the result and its line."""
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    counts = ", ".join(f"{count} x {name}" for name, count in sorted(result["counts"].items()))
    line = (
        f"Seed {result['seed']}: {result['sequences']} sequences in {result['seconds'] / 60:.0f} minutes ({counts}); "
        f"{len(result['ended_otherwise'])} ended otherwise."
    )
    begin, end = WORDS
    head, rest = DOCUMENT.read_text().split(begin)
    DOCUMENT.write_text("\n".join([head + begin, "", line, "", end + rest.split(end)[1]]))


def main() -> None:
    """Run the sequences; the exit status is 1 where one ended otherwise."""
    sequences = int(sys.argv[1]) if len(sys.argv) > 1 else SEQUENCES
    seed_number = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as name:
        result = prove(sequences, seed_number, Path(name))
    publish(result)
    if result["ended_otherwise"]:
        sys.exit("\n".join(result["ended_otherwise"]))


if __name__ == "__main__":
    main()
