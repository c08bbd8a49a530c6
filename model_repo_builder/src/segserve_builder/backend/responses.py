"""Triton responses of a step's outputs and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import triton_python_backend_utils as pb_utils

from segserve_builder.errors import BadImageError, ImageMemoryError
from segserve_builder.memory import is_out_of_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

MESSAGE_MAX_LENGTH: Final = 500


def respond(
    requests: Iterable[Any],
    answer: Callable[[Any], Mapping[str, NDArray[Any]]],
    describe: Callable[[Any], str],
    limit_bytes: int | None,
) -> list[Any]:
    """Answer each request by itself, so that a failing one does not affect others.

    `answer` returns arrays of the outputs' dtypes and shapes by name; `describe` names a request's work, with the
    image's size, for the error of one that needs more than `limit_bytes` of memory.
    """
    responses = []
    for request in requests:
        try:
            responses.append(response(answer(request)))
        except Exception as error:
            too_large = is_out_of_memory(error)
            responses.append(error_response(ImageMemoryError(describe(request), limit_bytes) if too_large else error))
    return responses


def response(outputs: Mapping[str, NDArray[Any]]) -> Any:
    """Return the response that carries `outputs`.

    Arrays have the dtypes and shapes that the model's configuration declares.
    """
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def error_response(error: Exception) -> Any:
    """Return the response of a failed request: INVALID_ARG if the caller can correct it, else INTERNAL.

    Callers get one line; the traceback goes to the server's log.
    """
    if isinstance(error, BadImageError):
        return _failed(_one_line(error), pb_utils.TritonError.INVALID_ARG)
    import traceback

    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    return _failed(f"{type(error).__name__}: {_one_line(error)}", pb_utils.TritonError.INTERNAL)


def input_array(request: Any, name: str) -> NDArray[Any] | None:
    """Return the input's array, or None if the request lacks it.

    Its dtype and shape are those that the caller sent.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _failed(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:MESSAGE_MAX_LENGTH]
