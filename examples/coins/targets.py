"""What the instance network is taught: the coins of a scene, and which point answers for which coin."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from yolo import STRIDES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from yolo import Points

SMALLEST_SIDE = 8
BACKGROUND, IGNORED = -1, -2
# The longer sides, in pixels, of the coins that the points of each stride answer for.
SIDES = ((0.0, 32.0), (24.0, 72.0), (56.0, 1e9))
# A point answers for a coin whose centre is within 0.8 strides; up to 1.2 it is not taught either way.
NEAR, UNDECIDED = 0.8, 1.2
NOWHERE = 99.0


class Coins(NamedTuple):
    """Boxes (N, 4) as x1 y1 x2 y2 in pixels, and masks (N, H / 4, W / 4) as coverage 0..1."""

    boxes: torch.Tensor
    masks: torch.Tensor


def coins_of(labels: NDArray[np.uint8]) -> Coins:
    """Return the coins of a label map (H, W); specks narrower than 8 pixels are left out."""
    quarter = labels.shape[0] // 4
    boxes, masks = [], []
    for number in range(1, int(labels.max()) + 1):
        mask = (labels == number).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        if min(width, height) >= SMALLEST_SIDE:
            boxes.append((x, y, x + width, y + height))
            masks.append(cv2.resize(mask.astype(np.float32), (quarter, quarter), interpolation=cv2.INTER_AREA))
    return Coins(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.from_numpy(np.array(masks, np.float32).reshape(-1, quarter, quarter)),
    )


def assign(coins: Coins, points: Points) -> torch.Tensor:
    """Return for each point (N,) the index of its coin, or BACKGROUND, or IGNORED."""
    owner = torch.full(points.x.shape, BACKGROUND)
    if not len(coins.boxes):
        return owner
    left, top, right, bottom = coins.boxes.unbind(1)
    x, y, stride = points.x[:, None], points.y[:, None], points.stride[:, None]
    distance = torch.maximum((x - (left + right) / 2).abs(), (y - (top + bottom) / 2).abs()) / stride
    side = torch.maximum(right - left, bottom - top)
    limits = dict(zip(STRIDES, SIDES, strict=True))
    least, most = torch.tensor([limits[int(s)] for s in points.stride]).T[..., None]
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    nearest, index = distance.where(inside & (side >= least) & (side < most), torch.tensor(NOWHERE)).min(1)
    owner[nearest < UNDECIDED] = IGNORED
    return owner.where(nearest >= NEAR, index)
