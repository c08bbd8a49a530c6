"""`segserve rollout sheet`: what the comparator kept becomes pictures, figures and a page."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes import rollout_records as records
from fakes import sheets
from fakes.comparator import running_comparator
from fakes.kube_http import FakeServer
from segserve.rendering.comparison import CANDIDATE_ONLY, OTHER_CLASS, STABLE_ONLY, draw_difference
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_builder.comparator.sheet import Sheet
from segserve_common.kserve import Tensor
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY, MANAGED_LABELS, POOL_LABEL, SHEETS_PORT
from segserve_operator.adapters.local.files import STATE_VARIABLE, StateFolder, write_yaml
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_platform.evaluation.sheets import fetch_sheet
from segserve_platform.platforms.errors import ControlError

from .conftest import MODELS, Command

PODS = "api/v1/pods"

IMAGE = Tensor.of_items("IMAGE", [sheets.photo()])
LEFT, RIGHT, SMALL = (40, 60, 25), (110, 60, 25), (80, 100, 8)
KINDS = {
    "instances": (sheets.instances("coins-1", LEFT, RIGHT, SMALL), sheets.instances("coins-2", LEFT, (114, 60, 25))),
    "labels": (sheets.labels("coins-1", LEFT, RIGHT), sheets.labels("coins-2", LEFT)),
    "segments": (sheets.panoptic("coins-1", LEFT, RIGHT), sheets.panoptic("coins-2", LEFT)),
    "boxes": (sheets.instances("coins-1", LEFT, masks=False), sheets.instances("coins-2", RIGHT, masks=False)),
}
ALL = sheets.sheet(*(sheets.pair(IMAGE, *sides) for sides in KINDS.values()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ComparatorFolder:
    """What gateway and comparator of this machine's platform share; the model coins is known there."""
    state = StateFolder(tmp_path / "state")
    monkeypatch.setenv(STATE_VARIABLE, str(state.root))
    write_yaml(state.objects / "SegmentationModel" / "coins" / "spec.yaml", records.coins(records.standing()))
    return EnvoyFiles(state.gateway).comparator


async def drawn(folder: ComparatorFolder, command: Command, told: Sheet | bytes, *options: Any) -> tuple[int, str, str]:
    content = told if isinstance(told, bytes) else told.model_dump_json().encode()
    async with running_comparator(folder, pairs=content):
        return await asyncio.to_thread(command, "rollout", "sheet", "coins", *options)


async def test_each_pair_is_a_picture_with_its_figures_and_a_page_has_them_all(
    folder: ComparatorFolder, command: Command, tmp_path: Path
) -> None:
    code, printed, _ = await drawn(folder, command, ALL, "-o", tmp_path / "sheet")
    page = (tmp_path / "sheet/index.html").read_text()

    assert code == 0
    assert "4 of 212 pairs" in printed
    for number, pair in enumerate(ALL.pairs, 1):
        assert f"pair-{number}.png: agreement {pair.agreement:.3f}" in printed
        assert f'<img src="pair-{number}.png"' in page
        with Image.open(tmp_path / f"sheet/pair-{number}.png") as picture:
            assert picture.width > 4 * 480
    assert "only stable has: 1 small" in page


async def test_a_pair_that_cannot_be_drawn_says_why_and_the_others_are(
    folder: ComparatorFolder, command: Command, tmp_path: Path
) -> None:
    broken = ALL.pairs[0].model_copy(update={"candidate": ()})
    told = ALL.model_copy(update={"pairs": (broken, ALL.pairs[1])})
    code, _, _ = await drawn(folder, command, told, "-o", tmp_path)

    assert code == 0
    assert "not drawn: " in (tmp_path / "index.html").read_text()
    assert (tmp_path / "pair-2.png").is_file()
    assert not (tmp_path / "pair-1.png").exists()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (ALL.model_copy(update={"pairs": ()}), "212 pairs were compared, and none differs"),
        (b"{", "cannot be read"),
    ],
)
async def test_without_pairs_that_differ_it_says_so(
    folder: ComparatorFolder, command: Command, told: Sheet | bytes, said: str
) -> None:
    code, _, complained = await drawn(folder, command, told)

    assert code == 1
    assert said in complained


def test_outside_of_shadow_there_is_none(folder: ComparatorFolder, command: Command) -> None:
    code, _, complained = command("rollout", "sheet", "coins")

    assert code == 1
    assert "while a rollout with spec.rollout.shadow is in Shadow" in complained


