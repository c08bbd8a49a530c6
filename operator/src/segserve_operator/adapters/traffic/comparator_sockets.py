"""The sockets of a gateway's comparator, which its Envoy, its sidecar and the comparator itself have to agree on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ComparatorSockets:
    """UNIX sockets in `folder`: copies of callers' requests come over `http` (HTTP/1.1) and `grpc` (HTTP/2).

    At `control`, over HTTP/1.1, are the counts of pairs and the sheets of those that differ most.
    """

    folder: Path

    @property
    def http(self) -> Path:
        """Where Envoy sends copies of HTTP requests."""
        return self.folder / "http.sock"

    @property
    def grpc(self) -> Path:
        """Where Envoy sends copies of gRPC requests."""
        return self.folder / "grpc.sock"

    @property
    def control(self) -> Path:
        """Where counts and sheets are read."""
        return self.folder / "control.sock"
