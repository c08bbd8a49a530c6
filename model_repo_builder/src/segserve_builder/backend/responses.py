"""Triton responses of a step's outputs and errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import triton_python_backend_utils as pb_utils

from segserve_builder.errors import BadImageError, BusyError, ImageMemoryError
from segserve_builder.memory import InstanceMemory, is_out_of_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

MESSAGE_MAX_LENGTH: Final = 500


@dataclass(slots=True)
class RunningMember:
    """The member of a shared step that runs, which errors name; `has_failed` once one was not its caller's."""

    name: str
    has_failed: bool = False


@dataclass(frozen=True, slots=True)
class StepFailure:
    """Why a request failed; `is_callers` if its caller can correct it, `is_busy` if it may succeed later."""

    message: str
    is_callers: bool
    is_busy: bool = False


@dataclass(frozen=True, slots=True)
class SentRequest:
    """A request with arrays by name in place of Triton's tensors, which another process may have got.

    `parents` are the ids of Triton's span, if it traces the request.
    """

    id: str
    outputs: tuple[str, ...]
    parameters: str
    tensors: Mapping[str, NDArray[Any]]
    parents: Sequence[Mapping[str, str]] = ()

    def request_id(self) -> str:
        """Return the request's id, as Triton's requests do."""
        return self.id

    def requested_output_names(self) -> tuple[str, ...]:
        """Return the names of the requested outputs, as Triton's requests do."""
        return self.outputs


_MEMBER: Final[ContextVar[RunningMember | None]] = ContextVar("member", default=None)


@contextmanager
def running_member(name: str) -> Iterator[RunningMember]:
    """Name a member in the errors of the context."""
    member = RunningMember(name)
    token = _MEMBER.set(member)
    try:
        yield member
    finally:
        _MEMBER.reset(token)


def respond(
    requests: Iterable[Any],
    answer: Callable[[Any], Mapping[str, NDArray[Any]] | None],
    describe: Callable[[Any], str],
    memory: InstanceMemory,
) -> list[Any]:
    """Answer each request by itself, so that a failing one does not affect others.

    `answer` returns arrays of the outputs' dtypes and shapes by name, None for a request that another model is to
    answer; `describe` names a request's work, with the image's size, for the error of one that needs more memory than
    the step's limit.
    """

    def answered(request: Any) -> Any:
        outputs = answer(request)
        return None if outputs is None else response(outputs)

    responses = []
    for request in requests:
        try:
            responses.append(memory.run(partial(answered, request)))
        except Exception as error:
            if is_out_of_memory(error):
                error = ImageMemoryError(describe(request), memory.limit_bytes)
            responses.append(error_response(error, request.request_id()))
    return responses


def response(outputs: Mapping[str, NDArray[Any]]) -> Any:
    """Return the response that carries `outputs`.

    Arrays have the dtypes and shapes that the model's configuration declares.
    """
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def error_response(error: Exception, request_id: str = "") -> Any:
    """Return the response of a failed request; the traceback of INTERNAL goes to the server's log, after its id."""
    return failed_response(failure_of(error, request_id))


def failure_of(error: Exception, request_id: str = "") -> StepFailure:
    """Return what the caller of a failed request gets: INVALID_ARG, UNAVAILABLE if it may succeed later, or INTERNAL.

    Callers get one line; the traceback goes to the server's log, after the request's id.
    """
    if isinstance(error, BadImageError):
        return StepFailure(_one_line(error), is_callers=True)
    if isinstance(error, BusyError):
        return StepFailure(_one_line(error), is_callers=False, is_busy=True)
    log_error(error, request_id)
    about = ""
    if (member := _MEMBER.get()) is not None:
        member.has_failed = True
        about = f"{member.name}: "
    return StepFailure(f"{about}{type(error).__name__}: {_one_line(error)}", is_callers=False)


def failed_response(failure: StepFailure) -> Any:
    """Return the response of a failed request."""
    if failure.is_busy:
        return unavailable_response(failure.message)
    code = pb_utils.TritonError.INVALID_ARG if failure.is_callers else pb_utils.TritonError.INTERNAL
    return _failed(failure.message, code)


def unavailable_response(message: str) -> Any:
    """Return the response of a request that may succeed when it is sent again."""
    return _failed(_one_line(message), pb_utils.TritonError.UNAVAILABLE)


def log_error(error: Exception, request_id: str = "") -> None:
    """Write an error with its traceback to the server's log; the id is its caller's, and may be any text.

    `segserve_common.triton_log` reads what stands before the traceback.
    """
    import traceback

    member = _MEMBER.get()
    about = {
        "step": Path(pb_utils.get_model_dir()).parent.name,
        "member": "" if member is None else member.name,
        "request": request_id,
    }
    context = ", ".join(f"{kind} {name!r}" for kind, name in about.items() if name)
    pb_utils.Logger.log_error(f"{context}: " + "".join(traceback.format_exception(error)))


def input_array(request: Any, name: str) -> NDArray[Any] | None:
    """Return the input's array, or None if the request lacks it.

    Its dtype and shape are as the caller sent them.
    """
    if isinstance(request, SentRequest):
        return request.tensors.get(name)
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def parameters_of(request: Any) -> dict[str, Any]:
    """Return the parameters that a request came with."""
    text = request.parameters if isinstance(request, SentRequest) else parameters_text(request)
    parameters: dict[str, Any] = json.loads(text or "{}")
    return parameters


def parameters_text(request: Any) -> str:
    """Return the parameters of one of Triton's requests as JSON; they may be empty."""
    try:
        return str(request.parameters())
    except UnicodeDecodeError as error:
        # A forwarded header may be of any bytes.
        return error.object.decode(errors="replace")


def _failed(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))


def _one_line(said: Exception | str) -> str:
    return " ".join(str(said).split())[:MESSAGE_MAX_LENGTH]
