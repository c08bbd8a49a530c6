"""`segserve rollout sheet`: what the comparator kept becomes pictures, figures and a page."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes import rollout_records as records
from fakes import sheets
from fakes.comparator import running_comparator
from fakes.kube_http import FakeServer
from segserve.cli.rollout.sheet import fetch_sheet
from segserve.platforms.errors import ControlError
from segserve.rendering.comparison import CANDIDATE_ONLY, OTHER_CLASS, STABLE_ONLY, draw_difference
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_builder.comparator.sheet import Sheet
from segserve_common.kserve import Tensor
from segserve_operator.adapters.local.files import STATE_VARIABLE, StateFolder, write_yaml
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles

from .conftest import MODELS, Command

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


def test_on_a_cluster_it_says_why_it_cannot(server: FakeServer) -> None:
    server.put(MODELS, records.coins(records.standing()))

    with pytest.raises(ControlError, match="memory of the gateway's pod"):
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
