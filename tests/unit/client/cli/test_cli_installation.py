"""What is installed beside the runtime environment for the engines and devices that models name."""

from __future__ import annotations

from typing import Any

import pytest

from segserve_builder import gpus
from segserve_operator.adapters.local import runtime
from segserve_platform.cli.installation import install_engines


@pytest.mark.parametrize(
    ("fields", "visible", "installed"),
    [
        (None, ("NVIDIA L4",), []),
        ({"device": "auto"}, ("NVIDIA L4",), []),
        ({"engine": "openvino"}, (), ["openvino"]),
        ({"device": "gpu"}, ("NVIDIA L4",), ["cuda"]),
        ({"device": "gpu"}, (), []),
    ],
)
def test_what_a_model_names_is_installed_and_cuda_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any] | None, visible: tuple[str, ...], installed: list[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(gpus, "visible_gpus", lambda: visible)
    for name in ("openvino", "cuda"):
        monkeypatch.setattr(runtime, f"ensure_{name}", lambda *_, name=name: done.append(name))

    install_engines([{"spec": {}}, {"spec": {"runtime": fields}}])

    assert done == installed
