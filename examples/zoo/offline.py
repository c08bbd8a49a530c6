"""The zoo without segserve: its networks in torch, and post-processing written plainly, as those who train have it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy import ndimage
from torch.nn import functional

from examples.zoo.evaluate import Found
from examples.zoo.networks import NETWORKS
from examples.zoo.training import WEIGHTS
from examples.zoo.weights import load  # type: ignore[attr-defined]  # not the folder of that name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MULTIPLE, INPUT, GREY = 16, 128, 114
MOST: Final = 300  # instances of an image
FITS: Final = {"pspnet": "letterbox", "segformer": "stretch", "yolo-seg": "letterbox", "mask-rcnn": "letterbox"}
FITS_ELSE: Final = {"maskformer": "letterbox"}


@dataclass(frozen=True, slots=True)
class View:
    """An image as a network sees it, uint8 (H', W', 3), and which part of it, in pixels, shows the image (H, W)."""

    pixels: NDArray[np.uint8]
    height: int
    width: int
    top: int
    left: int
    inner_height: int
    inner_width: int


def fit(image: NDArray[np.uint8], name: str) -> View:
    """Return the view of the named network: padded to multiples of 16, letterboxed or stretched to 128 x 128."""
    height, width = image.shape[:2]
    mode = {**FITS, **FITS_ELSE}.get(name, "keep")
    if mode == "keep":
        bottom, right = -height % MULTIPLE, -width % MULTIPLE
        return View(np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge"), height, width, 0, 0, height, width)
    if mode == "stretch":
        return View(cv2.resize(image, (INPUT, INPUT)), height, width, 0, 0, INPUT, INPUT)
    scale = INPUT / max(height, width)
    inner_height, inner_width = round(height * scale), round(width * scale)
    top, left = (INPUT - inner_height) // 2, (INPUT - inner_width) // 2
    pixels = np.full((INPUT, INPUT, 3), GREY, np.uint8)
    pixels[top : top + inner_height, left : left + inner_width] = cv2.resize(image, (inner_width, inner_height))
    return View(pixels, height, width, top, left, inner_height, inner_width)


def resampled(maps: torch.Tensor, view: View) -> torch.Tensor:
    """Return maps (C, h, w) over the network's input as bilinear samples at the image's pixels, (C, H, W).

    Cells whose centres lie in the padding have no say.
    """
    rows, y = _axis(maps.shape[1], view.pixels.shape[0], view.top, view.inner_height, view.height)
    columns, x = _axis(maps.shape[2], view.pixels.shape[1], view.left, view.inner_width, view.width)
    shown = maps[None, :, rows, columns]
    if shown.shape[2:] == maps.shape[1:]:
        size = (view.height, view.width)
        return functional.interpolate(shown, size=size, mode="bilinear", align_corners=False)[0]
    y, x = torch.meshgrid(y, x, indexing="ij")
    sampled = functional.grid_sample(
        shown.double(), torch.stack([x, y], -1)[None], padding_mode="border", align_corners=False
    )
    return sampled[0].float()


def _axis(cells: int, total: int, start: int, inner: int, size: int) -> tuple[slice, torch.Tensor]:
    """Return which cells show the image, and where its pixels lie on them in -1..1, as `grid_sample` takes it."""
    centres = (np.arange(cells) + 0.5) * total / cells
    inside = np.flatnonzero((centres >= start) & (centres <= start + inner))
    first, count = int(inside[0]), len(inside)
    at = (start + (torch.arange(size, dtype=torch.float64) + 0.5) * inner / size) * cells / total
    return slice(first, first + count), (at - first) * 2 / count - 1


def _nearest(cells: int, total: int, start: int, inner: int, size: int, shown: slice) -> torch.Tensor:
    """Return the cell, counted among those shown, of every pixel, as torch's nearest interpolation picks it."""
    at = torch.arange(size, dtype=torch.float32) * (inner * cells / (total * size)) + start * cells / total
    return (at - shown.start).floor().long().clamp(0, shown.stop - shown.start - 1)


