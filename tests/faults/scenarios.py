"""What can be wrong with a candidate or with the world around it, and what a rollout is to make of it."""

from __future__ import annotations

import copy
import io
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from bench.coins import variant
from bench.platform import MODELS, ROOT
from examples.zoo.world import STAR, draw_scenes
from fakes.rollout_load import pictures
from faults.golden_sets import Labelled, recorded
from faults.networks import artifact, with_other_weights, without_class
from faults.plan import Fault
from faults.platform import TIMEOUT_S
from faults.story import Story

Json = dict[str, Any]
Event = Callable[[Story], None]

COINS: Final = MODELS.parent
ZOO: Final = ROOT / "examples/zoo"
SLO: Final = {"errorPercent": 1, "p95Milliseconds": 40}
GATES: Final = (
    {"gate": "errorRate"},
    {"gate": "latency"},
    {"gate": "burnRate", "longWindow": "1m"},
    {"gate": "goldenQuality", "interval": "1m"},
    {"gate": "resource", "interval": "5s", "maxMemoryGrowthPercent": 30},
)
POLICY: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "steps": [{"weight": 25}, {"weight": 50}],
        "maxBadRequests": 300,
        "deadline": "10m",
        "onUndecided": "Hold",
        "bakeTime": "30s",
        "gates": list(GATES),
        # Most stories are about what callers' own requests show.
        "shadow": {"enabled": False},
    }
)
SHADOW: Final[Mapping[str, Any]] = MappingProxyType({"percent": 100, "minRequests": 40, "maxDuration": "2m"})
SHADOW_S: Final = 150.0
"""How much longer a rollout with such a Shadow may take."""
OUTAGE_S: Final = 20.0
RATES: Final = (1.0, 10.0, 50.0)

ROLLED_BACK: Final = "RolledBack"
PROMOTED: Final = "Succeeded"
HELD: Final = "held"


@dataclass(frozen=True, slots=True)
class Change:
    """A model as it serves at first and as it is to be, and the pictures that its callers bring."""

    first: Json
    second: Json
    pictures: Sequence[bytes]


@dataclass(frozen=True)
class Scenario:
    """One run: the fault of the candidate, from its first request on or (`at_once`) from its load on; and its callers.

    `change` is what the candidate changes; `event` happens once it is asked. `wanted` are the outcomes that were
    declared right. `slow_ms` makes an answer that took longer a bad one. has_shadow: its first requests are copies.
    """

    name: str
    rate: float
    wanted: frozenset[str]
    fault: Fault | None = None
    at_once: bool = False
    change: str = "same network"
    event: Event | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    slow_ms: float = float("inf")
    limit_s: float = 420.0
    has_shadow: bool = False

    @property
    def key(self) -> str:
        """What the results call it."""
        return f"{self.name}, {self.rate:g}/s{', Shadow' if self.has_shadow else ''}"

    def shadowed(self) -> Scenario:
        """Return the same with Shadow before its first step."""
        policy = {**self.policy, "shadow": dict(SHADOW)}
        return replace(self, policy=policy, limit_s=self.limit_s + SHADOW_S, has_shadow=True)


def change(scenario: Scenario, folder: Path) -> Change:
    """Return what a scenario changes; a network of its own and its golden set are written into `folder`."""
    return CHANGES[scenario.change](scenario.policy, folder)


def same_network(policy: Mapping[str, Any], _: Path) -> Change:
    """Change what no picture shows: the smallest area."""
    return Change(coins(policy, area=150), coins(policy, area=151), pictures())


def other_weights(policy: Mapping[str, Any], folder: Path) -> Change:
    """Give the coins a network whose weights are off."""
    network = with_other_weights(COINS / "coins-unet.onnx", folder / "other.onnx")
    second = coins(policy, area=150)
    second["spec"]["artifact"] = artifact(network)
    second["spec"]["golden"] = recorded(second, network, [labelled_coins()], folder / "golden")
    return Change(coins(policy, area=150), second, pictures())


def blind_to_stars(policy: Mapping[str, Any], folder: Path) -> Change:
    """Give the zoo's U-Net a successor that sees no star: the rare class, at most one in a picture."""
    first = next(each for each in yaml.safe_load_all((ZOO / "zoo.yaml").read_text()) if _name(each) == "zoo-unet")
    source = ZOO / first["spec"]["artifact"]["uri"]
    first["spec"] |= {"artifact": artifact(source), **_promises(policy)}
    network = without_class(source, folder / "blind.onnx", STAR)
    second = copy.deepcopy(first)
    second["spec"]["artifact"] = artifact(network)
    scenes = draw_scenes(48, seed=7)
    shown = tuple(_png(scene.image) for scene in scenes)
    labelled = [Labelled(f"scene-{i}", shown[i], _png(scenes[i].labels)) for i in range(24)]
    second["spec"]["golden"] = recorded(second, network, labelled, folder / "golden")
    return Change(first, second, shown)


CHANGES: Final[Mapping[str, Callable[[Mapping[str, Any], Path], Change]]] = {
    "same network": same_network,
    "other weights": other_weights,
    "blind to stars": blind_to_stars,
}


def coins(policy: Mapping[str, Any], *, area: int) -> Json:
    """Return the example's semantic model with a rollout's policy."""
    postprocess = [{"argmax": {}}, {"removeSmallRegions": {"minArea": area}}]
    return variant(postprocess=postprocess, **_promises(policy))


