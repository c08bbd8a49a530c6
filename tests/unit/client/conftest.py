"""The gateway that client tests talk to: two models with known answers."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from fakes.kserve import Arrays, Asked, Gateway, Model, items

if TYPE_CHECKING:
    from collections.abc import Iterator

HEIGHT, WIDTH = 60, 80
CLASSES = [{"id": 0, "name": "background"}, {"id": 1, "name": "coin", "colour": "#ffcc00"}]
SEMANTIC = ["REVISION", "SIZE", "LABELS", "MASKS", "CLASSES", "AREAS", "CONFIDENCE"]
INSTANCE = ["REVISION", "SIZE", "BOXES", "SCORES", "CLASSES", "MASKS"]


def coin_masks() -> np.ndarray:
    """Return two discs, bool (2, H, W)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([(rows - 20) ** 2 + (columns - x) ** 2 < radius**2 for x, radius in ((20, 12), (58, 15))])


def rle_counts(mask: np.ndarray) -> bytes:
    return bytes(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])


def decoded(rle: object) -> np.ndarray:
    """Return pycocotools' bitmap; it warns on numpy 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(coco.decode(rle))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def semantic_answer(asked: Asked) -> Arrays:
    labels = coin_masks().any(axis=0).astype(np.uint8)
    as_rle = asked.parameters.get("encoding") == "rle"
    counts = [int((labels == index).sum()) for index in (0, 1)]
    return {
        "REVISION": items(b"coins-aaaaaaaaaa"),
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "LABELS": items() if as_rle else items(png(labels)),
        "MASKS": items(*(rle_counts(labels == index) for index in (0, 1))) if as_rle else items(),
        "CLASSES": np.array([0, 1], np.int32),
        "AREAS": np.array(counts, np.int64),
        "CONFIDENCE": np.array([0.9, 0.8], np.float32),
    }


def instance_answer(asked: Asked) -> Arrays:
    masks = coin_masks() if asked.parameters.get("score_threshold", 0) < 0.95 else coin_masks()[:0]
    boxes = [[8, 8, 33, 33], [43, 5, 74, 36]][: len(masks)]
    return {
        "REVISION": items(b"discs-bbbbbbbbbb"),
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "BOXES": np.array(boxes, np.float32).reshape(-1, 4),
        "SCORES": np.array([0.93, 0.87], np.float32)[: len(masks)],
        "CLASSES": np.ones(len(masks), np.int32),
        "MASKS": items(*map(rle_counts, masks)),
    }


def parameters(revision: str) -> dict[str, str]:
    return {"revision": revision, "classes": json.dumps(CLASSES)}


@dataclass
class Served:
    """A gateway, its URL, and the transport that it is reached by."""

    gateway: Gateway
    url: str
    transport: Literal["http", "grpc"]


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(
        models={
            "coins": Model(SEMANTIC, parameters("coins-aaaaaaaaaa"), semantic_answer),
            "discs": Model(INSTANCE, parameters("discs-bbbbbbbbbb"), instance_answer),
        }
    )


@pytest.fixture(params=["http", "grpc"])
def served(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[Served]:
    """The gateway over each transport in turn."""
    with getattr(gateway, request.param)() as url:
        yield Served(gateway, url, request.param)


@pytest.fixture
def photo() -> bytes:
    """An encoded image of the size that the models answer."""
    return png(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
