"""`python -m bench.rivals.litserve_semantic NETWORK PORT WORKERS`."""

from __future__ import annotations

import sys
from pathlib import Path

import litserve
from starlette.responses import Response

from bench.rivals.semantic import label_map, prepare
from bench.rivals.session import session


class UNet(litserve.LitAPI):
    """A process with one thread for each worker."""

    def setup(self, device: str) -> None:
        self.network = session(Path(sys.argv[1]), 1)

    def decode_request(self, request) -> bytes:  # with a type it would be no form
        return request["image"].file.read()

    def predict(self, x: bytes) -> bytes:
        tensor, size = prepare(x)
        (logits,) = self.network(tensor)
        return label_map(logits[0], size)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    server = litserve.LitServer(UNet(), accelerator="cpu", workers_per_device=int(sys.argv[3]))
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
