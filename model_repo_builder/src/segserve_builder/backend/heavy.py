"""Requests from the last step of a cascade's light network to the heavy one, on the same server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, Final

import triton_python_backend_utils as pb_utils

from segserve_builder.backend.responses import error_response, log_error, parameters_of, unavailable_response
from segserve_builder.spec.model_spec import Input
from segserve_builder.steps.cascade import TIER
from segserve_builder.steps.public_outputs import public_inputs
from segserve_builder.steps.step_options import HeavyOptions

_MOST_THREADS: Final = 24
"""Triton sends light answers in the same 32 threads in which it waits for heavy ones."""
_STACK_BYTES: Final = 512 * 1024


class HeavyModel:
    """Asks the heavy network in threads of its own, so that the step goes on with light answers meanwhile.

    Requests beyond those that the network's own queue would take are refused, as Triton does.
    """

    def __init__(self, options: HeavyOptions, image: Input) -> None:
        self.cascade = options.cascade
        self._free = BoundedSemaphore(options.max_requests + options.max_queue_size)
        self._most_waiting = options.max_queue_size
        self._model = options.model
        self._inputs = tuple(tensor.name for tensor in public_inputs(image))
        self._threads = _started_threads(min(options.max_requests, _MOST_THREADS))

    def close(self) -> None:
        """Wait for the answers to all requests."""
        self._threads.shutdown()

    def send(self, requests: Sequence[Any], responses: Sequence[Any]) -> list[None]:
        """Send the responses; for one that is None, send the heavy network's response once it has answered.

        Returns what Triton expects of a step that sends responses by itself.
        """
        for request, response in zip(requests, responses, strict=True):
            sender = request.get_response_sender()
            if response is not None:
                _send(sender, response)
                continue
            if not self._free.acquire(blocking=False):
                full = f"{self._most_waiting} requests wait for the heavy network already (runtime.maxQueueSize)"
                _send(sender, unavailable_response(full))
                continue
            try:
                given = (pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs)
                # It does not get the request's trace, which Triton may have freed once `execute` has returned.
                call = pb_utils.InferenceRequest(
                    model_name=self._model,
                    model_version=1,
                    request_id=request.request_id(),
                    # Triton takes no floats from its own steps; numbers may come as text.
                    parameters={
                        name: value if isinstance(value, bool | int | str) else str(value)
                        for name, value in parameters_of(request).items()
                        if name != TIER
                    },
                    requested_output_names=list(request.requested_output_names()),
                    inputs=[tensor for tensor in given if tensor is not None],
                )
                self._threads.submit(self._forward, call, sender)
            except Exception as error:
                self._free.release()
                _send(sender, error_response(error, request.request_id()))
        return [None] * len(requests)

    def _forward(self, call: Any, sender: Any) -> None:
        try:
            answer = call.exec()
            if answer.has_error():
                message = answer.error().message().removeprefix(f"in ensemble '{self._model}', ")
                refusal = pb_utils.TritonError(message, answer.error().code())
                response = pb_utils.InferenceResponse(output_tensors=[], error=refusal)
            else:
                response = pb_utils.InferenceResponse(answer.output_tensors())
        except Exception as error:
            response = error_response(error, call.request_id())
        self._free.release()
        try:
            _send(sender, response)
        except Exception as error:  # an exception in a thread goes unseen
            log_error(error, call.request_id())


def _started_threads(number: int) -> ThreadPoolExecutor:
    """Return a pool that starts no thread later, when there may be no memory for one."""
    former = threading.stack_size(_STACK_BYTES)
    try:
        pool, started = ThreadPoolExecutor(number, thread_name_prefix="heavy"), threading.Barrier(number + 1)
        for _ in range(number):
            pool.submit(started.wait)
        started.wait()
    finally:
        threading.stack_size(former)
    return pool


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
