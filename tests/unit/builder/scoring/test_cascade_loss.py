"""What answers lose against those of a heavy network: by labels, or by how far they are from its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from segserve_builder.golden.judging import Case, Expected
from segserve_builder.golden.risk_control import TooFewImagesError, check_loss
from segserve_builder.scoring.cascade_loss import cascade_losses
from segserve_builder.scoring.quality import Regions
from segserve_builder.scoring.regions import GoldenImage, GoldenImages


def counts(columns: int) -> bytes:
    """Return a mask of an image of 10 x 10 pixels whose first columns it covers."""
    bitmap = np.zeros((10, 10), np.uint8, order="F")
    bitmap[:, :columns] = 1
    encoded: bytes = coco.encode(bitmap)["counts"]
    return encoded


def answer(columns: int) -> dict[str, Any]:
    return {
        "SIZE": np.array([10, 10], np.int32),
        "CLASSES": np.array([1], np.int32),
        "MASKS": np.array([counts(columns)], np.object_),
    }


def images(folder: Path, *labelled: int | None) -> GoldenImages:
    """Return a semantic golden set: of each image the labelled columns, None for one without labels."""
    found = []
    for number, columns in enumerate(labelled):
        path = folder / f"{number}.png"
        path.write_bytes(str(number).encode())
        expected = Expected(SIZE=(10, 10), CLASSES=(1,), MASKS=(counts(5).decode(),))
        labels = Regions((10, 10), (1,), (counts(columns or 5),))
        found.append(GoldenImage(path, labels, columns is not None, Case(image=path.name, expected=expected)))
    return GoldenImages("semantic", tuple(found), {})


def losses(of: GoldenImages, heavy: list[int], light: list[int]) -> list[float]:
    return cascade_losses(of, lambda image: answer(heavy[int(image)]), lambda image: answer(light[int(image)]))


def test_a_labelled_image_loses_by_how_much_its_answer_is_further_from_the_labels(tmp_path: Path) -> None:
    assert losses(images(tmp_path, 10, 10, 10), [8, 8, 8], [6, 8, 9]) == pytest.approx([0.2, 0.0, 0.0])


def test_an_image_without_labels_loses_by_how_far_its_answer_is_from_the_heavy_one(tmp_path: Path) -> None:
    assert losses(images(tmp_path, None, 10), [8, 8], [4, 8]) == pytest.approx([0.5, 0.0])


def test_a_loss_is_proved_by_enough_images_that_lose_little_enough() -> None:
    assert check_loss([0.0] * 99, 0.01) == pytest.approx(0.01)
    assert check_loss([0.02] * 199, 0.03) == pytest.approx((199 * 0.02 + 1) / 200)


def test_a_loss_that_images_do_not_prove_is_refused_with_the_numbers() -> None:
    with pytest.raises(TooFewImagesError, match=r"a loss of at most 0\.01 needs at least 99 images, got 98"):
        check_loss([0.0] * 98, 0.01)
    with pytest.raises(ValueError, match=r"199 images lose 0\.02 on average, .* by 0\.0249; .* at most 0\.02"):
        check_loss([0.02] * 199, 0.02)
