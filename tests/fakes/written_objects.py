"""Objects that a release writes: those of a cluster in memory with a settled model and one in a rollout.

`python -m fakes.written_objects FILE` in the `tests` folder of a release writes them, packed contents as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes.cluster_world import ClusterWorld, model_manifest
from segserve_common.kube.kinds import EVENTS, ROLLOUTS
from segserve_common.kube.shards import pack, unpack

Json = dict[str, Any]
STEPS = {"strategy": "canary", "gates": [], "steps": [{"weight": 25, "pause": True}]}


async def written_objects() -> list[Json]:
    """Return all objects but Events, as the API server has them."""
    world = ClusterWorld()
    world.apply_pool(replicas=2)
    world.apply(model_manifest("coins", "1", golden={"uri": "file:///golden", "sha256": "1" * 64}))
    world.apply(model_manifest("discs", "1", runtime={"maxBatchSize": 4}))
    await world.turns(8)
    world.apply(model_manifest("discs", "2", rollout=STEPS))
    await world.turns(12)
    return [plain(item) for kind, item in world.kube.everything() if kind != EVENTS]


def plain(item: Json) -> Json:
    """Return an object with what is packed in it as JSON."""
    return _each_packed(item, unpack)


def repacked(item: Json) -> Json:
    """Return an object with its JSON packed again."""
    return _each_packed(item, pack)


def _each_packed(item: Json, change: Callable[[Any], Any]) -> Json:
    found = dict(item)
    if "binaryData" in item:
        found["binaryData"] = {key: change(value) for key, value in item["binaryData"].items()}
    if item["kind"] == ROLLOUTS.name:
        parts = {part: change(item["status"][part]) for part in ("state", "evidence")}
        decisions = [{**each, "inputs": change(each["inputs"])} for each in item["status"]["decisions"]]
        found["status"] = {**item["status"], **parts, "decisions": decisions}
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(asyncio.run(written_objects()), indent=1, sort_keys=True) + "\n")
