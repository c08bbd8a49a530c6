"""`python -m bench.rivals.litserve_batched NETWORK PORT WORKERS`: a network with a free batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import torch
from numpy.typing import NDArray

from bench.rivals.pipeline import masks, prepare
from bench.rivals.session import session

Prepared = tuple[NDArray[np.float32], tuple[int, int]]


class Yolo(litserve.LitAPI):
    """A process with one thread for each worker, which runs what waits as one batch."""

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.network = session(Path(sys.argv[1]), 1)

    def decode_request(self, request) -> Prepared:  # with a type it would be no form
        return prepare(request["image"].file.read())

    def batch(self, inputs: Sequence[Prepared]) -> Sequence[Prepared]:
        return inputs

    def predict(self, x: Sequence[Prepared]) -> list[list[bytes]]:
        outputs = self.network(np.concatenate([tensor for tensor, _ in x]))
        return [masks([each[at : at + 1] for each in outputs], size) for at, (_, size) in enumerate(x)]

    def unbatch(self, output: list[list[bytes]]) -> list[list[bytes]]:
        return output

    def encode_response(self, output: list[bytes]) -> dict[str, Any]:
        return {"masks": [each.decode() for each in output]}


if __name__ == "__main__":
    api = Yolo(max_batch_size=4, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(sys.argv[3]))
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
