"""`python -m bench.rivals.ray_server NETWORK PORT WORKERS`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import ray
import torch
from ray import serve
from starlette.requests import Request

from bench.rivals.pipeline import masks, prepare
from bench.rivals.session import session


@serve.deployment(num_replicas=int(sys.argv[3]), max_ongoing_requests=2, ray_actor_options={"num_cpus": 1})
class Yolo:
    """A process with one thread for each replica."""

    def __init__(self, network: str) -> None:
        torch.set_num_threads(1)
        self.network = session(Path(network), 1)

    async def __call__(self, request: Request) -> dict[str, list[str]]:
        tensor, size = prepare(await request.body())
        return {"masks": [each.decode() for each in masks(self.network(tensor), size)]}


if __name__ == "__main__":
    ray.init(num_cpus=int(sys.argv[3]) + 1, include_dashboard=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Yolo.bind(sys.argv[1]), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
