"""The examples' models and small pools, as a user of a cluster applies them."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from fakes.pools import pods_with

Json = dict[str, Any]

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
SEMANTIC: Final = "coins"
API: Final = "segserve.dev/v1alpha1"
LITTLE: Final = {"requests": {"cpu": "10m", "memory": "64Mi"}}
"""What a container asks for, so that many pools have room on one node."""
LITTLE_SERVER: Final = {"resources": LITTLE, **pods_with({"agent": {"resources": LITTLE}})}
LITTLE_GATEWAY: Final = pods_with({"envoy": {"resources": LITTLE}, "sync": {"resources": LITTLE}})
_SERVER: Final = {**LITTLE_SERVER, "sharedMemory": "256Mi", "drainSeconds": 3, "exitTimeoutSeconds": 10}
_GATEWAY: Final = {"workers": 1, **LITTLE_GATEWAY, "drainSeconds": 3}


def pool(name: str = "default", *, server: Json | None = None, gateway: Json | None = None, **spec: Any) -> Json:
    """Return a pool that asks for little and ends quickly; parts replace those of the same name."""
    parts = {"server": {**_SERVER, **(server or {})}, "gateway": {**_GATEWAY, **(gateway or {})}}
    return {"apiVersion": API, "kind": "TritonPool", "metadata": {"name": name}, "spec": {**parts, **spec}}


SERVED: Final = {
    "coins": "default",
    "coins-instances": "default",
    "coins-twostage": "default",
    "zoo-unet": "second",
    "zoo-maskformer": "second",
}
"""Five models of four families, and their pools."""


def default_pool(*, server: Json | None = None, **spec: Any) -> Json:
    """Return the pool of the coins: two servers, which answer on for as long as others take to start; two gateways."""
    return pool(**{"replicas": 2, "server": {"drainSeconds": 35, **(server or {})}, **spec})


def second_pool(base: str, **spec: Any) -> Json:
    """Return the pool of the zoo, whose files are at `base`: one server that candidates share, and one gateway."""
    return pool("second", gateway={"replicas": 1}, artifacts={"base": base}, isolation="shared", **spec)


def model(like: str = SEMANTIC, *, name: str | None = None, **spec: Any) -> Json:
    """Return one of the examples' models, perhaps by another name; fields replace those of its spec.

    Its artifacts stay relative: to the examples' folder of its kind, or to the base of its pool.
    """
    found = copy.deepcopy(_examples()[like])
    found["metadata"]["name"] = name or like
    found["spec"] |= spec
    return found


def on_this_machine(manifest: Json) -> Json:
    """Return an example's model with its files named where they are here, as the local platform needs them."""
    found = copy.deepcopy(manifest)
    folder = EXAMPLES / ("zoo" if found["spec"]["artifact"]["uri"].startswith("weights/") else "coins")
    for part in ("artifact", "golden"):
        if part in found["spec"]:
            found["spec"][part]["uri"] = (folder / found["spec"][part]["uri"]).as_uri()
    return found | {"spec": found["spec"] | {"pool": "default"}}


def smallest(area: int) -> list[Json]:
    """Return the coins' post-processing with another limit of area: the same answers by another revision."""
    return [{"argmax": {}}, {"removeSmallRegions": {"minArea": area}}]


@cache
def _examples() -> dict[str, Json]:
    files = (EXAMPLES / "coins/model.yaml", EXAMPLES / "zoo/zoo.yaml")
    found = (document for file in files for document in yaml.safe_load_all(file.read_text()))
    return {document["metadata"]["name"]: document for document in found}