class Network:
    """One trained network in torch."""

    def __init__(self, name: str) -> None:
        """Read the weights out of the file that is served."""
        self._name = name
        self._module = load(NETWORKS[name](), WEIGHTS / f"{name}.onnx")

    def view(self, image: NDArray[np.uint8]) -> View:
        """Return what the network sees of an image (H, W, 3)."""
        return fit(image, self._name)

    def run(self, pixels: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
        """Return the outputs for the pixels of a view, without a batch."""
        images = torch.from_numpy(np.ascontiguousarray(pixels))[None]
        if self._name != "segformer":
            images = images.permute(0, 3, 1, 2)
        with torch.inference_mode():
            outputs = self._module(images)
        if self._name == "mask-rcnn":
            return tuple(outputs)
        return tuple(output[0] for output in (outputs if isinstance(outputs, tuple) else (outputs,)))


def labels_of(logits: torch.Tensor, view: View) -> NDArray[np.uint8]:
    """Return the label map (H, W) of logits."""
    return argmax(resampled(logits, view))


def resized(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return maps (C, h, w) of the whole image at another size."""
    return functional.interpolate(maps[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def argmax(scores: torch.Tensor) -> NDArray[np.uint8]:
    """Return the label map (H, W) of scores (C, H, W)."""
    return scores.argmax(0).numpy().astype(np.uint8)


def flipped_mean(network: Network, view: View) -> torch.Tensor:
    """Return the mean of the logits over the image as it is, mirrored, upside down, and both."""
    total = torch.zeros(1)
    for axes in ((), (1,), (0,), (0, 1)):
        (logits,) = network.run(np.flip(view.pixels, axes))
        total = total + torch.flip(logits, [axis + 1 for axis in axes])
    return total / 4


def without_specks(labels: NDArray[np.uint8], least: int) -> NDArray[np.uint8]:
    """Return a label map whose 4-connected regions of fewer pixels have become ground."""
    cleaned = labels.copy()
    for class_id in np.unique(labels):
        parts, _ = ndimage.label(labels == class_id)
        areas = np.bincount(parts.ravel())
        areas[0] = least
        cleaned[(areas < least)[parts]] = 0
    return cleaned


def yolo_instances(network: Network, view: View, threshold: float, iou: float) -> list[tuple[int, float, NDArray[Any]]]:
    """Return class id, score and mask (H, W) of what a YOLO-seg head found, the best first; empty masks are dropped."""
    head, prototypes = network.run(view.pixels)
    kinds = len(head) - 4 - len(prototypes)
    scores, classes = head[4 : 4 + kinds].max(0)
    centre, size = head[:2], head[2:4]
    boxes = _in_image(torch.cat([centre - size / 2, centre + size / 2]).T, view)
    kept = torch.nonzero(scores >= threshold)[:, 0]
    kept = kept[_nms(boxes[kept], scores[kept], classes[kept], iou)]
    found = []
    y, x = torch.meshgrid(torch.arange(view.height), torch.arange(view.width), indexing="ij")
    for index in kept.tolist():
        logits = resampled(torch.einsum("k,khw->hw", head[4 + kinds :, index], prototypes)[None], view)[0]
        left, top, right, bottom = boxes[index]
        inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        mask = ((logits > 0) & inside).numpy()
        if mask.any():
            found.append((int(classes[index]), float(scores[index]), mask))
    return found


def mask_rcnn_instances(network: Network, view: View, threshold: float) -> list[tuple[int, float, NDArray[Any]]]:
    """Return class id, score and mask (H, W) of what a Mask R-CNN head found, pasted as torchvision pastes."""
    boxes, labels, scores, masks = network.run(view.pixels)
    boxes = _in_image(boxes, view)
    return [
        (int(labels[index]), float(scores[index]), pasted(masks[index, 0], boxes[index], view.height, view.width))
        for index in torch.nonzero(scores >= threshold)[:, 0].tolist()
    ]


def pasted(mask: torch.Tensor, box: torch.Tensor, height: int, width: int) -> NDArray[np.bool_]:
    """Return a mask (M, M) stretched over its box, as torchvision's `paste_masks_in_image`, above 0.5."""
    cells = mask.shape[0]
    scale = (cells + 2) / cells
    half = (box[2:] - box[:2]) * 0.5 * scale
    centre = (box[2:] + box[:2]) * 0.5
    left, top, right, bottom = torch.cat([centre - half, centre + half]).to(torch.int64).tolist()
    size = (max(bottom - top + 1, 1), max(right - left + 1, 1))
    padded = functional.pad(mask, (1, 1, 1, 1))
    large = functional.interpolate(padded[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    image = torch.zeros(height, width)
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right + 1, width), min(bottom + 1, height)
    if x1 < x2 and y1 < y2:
        image[y1:y2, x1:x2] = large[y1 - top : y2 - top, x1 - left : x2 - left]
    return (image > 0.5).numpy()


def query_labels(network: Network, view: View) -> NDArray[np.uint8]:
    """Return the label map (H, W) of mask queries, as transformers' `post_process_semantic_segmentation`."""
    classes, masks = network.run(view.pixels)
    scores = torch.einsum("qc,qhw->chw", classes.softmax(-1)[:, :-1], masks.sigmoid())
    return labels_of(scores, view)


def query_instances(network: Network, view: View, threshold: float) -> list[tuple[int, float, NDArray[Any]]]:
    """Return class id, score and mask (H, W) of mask queries, as `post_process_instance_segmentation`."""
    classes, masks = network.run(view.pixels)
    rows, _ = _axis(masks.shape[1], view.pixels.shape[0], view.top, view.inner_height, view.height)
    columns, _ = _axis(masks.shape[2], view.pixels.shape[1], view.left, view.inner_width, view.width)
    y = _nearest(masks.shape[1], view.pixels.shape[0], view.top, view.inner_height, view.height, rows)
    x = _nearest(masks.shape[2], view.pixels.shape[1], view.left, view.inner_width, view.width, columns)
    shown, chances = masks[:, rows, columns], classes.softmax(-1)[:, :-1]
    best, pairs = chances.flatten().topk(len(chances))
    found = []
    for chance, pair in zip(best.tolist(), pairs.tolist(), strict=True):
        logits = shown[pair // chances.shape[1]]
        inside = (logits > 0).float()
        score = chance * float((logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6))
        mask = inside[y][:, x] > 0
        if score >= threshold and bool(mask.any()):
            found.append((pair % chances.shape[1], score, mask.numpy()))
    return sorted(found, key=lambda one: -one[1])


def as_found(instances: Sequence[tuple[int, float, NDArray[Any]]], least: int = 1) -> list[Found]:
    """Return instances as the figures take them, without parts of fewer pixels than `least`.

    An instance of which nothing is left goes; one that had no pixel before stays where nothing is removed.
    """
    found = []
    for class_id, score, mask in instances:
        cleaned = without_specks(mask.astype(np.uint8), least) if least > 1 else mask.astype(np.uint8)
        if least <= 1 or cleaned.any():
            found.append(Found(class_id, score, coco_mask.encode(np.asfortranarray(cleaned))["counts"]))
    return found


def _in_image(boxes: torch.Tensor, view: View) -> torch.Tensor:
    """Return boxes (N, 4) in pixels of the network's input as boxes in pixels of the image."""
    scale = torch.tensor([view.width / view.inner_width, view.height / view.inner_height] * 2)
    return (boxes - torch.tensor([view.left, view.top] * 2)) * scale


def _nms(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, limit: float) -> torch.Tensor:
    """Return the indices that greedy non-maximum suppression keeps, the best first."""
    order, kept = scores.argsort(descending=True, stable=True).tolist(), list[int]()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index in order:
        others = [other for other in kept if classes[other] == classes[index]]
        low = torch.maximum(boxes[others, :2], boxes[index, :2])
        high = torch.minimum(boxes[others, 2:], boxes[index, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        if not bool((shared / (area[others] + area[index] - shared) > limit).any()):
            kept.append(index)
    return torch.tensor(kept[:MOST], dtype=torch.long)


def refined(logits: torch.Tensor, view: View, options: Mapping[str, float]) -> torch.Tensor:
    """Return the log probabilities of a dense CRF (pydensecrf) over the part of the view that shows the image."""
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_softmax

    height, width = view.inner_height, view.inner_width
    chances = resampled(logits, replace(view, height=height, width=width)).softmax(0).numpy()
    field = densecrf.DenseCRF2D(width, height, len(chances))
    field.setUnaryEnergy(unary_from_softmax(chances))
    shown = view.pixels[view.top : view.top + height, view.left : view.left + width]
    field.addPairwiseGaussian(sxy=options["gaussianSxy"], compat=options["gaussianWeight"])
    field.addPairwiseBilateral(
        sxy=options["bilateralSxy"],
        srgb=options["bilateralRgb"],
        rgbim=np.ascontiguousarray(shown),
        compat=options["bilateralWeight"],
    )
    marginals = np.array(field.inference(int(options["iterations"])), np.float32).reshape(-1, height, width)
    return torch.from_numpy(np.log(np.maximum(marginals, 1e-30)))


def expected_calibration_error(confidence: torch.Tensor, correct: torch.Tensor, bins: int = 15) -> float:
    """Return the mean difference of confidence and accuracy in bins of equal width, weighted by what is in them."""
    total = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if bool(inside.any()):
            total += float((confidence[inside].mean() - correct[inside].double().mean()).abs() * inside.double().mean())
    return total


def cooled(score: float, temperature: float) -> float:
    """Return the probability of a score's logit divided by a temperature."""
    return 1 / (1 + math.exp(-math.log(score / (1 - score)) / temperature)) if 0 < score < 1 else score
