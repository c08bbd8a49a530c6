"""Pixels to a network's input, compared with OpenCV's blobFromImage, torch as torchvision uses it, Pillow and numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from bench.stages.case import Case, Peer
from segserve_builder.families.base import TensorSpec
from segserve_builder.spec.model_spec import Input
from segserve_builder.steps.pipeline import PreprocessStep
from segserve_builder.steps.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET: dict[str, Any] = {"normalise": {"mean": MEAN, "std": STD}}
CENTRED: dict[str, Any] = {"normalise": {"mean": MEAN}}
TORCH, OPENCV = version("torch"), cv2.__version__
GREY_LEVEL = 1 / (255 * min(STD))
"""Largest normalised value of one grey level."""


def photograph(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (height // 40, width // 40, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def ours(size: tuple[int, int], *after: dict[str, Any], antialias: bool, dtype: str = "FP32") -> Preprocess:
    resize = {"mode": "stretch", "height": size[0], "width": size[1]} | ({"antialias": True} if antialias else {})
    steps = [PreprocessStep.model_validate(step) for step in ({"resize": resize}, *after)]
    return Preprocess(steps, Input(), TensorSpec("images", dtype, (None, 3, None, None)), "NCHW")


def by_torch(pixels: np.ndarray, size: tuple[int, int], antialias: bool) -> np.ndarray:
    """Apply ToTensor, Resize and Normalize, as torchvision does for tensors."""
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None].float().div(255)
    tensor = functional.interpolate(tensor, size, mode="bilinear", align_corners=False, antialias=antialias)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return tensor.sub_(mean).div_(std).numpy()


def by_pillow(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Apply Resize, ToTensor and Normalize, as torchvision does for Pillow images."""
    resized = PIL.Image.fromarray(pixels).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
    tensor = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()[None].float().div(255)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return tensor.sub_(mean).div_(std).numpy()


def by_numpy(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = cv2.resize(pixels, size[::-1]).astype(np.float32) / np.float32(255)
    floats = (resized - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(floats.transpose(2, 0, 1))[None]


def by_blob(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Use blobFromImage, which has no standard deviation per channel."""
    mean = [255 * number for number in MEAN]
    return cv2.dnn.blobFromImage(pixels, 1 / 255, size[::-1], mean, swapRB=False, crop=False)


def by_opencv_bytes(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.ascontiguousarray(cv2.resize(pixels, size[::-1]).transpose(2, 0, 1))[None]


def peer(
    name: str,
    release: str,
    mine: Callable[[], np.ndarray],
    theirs: Callable[[], np.ndarray],
    tolerance: float,
    goal: float | None = None,
) -> Peer:
    def agrees() -> str:
        actual, expected = mine(), theirs()
        assert actual.shape == expected.shape
        far = float(np.abs(actual.astype(np.float64) - expected).max())
        assert far <= tolerance, far
        return "identical" if far == 0 else f"at most {far:.2g} apart ({far / GREY_LEVEL:.2g} grey levels)"

    return Peer(name, release, theirs, agrees, goal)


def images(name: str, pixels: np.ndarray, size: tuple[int, int], *, worst: bool) -> Iterator[Case]:
    def run(made: Preprocess) -> np.ndarray:
        return made(None, pixels).tensor

    level = 1.01 * GREY_LEVEL

    def by_tensors(mine: Callable[[], np.ndarray], antialias: bool) -> Peer:
        theirs = partial(by_torch, pixels, size, antialias)
        return peer("torchvision's way, tensors", f"torch {TORCH}", mine, theirs, level, 10)

    smooth = partial(run, ours(size, IMAGENET, antialias=True))
    yield Case(
        f"{name}, antialias, normalised",
        smooth,
        (
            by_tensors(smooth, antialias=True),
            peer("torchvision's way, Pillow", version("pillow"), smooth, partial(by_pillow, pixels, size), level),
        ),
        worst,
    )
    plain = partial(run, ours(size, IMAGENET, antialias=False))
    yield Case(
        f"{name}, normalised",
        plain,
        (
            by_tensors(plain, antialias=False),
            peer("OpenCV resize + numpy", OPENCV, plain, partial(by_numpy, pixels, size), 1e-6),
        ),
        worst,
    )
    centred = partial(run, ours(size, CENTRED, antialias=False))
    blob = peer("OpenCV blobFromImage", OPENCV, centred, partial(by_blob, pixels, size), 1e-6, 1.5)
    yield Case(f"{name}, mean only", centred, (blob,), worst)
    eight_bits = partial(run, ours(size, antialias=False, dtype="UINT8"))
    by_bytes = peer("OpenCV resize + numpy", OPENCV, eight_bits, partial(by_opencv_bytes, pixels, size), 0)
    yield Case(f"{name}, as bytes", eight_bits, (by_bytes,), worst)


def cases() -> Iterator[Case]:
    yield from images("1080x1920 to 750x1333", photograph(1080, 1920), (750, 1333), worst=False)
    yield from images("12 MP to 1000x1333", photograph(3000, 4000), (1000, 1333), worst=True)
