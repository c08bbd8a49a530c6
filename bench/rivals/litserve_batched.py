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
        return prepare(request["image"].file.read(), is_dynamic=True)

    def batch(self, inputs: Sequence[Prepared]) -> Sequence[Prepared]:
        return inputs

    def predict(self, x: Sequence[Prepared]) -> list[list[bytes]]:
        found: list[list[bytes]] = [[]] * len(x)
        for shape in {tensor.shape for tensor, _ in x}:  # images of one shape make a batch
            chosen = [at for at, (tensor, _) in enumerate(x) if tensor.shape == shape]
            outputs = self.network(np.concatenate([x[at][0] for at in chosen]))
            for place, at in enumerate(chosen):
                found[at] = masks([each[place : place + 1] for each in outputs], x[at][1])
        return found

    def unbatch(self, output: list[list[bytes]]) -> list[list[bytes]]:
        return output

    def encode_response(self, output: list[bytes]) -> dict[str, Any]:
        return {"masks": [each.decode() for each in output]}


if __name__ == "__main__":
    api = Yolo(max_batch_size=4, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(sys.argv[3]))
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
