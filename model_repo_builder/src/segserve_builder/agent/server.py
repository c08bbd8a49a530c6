"""The port to one Triton, over gRPC on loopback: every call has a deadline and a typed error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from segserve_builder.agent.state import Ensemble
from segserve_builder.render.config import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    RawAnswer = dict[str, NDArray[Any]]

QUESTION_S: Final = 2.0
LOAD_S: Final = 900.0
UNLOAD_S: Final = 30.0
_CHANNEL: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A restarted server must be seen at once; gRPC would wait up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
]


class TritonError(Exception):
    """A call to the server that did not do what it should."""


class TritonUnreachableError(TritonError):
    """Nobody answers at the server's port."""


class TritonTimeoutError(TritonError):
    """No answer within the deadline."""


class TritonRefusedError(TritonError):
    """The server answered with an error; `status` is gRPC's word for it, such as INVALID_ARGUMENT."""

    def __init__(self, status: str, message: str) -> None:
        self.status = status
        super().__init__(message)


class TritonServer:
    """One Triton. Safe to use from many threads."""

    def __init__(self, grpc_port: int, headers: Mapping[str, str] | None = None) -> None:
        """Connect when first asked; `headers` go with every call, as restricted APIs want them."""
        from tritonclient.grpc import InferenceServerClient

        self._headers = dict(headers or {})
        self._client = InferenceServerClient(f"127.0.0.1:{grpc_port}", channel_args=_CHANNEL)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def states(self) -> dict[str, str]:
        """Return the state of every model that the server has heard of, '' for one that is on disk alone."""
        with self._asking():
            index = self._client.get_model_repository_index(headers=self._headers, client_timeout=QUESTION_S)
        own = [model for model in index.models if model.version in ("", str(VERSION))]
        return {model.name: model.state for model in own}

    def ensemble(self, name: str) -> Ensemble:
        """Return what the server says of a ready ensemble."""
        with self._asking():
            config = self._client.get_model_config(name, headers=self._headers, client_timeout=QUESTION_S).config
        return ensemble_of(config)

    def load(self, name: str) -> None:
        """Load a model as its files are now; returns once it is ready."""
        with self._asking():
            self._client.load_model(name, headers=self._headers, client_timeout=LOAD_S)

    def unload(self, name: str) -> None:
        """Ask for a model's end; the server first answers what it has begun."""
        with self._asking():
            self._client.unload_model(name, headers=self._headers, client_timeout=UNLOAD_S)

    def answered(self, name: str) -> int:
        """Return how many requests a model has answered since it was loaded."""
        with self._asking():
            statistics = self._client.get_inference_statistics(name, headers=self._headers, client_timeout=QUESTION_S)
        return sum(int(model.inference_stats.success.count) for model in statistics.model_stats)

    def infer(self, model: str, image: bytes, parameters: Mapping[str, Any], timeout_s: float) -> RawAnswer:
        """Return all outputs of `model` for one encoded image."""
        import numpy as np
        from tritonclient.grpc import InferInput

        tensor = InferInput("IMAGE", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image], dtype=object))
        with self._asking():
            result = self._client.infer(
                model,
                [tensor],
                parameters=dict(parameters),
                headers=self._headers,
                client_timeout=timeout_s,
                # A stream of one frame, for models of videos that take nothing else; others do not look at it.
                sequence_id=f"segserve-{uuid4()}",
                sequence_start=True,
                sequence_end=True,
            )
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            status = str(error.status() or "").removeprefix("StatusCode.")
            message = str(error.message())
            if status in ("DEADLINE_EXCEEDED", "Deadline Exceeded"):
                raise TritonTimeoutError(message) from error
            # A model's queue that is full is UNAVAILABLE as well; only the port itself tells the two apart.
            if status in ("UNAVAILABLE", "CANCELLED") and not self._is_live():
                raise TritonUnreachableError(message) from error
            raise TritonRefusedError(status, message) from error

    def _is_live(self) -> bool:
        from tritonclient.utils import InferenceServerException

        try:
            return bool(self._client.is_server_live(headers=self._headers, client_timeout=QUESTION_S))
        except InferenceServerException:
            return False


def ensemble_of(config: Any) -> Ensemble:
    """Return what a ModelConfig message says of the ensemble; nothing where it is none of ours."""
    steps = frozenset(step.model_name for step in config.ensemble_scheduling.step)
    revision = config.parameters["revision"].string_value if "revision" in config.parameters else ""
    return Ensemble(revision, steps)
