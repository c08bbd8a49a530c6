"""`segserve init --decoder`: what the files do to pixels and sizes by themselves is not done a second time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml

from networks.prompts import CELLS, DISC, SIDE, SQUARE, Decoder, Encoder, scene, shows, write
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.prompts import PromptInputs
from segserve_operator.api.segmentation_model import SegmentationModel

from .conftest import Command

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


class Preprocessed(torch.nn.Module):
    """`Encoder` of pixels (H, W, 3) of 0 to 255, normalised and padded inside as by samexporter's --use-preprocess."""

    def __init__(self, resized: bool) -> None:
        super().__init__()
        self.resized = resized

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the embedding."""
        pixels = image.permute(2, 0, 1)[None]
        if self.resized:
            pixels = torch.nn.functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear")
        pixels = (pixels - MEAN[:, None, None]) / STD[:, None, None]
        pixels = torch.nn.functional.pad(pixels, (0, SIDE - pixels.shape[3], 0, SIDE - pixels.shape[2]))
        back = (pixels * STD[:, None, None] + MEAN[:, None, None]) / 255
        embedding: torch.Tensor = Encoder()(back)
        return embedding


class IntegerSize(torch.nn.Module):
    """`Decoder` with the masks of the given size alone, an integer, as of SAM 2 by samexporter."""

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return masks and their predicted IoU."""
        return Decoder()(*given)[:2]


def export(model: torch.nn.Module, given: dict[str, torch.Tensor], outputs: list[str], path: Path, free: dict) -> None:  # type: ignore[type-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(given.values()),
            str(path),
            input_names=list(given),
            output_names=outputs,
            dynamic_axes=free,
            opset_version=17,
            dynamo=False,
        )


def own_pixels(encoder: Path, decoder: Path) -> None:
    free = {"input_image": {0: "image_height", 1: "image_width"}}
    image = {"input_image": torch.zeros(SIDE, SIDE, 3)}
    export(Preprocessed(resized=False), image, ["image_embeddings"], encoder, free)


def own_size(encoder: Path, decoder: Path) -> None:
    image = {"input_image": torch.zeros(SIDE, SIDE, 3)}
    export(Preprocessed(resized=True), image, ["image_embeddings"], encoder, {})


def integers(encoder: Path, decoder: Path) -> None:
    given = {
        "image_embeddings": torch.zeros(1, 8, CELLS, CELLS),
        "point_coords": torch.ones(1, 3, 2),
        "point_labels": torch.ones(1, 3),
        "mask_input": torch.zeros(1, 1, CELLS, CELLS),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([100, 80], dtype=torch.int32),
    }
    free = {"point_coords": {1: "points"}, "point_labels": {1: "points"}, "masks": {2: "h", 3: "w"}}
    export(IntegerSize(), given, ["masks", "iou_predictions"], decoder, free)


def beside(encoder: Path, decoder: Path) -> None:
    for file in (encoder, decoder):
        model = onnx.load(file)
        onnx.save_model(
            model,
            file,
            save_as_external_data=True,
            location=f"{file.name}.data",
            size_threshold=0,
            convert_attribute=True,
        )


@pytest.mark.parametrize("change", [own_pixels, own_size, integers, beside], ids=lambda each: each.__name__)
def test_a_click_selects_its_object_whatever_the_files_do_themselves(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Path], None]
) -> None:
    monkeypatch.setattr("segserve_platform.cli.init.prompts.FREE_SIDE", SIDE)
    encoder, decoder = write(tmp_path)
    change(encoder, decoder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/both.png").write_bytes(scene())

    code, _, complaint = command(
        "init", tmp_path / "photos", encoder, "--decoder", decoder, "--name", "sam", "-o", tmp_path / "sam"
    )

    assert code == 0, complaint
    resource = SegmentationModel.model_validate(yaml.safe_load((tmp_path / "sam/model.yaml").read_text()))
    scale = [stage["normalise"].get("scale") for stage in resource_stages(tmp_path) if "normalise" in stage]
    assert scale == [1.0 if change in (own_pixels, own_size) else None]
    files = [tmp_path / "sam" / file.name for file in (encoder, decoder)]
    model = InProcessModel(resource.spec.pipeline("sam"), files[0], decoder=files[1])
    prompt = PromptInputs.of({"POINTS": np.array([DISC], np.float32)})
    found = model.answer(scene(), RequestOptions(), prompt=prompt)
    mask = decode_bitmap(found["MASKS"][0], *found["SIZE"].tolist())
    assert shows(mask, DISC, SQUARE) == [True, False]
    assert 1500 < mask.sum() < 4000  # the disc has 2,922 pixels of 24,000


def resource_stages(folder: Path) -> list[dict[str, dict[str, float]]]:
    stages: list[dict[str, dict[str, float]]] = yaml.safe_load((folder / "sam/model.yaml").read_text())["spec"][
        "preprocess"
    ]
    return stages
