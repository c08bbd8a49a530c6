"""`python -m bench.rivals.litserve_server NETWORK PORT WORKERS [dynamic]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve
import torch

from bench.rivals.pipeline import masks, prepare
from bench.rivals.session import session


class Yolo(litserve.LitAPI):
    """A process with one thread for each worker."""

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.network = session(Path(sys.argv[1]), 1)

    def decode_request(self, request) -> bytes:  # with a type it would be no form
        return request["image"].file.read()

    def predict(self, x: bytes) -> list[bytes]:
        tensor, size = prepare(x, is_dynamic=sys.argv[4:] == ["dynamic"])
        return masks(self.network(tensor), size)

    def encode_response(self, output: list[bytes]) -> dict[str, Any]:
        return {"masks": [each.decode() for each in output]}


if __name__ == "__main__":
    server = litserve.LitServer(Yolo(), accelerator="cpu", workers_per_device=int(sys.argv[3]))
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