def gateway_pod(name: str, container: str = "comparator", phase: str = "Running") -> dict[str, Any]:
    labels = {**MANAGED_LABELS, POOL_LABEL: "default", COMPONENT_LABEL: GATEWAY}
    spec = {"containers": [{"name": container}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"phase": phase}}


@contextmanager
def forwarding(bin_folder: Path, content: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a `kubectl` forward the port of a pod to a comparator that tells what is of that pod."""

    class Comparator(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = content.get(self.server.server_name)  # type: ignore[attr-defined]
            self.send_response(200 if told and self.path == "/sheet?model=coins" else 404)
            self.send_header("Content-Length", str(len(told or b"")))
            self.end_headers()
            self.wfile.write(told or b"")

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ExitStack() as stack:
        bin_folder.mkdir()
        cases = ""
        for pod in content:
            listener = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Comparator))
            listener.server_name = pod
            threading.Thread(target=listener.serve_forever).start()
            stack.callback(listener.shutdown)
            cases += f'*"pod/{pod} :{SHEETS_PORT}") echo "Forwarding from 127.0.0.1:{listener.server_port} -> 1";; '
        refused = 'echo "Error from server (Forbidden): pods is forbidden"; exit 1'
        (bin_folder / "kubectl").write_text(f'#!/bin/sh\ncase "$*" in {cases} *) {refused};; esac\nexec sleep 60\n')
        (bin_folder / "kubectl").chmod(0o755)
        monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
        yield


def test_from_a_cluster_comes_the_worst_of_all_gateways(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(MODELS, records.coins(records.standing()))
    starting = gateway_pod("c", phase="Pending")
    server.put(PODS, gateway_pod("a"), gateway_pod("b"), starting)
    by_agreement = tuple(sorted(ALL.pairs, key=lambda pair: pair.agreement))
    former = ALL.model_copy(update={"candidate": "coins-1", "ended_at_s": 1.0, "pairs": by_agreement[:1]})
    here = ALL.model_copy(update={"pairs": by_agreement[:2], "ended_at_s": 5.0})
    told = {"a": former.model_dump_json().encode(), "b": here.model_dump_json().encode()}
    with forwarding(tmp_path / "bin", told, monkeypatch):
        sheet, _ = fetch_sheet(server.platform(), "coins")

    assert (sheet.candidate, sheet.ended_at_s) == ("coins-2", 5.0)
    assert [pair.agreement for pair in sheet.pairs] == [by_agreement[0].agreement]  # the image is the same


def test_on_a_cluster_without_a_comparator_it_says_what_to_set(server: FakeServer) -> None:
    server.put(MODELS, records.coins(records.standing()))
    server.put(PODS, gateway_pod("a", container="envoy"))

    with pytest.raises(ControlError, match=r"set spec\.gateway\.shadow"):
        fetch_sheet(server.platform(), "coins")


def test_who_may_not_forward_ports_sees_no_image(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(MODELS, records.coins(records.standing()))
    server.put(PODS, gateway_pod("a"))

    with (
        forwarding(tmp_path / "bin", {}, monkeypatch),
        pytest.raises(ControlError, match=r"port-forward pod/a: Error from server \(Forbidden\)"),
    ):
        fetch_sheet(server.platform(), "coins")


def test_the_difference_shows_what_only_one_side_has_and_where_classes_differ() -> None:
    from segserve.calls.answers import read_result
    from segserve.results.values import ModelInfo, SegmentClass
    from segserve_common.kserve import InferAnswer

    classes = (SegmentClass(1, "coin"), SegmentClass(2, "lid"))
    stable, candidate = (
        read_result(
            InferAnswer("coins", {each.name: each for each in side}), ModelInfo("coins", frozenset(), None, classes)
        )
        for side in (
            sheets.instances("1", LEFT, SMALL),
            [
                each if each.name != "CLASSES" else Tensor.of_array("CLASSES", np.array([1, 2], np.int32))
                for each in sheets.instances("2", RIGHT, SMALL)
            ],
        )
    )
    pixels = np.array(draw_difference(sheets.photo(), stable, candidate))

    for (x, y, _), colour in ((LEFT, STABLE_ONLY), (RIGHT, CANDIDATE_ONLY), (SMALL, OTHER_CLASS)):
        assert tuple(pixels[y, x]) == colour
