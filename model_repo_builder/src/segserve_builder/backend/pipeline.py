"""The step `pipeline` inside Triton: all of a model in one process, without copies of tensors between its steps.

Triton gives an instance one request at a time, and each instance is a process. The process of the first one answers the
requests of all in threads; the others pass theirs on, and load neither the network nor the stages.

One instance could answer from threads by response senders. But if its process ends, Triton 2.51 never answers the
requests that it has by then: their callers wait for their own deadline. Instances answer by return, and Triton fails
their requests at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segserve_builder.backend.batch_spans import trace_parents
from segserve_builder.backend.link import DeadInstanceError, InstanceLink, InstanceListener, socket_folder
from segserve_builder.backend.responses import (
    SentRequest,
    StepFailure,
    error_response,
    failed_response,
    input_array,
    parameters_text,
    response,
)
from segserve_builder.errors import ImageMemoryError
from segserve_builder.memory import is_out_of_memory, keep_freed_memory, limit_allocations, share_freed_memory


class TritonPythonModel:
    """Answers one image per request, and computes only the requested outputs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the steps, or find the instance that has them."""
        keep_freed_memory()
        folder, config = Path(args["model_repository"]), json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        sockets = socket_folder(folder.parent)
        group, _, number = args["model_instance_name"].rpartition("_")
        self._first = f"{group}_0"
        self._listener = self._steps = self._link = None
        if number != "0":
            self._link = InstanceLink(sockets, folder.name)
            self._ask = self._link.ask
            self._limit_bytes = limit_allocations()
            return
        from segserve_builder.backend.joined import JoinedSteps
        from segserve_builder.steps.step_options import DECODER_FILE, MODEL_FILE, PipelineOptions

        share_freed_memory()
        instances, files = config["instance_group"][0]["count"], folder / args["model_version"]
        options = PipelineOptions.from_model_config(args["model_config"])
        if options.decoder is None:
            self._steps = JoinedSteps(options, files / MODEL_FILE, instances)
        else:
            from segserve_builder.backend.prompted import PromptedSteps

            self._steps = PromptedSteps(options, options.decoder, files / MODEL_FILE, files / DECODER_FILE, instances)
        self._ask = self._steps.answer
        self._listener = InstanceListener(sockets, folder.name, instances - 1, self._steps.answer)
        self._limit_bytes = self._steps.limit()
        self._listener.listen()

    def finalize(self) -> None:
        """Answer the pending requests, and report the last counts."""
        if self._link is not None:
            self._link.close()
        if self._listener is not None:
            self._listener.close()
        if self._steps is not None:
            self._steps.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, in order."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        try:
            given = ((name, input_array(request, name)) for name in self._inputs)
            answer = self._ask(
                SentRequest(
                    request.request_id(),
                    tuple(request.requested_output_names()),
                    parameters_text(request),
                    {name: array for name, array in given if array is not None},
                    trace_parents([request]),
                )
            )
            return failed_response(answer) if isinstance(answer, StepFailure) else response(answer)
        except DeadInstanceError:
            # As Triton says it of an instance's own process: it starts another one for its next request.
            return failed_response(StepFailure(f"Stub process '{self._first}' is not healthy.", is_callers=False))
        except Exception as error:
            if is_out_of_memory(error):
                error = ImageMemoryError("passing on this image", self._limit_bytes)
            return error_response(error, request.request_id())
