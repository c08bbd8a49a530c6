"""How sure the zoo's networks are and how often they are right, and the temperatures that make both agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pycocotools import mask as coco_mask

from examples.zoo.offline import resampled
from examples.zoo.world import draw_scenes
from segserve_builder.golden.calibration import fit_temperature

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from examples.zoo.evaluate import Found
    from examples.zoo.offline import Network, View
    from examples.zoo.variants import Variant
    from examples.zoo.world import Scene

SCENES, SEED = 24, 2000  # neither the scenes of the training nor those of the report
EVERY: Final = 7  # pixels: neighbours say much the same
MATCH_IOU: Final = 0.5


def semantic_temperature(network: Network) -> float:
    """Return the temperature at which the labels of scenes of its own are most likely."""
    scenes = draw_scenes(SCENES, SEED)
    logits = [pixel_logits(network.run(view.pixels)[0], view)[::EVERY] for view in _views(network, scenes)]
    labels = [scene.labels.reshape(-1)[::EVERY] for scene in scenes]
    return round(fit_temperature(np.concatenate(logits), np.concatenate(labels)), 3)


def instance_temperature(network: Network, variant: Variant) -> float:
    """Return the temperature at which scores are most likely the chance that an instance is right."""
    scenes = draw_scenes(SCENES, SEED)
    found = [variant.answer(network, view) for view in _views(network, scenes)]
    scores, correct = scored(found, scenes)
    scores = np.clip(scores, 1e-6, 1 - 1e-6)
    return round(fit_temperature(np.log(scores / (1 - scores)), correct), 3)


def pixel_logits(logits: torch.Tensor, view: View) -> NDArray[np.float32]:
    """Return the logits (H * W, C) of the image's pixels."""
    return resampled(logits, view).flatten(1).T.numpy()


def scored(found: Sequence[Any], scenes: Sequence[Scene]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the scores of all instances, and which of them are the first on an object of their class."""
    scores: list[float] = []
    correct: list[bool] = []
    for image, scene in zip(found, scenes, strict=True):
        scores += [one.score for one in image]
        correct += _correct(image, scene)
    return np.array(scores), np.array(correct, bool)


def _correct(found: Sequence[Found], scene: Scene) -> list[bool]:
    height, width = scene.labels.shape
    masks = [np.asfortranarray(scene.objects == number).view(np.uint8) for number in range(1, len(scene.classes) + 1)]
    truth = [coco_mask.encode(mask) for mask in masks]
    right, taken = [False] * len(found), set[int]()
    for index in sorted(range(len(found)), key=lambda k: -found[k].score):
        one = found[index]
        own = {"size": [height, width], "counts": one.counts}
        free = [k for k, class_id in enumerate(scene.classes) if class_id == one.class_id and k not in taken]
        if not free:
            continue
        overlap = coco_mask.iou([own], [truth[k] for k in free], [0] * len(free))[0]
        if overlap.max() >= MATCH_IOU:
            taken.add(free[int(overlap.argmax())])
            right[index] = True
    return right


def _views(network: Network, scenes: Sequence[Scene]) -> list[View]:
    return [network.view(scene.image) for scene in scenes]
