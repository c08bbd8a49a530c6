"""A stand-in of the Python module that Triton gives its steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

from numpy.typing import NDArray


@dataclass
class FakeTensor:
    name: str
    array: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.array


class FakeError:
    INVALID_ARG, INTERNAL, UNAVAILABLE = "INVALID_ARG", "INTERNAL", "UNAVAILABLE"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@dataclass
class FakeResponse:
    output_tensors: list[FakeTensor]
    error: FakeError | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        assert self.error is None, self.error.message
        return {tensor.name: tensor.array for tensor in self.output_tensors}


@dataclass
class FakeRequest:
    inputs_by_name: dict[str, NDArray[Any]]
    wanted: list[str] = field(default_factory=list)
    given: str = "{}"
    id: str = ""
    sent: list[FakeResponse] = field(default_factory=list)
    context: str | None = None

    def get_response_sender(self) -> SimpleNamespace:
        return SimpleNamespace(send=lambda response, flags: self.sent.append(response))

    def trace(self) -> SimpleNamespace:
        return SimpleNamespace(get_context=lambda: self.context)

    def request_id(self) -> str:
        return self.id

    def parameters(self) -> str:
        # As pybind11 does with what a header brought.
        return self.given.encode(errors="surrogateescape").decode()

    def requested_output_names(self) -> list[str]:
        return self.wanted

    def inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=lambda name=name: name) for name in self.inputs_by_name]


def input_tensor(request: FakeRequest, name: str) -> FakeTensor | None:
    array = request.inputs_by_name.get(name)
    return None if array is None else FakeTensor(name, array)


class FakeMetricFamily:
    """Sums of series by family and labels, as Triton keeps them for all processes."""

    COUNTER = "COUNTER"
    sums: ClassVar[dict[tuple[str, str], float]] = {}
    refuses: ClassVar[bool] = False

    def __init__(self, name: str, description: str, kind: str) -> None:
        if self.refuses:
            raise RuntimeError("metrics are off")
        self.name = name
        # A step whose thread ends late tells nothing to the next one.
        self.own_sums = self.sums

    def Metric(self, labels: dict[str, str]) -> SimpleNamespace:  # noqa: N802
        key = (self.name, ",".join(f"{name}={value}" for name, value in sorted(labels.items())))

        def increment(amount: float) -> None:
            self.own_sums[key] = self.own_sums.get(key, 0.0) + amount

        return SimpleNamespace(increment=increment)


@contextmanager
def triton_python() -> Iterator[list[str]]:
    """Install the module for the context; yield the lines that steps log."""
    lines: list[str] = []
    fake = ModuleType("triton_python_backend_utils")
    fake.__dict__.update(
        Tensor=FakeTensor,
        InferenceResponse=FakeResponse,
        TritonError=FakeError,
        Logger=SimpleNamespace(log_error=lines.append),
        get_model_dir=lambda: "/repository/segserve--step--0123456789/1",
        get_input_tensor_by_name=input_tensor,
        MetricFamily=FakeMetricFamily,
    )
    sys.modules[fake.__name__] = fake
    try:
        with mock.patch.object(FakeMetricFamily, "sums", {}):
            yield lines
    finally:
        del sys.modules[fake.__name__]
        for name in [name for name in sys.modules if name.startswith("segserve_builder.backend.")]:
            del sys.modules[name]
            delattr(sys.modules["segserve_builder.backend"], name.rpartition(".")[2])