def _promises(policy: Mapping[str, Any]) -> Json:
    return {"slo": dict(SLO), "rollout": {**POLICY, **policy}, "keepPrevious": "1m"}


def _name(manifest: Json) -> str:
    return str(manifest["metadata"]["name"])


def _png(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


def labelled_coins() -> Labelled:
    """Return the photograph of the coins with where they truly are."""
    with Image.open(COINS / "truth.png") as truth:
        return Labelled("coins", (COINS / "coins.png").read_bytes(), _png(np.asarray(truth) > 0))


def run(scenario: Scenario) -> Json:
    """Play a scenario on a platform of its own, and return what was seen."""
    with tempfile.TemporaryDirectory() as name:
        changed = change(scenario, Path(name))
        story = Story(changed.first, scenario.rate, changed.pictures, slow_ms=scenario.slow_ms, timeout_s=TIMEOUT_S)
        return story.play(
            changed.second,
            fault=scenario.fault,
            at_once=scenario.at_once,
            event=scenario.event,
            limit_s=scenario.limit_s,
        )


# What happens to the candidate, or to the world.


def a_quarter_slower(story: Story) -> None:
    """Delay each of the candidate's answers by a quarter of stable's median."""
    median_ms = float(np.median([call.latency_ms for call in story.load.of(story.stable)]))
    story.platform.plan.set(**{story.candidate: Fault(delay_ms=median_ms / 4)})


def no_samples(story: Story) -> None:
    """Let the gateway say nothing for a while."""
    with story.platform.no_samples():
        time.sleep(OUTAGE_S)


def incident(story: Story) -> None:
    """Let both revisions be slow and fail for a while."""
    fault = Fault(delay_ms=100, errors=0.1)
    story.platform.plan.set(**{story.stable: fault, story.candidate: fault})
    time.sleep(OUTAGE_S)
    story.platform.plan.clear()


def burst(story: Story) -> None:
    """Let eight times as many callers come for a while."""
    story.load.rate *= 8
    time.sleep(OUTAGE_S / 2)
    story.load.rate /= 8


def restarts(story: Story) -> None:
    """Kill the supervisor again and again: it is gone for a second, and then there for some."""
    for _ in range(5):
        story.platform.kill_supervisor()
        time.sleep(1)
        story.platform.start_supervisor()
        time.sleep(5)


def clock_steps(story: Story) -> None:
    """Set the supervisor's clock an hour ahead, and two back."""
    for seconds in (3600.0, -3600.0):
        story.platform.step_clock(seconds)
        time.sleep(OUTAGE_S / 2)


def gateway_restart(story: Story) -> None:
    """Kill Envoy; the supervisor starts it again, and its counts begin at nothing."""
    envoy = story.platform.watched.process("gateway/envoy")
    assert envoy is not None
    envoy.kill()


def _each_rate(name: str, wanted: Sequence[str], **others: Any) -> tuple[Scenario, ...]:
    return tuple(Scenario(name, rate, frozenset(wanted), **others) for rate in RATES)


def _healthy(name: str, event: Event, rate: float = 10.0, **others: Any) -> Scenario:
    return Scenario(name, rate, frozenset({PROMOTED}), event=event, **others)


PROOF: Final = 1
"""So many requests the agent's proof asks: one a golden image, and the coins have one."""
AT_FIRST: Final = 12
"""So many requests are answered well where even our own labelled images shall find nothing."""
SLOW_MS: Final = 40.0

FAULTS: Final = (
    *_each_rate("+50 ms", [ROLLED_BACK], fault=Fault(delay_ms=50), slow_ms=SLOW_MS),
    *_each_rate("latency x1.25", [ROLLED_BACK, HELD], event=a_quarter_slower),
    *_each_rate("5 % errors", [ROLLED_BACK, HELD], fault=Fault(errors=0.05)),
    *_each_rate("100 % errors", [ROLLED_BACK], fault=Fault(errors=1.0)),
    *_each_rate("wrong masks", [ROLLED_BACK], fault=Fault(labels="shifted", after=PROOF), at_once=True),
    *_each_rate("rare class lost", [ROLLED_BACK], change="blind to stars"),
    *_each_rate("memory leak", [ROLLED_BACK], fault=Fault(leak_mib=4)),
    *_each_rate("crash loop", [ROLLED_BACK], fault=Fault(after=AT_FIRST, crash_after=5)),
    *_each_rate("hang", [ROLLED_BACK], fault=Fault(hang=True)),
    *_each_rate("slow start", [PROMOTED], fault=Fault(load_s=30), at_once=True),
    Scenario("other weights", 10, frozenset({ROLLED_BACK}), change="other weights"),
)
HEALTHY: Final = (
    *_each_rate("healthy", [PROMOTED]),
    Scenario(
        "night",
        0.2,
        frozenset({PROMOTED}),
        policy={"minRequests": 3, "deadline": "3m", "onUndecided": "Promote"},
        limit_s=360,
    ),
    _healthy("metrics outage", no_samples),
    _healthy("incident of both", incident),
    _healthy("burst", burst),
    _healthy("supervisor killed five times", restarts),
    _healthy("clock set an hour ahead, then back", clock_steps),
    _healthy("gateway killed", gateway_restart),
)
