from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from in_process import in_process, resources
from score import photograph
from transform import unet_input, yolo_input

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "coins-inputs.json").read_text())
TRANSFORMS = {"coins": unet_input, "coins-instances": yolo_input, "coins-twostage": yolo_input}
MODELS = {name: in_process(resource) for name, resource in resources().items()}


def png(grey: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", grey)[1])


@pytest.mark.parametrize(("name", "transform"), TRANSFORMS.items())
def test_the_served_tensor_of_the_photograph_is_the_golden_one(
    name: str, transform: Callable[[np.ndarray], np.ndarray]
) -> None:
    served = MODELS[name].network_input(png(photograph())).tensor

    for tensor in (served, transform(photograph())):
        assert tensor.dtype == np.uint8
        assert list(tensor.shape) == GOLDEN[name]["shape"]
        assert hashlib.sha256(tensor.tobytes()).hexdigest() == GOLDEN[name]["sha256"]


@pytest.mark.parametrize(("name", "transform"), TRANSFORMS.items())
@pytest.mark.parametrize("size", [(303, 384), (64, 64), (500, 333), (97, 801), (1, 40), (40, 1)])
def test_served_and_training_side_tensors_are_equal_bit_for_bit(
    name: str, transform: Callable[[np.ndarray], np.ndarray], size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, size, np.uint8)

    served = MODELS[name].network_input(png(image)).tensor

    np.testing.assert_array_equal(served, transform(image), strict=True)
