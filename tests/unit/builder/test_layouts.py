"""The steps that serve a network are those of the table in docs/how-to/gpu.md, on every kind of server."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fakes.docs import ROOT
from fakes.pipelines import pipeline_of
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.families.promptable import PromptableFamily
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.render.tree import CONFIG_FILE, Network, Tree, render

IMAGE: Final = RenderTarget.named("26.04", "onnxruntime", 2)
SERVERS: Final = {
    "your machine": replace(EMBEDDED, cpus=2),
    "server without a GPU": IMAGE,
    "server with a GPU": replace(IMAGE, has_gpu=True),
}
REFUSED: Final = "refused"
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "with the defaults": {},
    "`device: cpu`": {"runtime": {"device": "cpu"}},
    "`device: gpu`": {"runtime": {"device": "gpu"}},
    "`engine: tensorrt`": {"runtime": {"engine": "tensorrt"}},
    "`engine: openvino`": {"runtime": {"engine": "openvino"}},
    "`instances: 2`": {"runtime": {"instances": 2}},
    "`intraOpThreads: 1`": {"runtime": {"intraOpThreads": 1}},
    "tiles or views": {"inference": [{"tile": {"height": 64, "width": 64}}]},
}


def table() -> dict[str, dict[str, str]]:
    """Return the cells by row and column; of a link the text alone counts."""
    section = (ROOT / "docs/how-to/gpu.md").read_text().partition("## What runs where")[2].partition("\n## ")[0]
    lines = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", section).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, _, *found = rows
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in found}


def shown(tree: Tree) -> str:
    """Return a tree as a cell of the table: how many steps, the network's device, and what runs it."""
    content = tree.steps[tree.networks[0]][CONFIG_FILE]
    assert isinstance(content, bytes)
    net = text_format.Parse(content.decode(), ModelConfig())
    (group,) = net.instance_group
    device = {group.KIND_CPU: "CPU", group.KIND_GPU: "GPU", group.KIND_AUTO: "GPU"}[group.kind]
    return f"{len(tree.steps)}, {device}, {'Python' if net.backend == 'python' else 'Triton'}"


def test_the_table_has_a_row_for_each_setting_and_a_column_for_each_server() -> None:
    assert table().keys() == SETTINGS.keys()
    assert {column for row in table().values() for column in row} == SERVERS.keys()


# A promptable network is in one step with its decoder, on the CPU of each server.
@pytest.mark.parametrize("family", [name for name, each in FAMILIES.items() if not isinstance(each, PromptableFamily)])
def test_every_family_is_served_by_the_steps_of_the_table(family: str) -> None:
    io = NetworkIO(TensorSpec("image", "UINT8", (None, 3, 64, 64)), "NCHW", (TensorSpec("out", "FP32", (None, 2)),))
    for (setting, changes), (server, target) in product(SETTINGS.items(), SERVERS.items()):
        tree = render(pipeline_of(family, **changes), Network(io, Path("/cache/network")), target=target)

        expected, found = table()[setting][server], shown(tree)
        if expected == REFUSED:
            # Triton refuses a GPU that its server lacks.
            assert "GPU" in found
            assert not target.has_gpu
        else:
            assert found == expected, (setting, server)
