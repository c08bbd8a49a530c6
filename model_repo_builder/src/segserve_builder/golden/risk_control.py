"""Conformal risk control: the threshold of a cascade, for a declared loss against its heavy network.

After Angelopoulos, Bates, Fisch, Lei and Schuster, Conformal Risk Control, ICLR 2024 (arXiv:2208.02814), theorem 1:
losses from 0 to B that never grow along a parameter are on average at most alpha for a further image of the same kind,
if the parameter is the first at which (sum of the losses of n images + B) / (n + 1) is at most alpha. Here the
parameter is the threshold, from above: an image loses what its light answer is worse than the heavy one if its score
is below the threshold, and nothing if the heavy network is called. B is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LARGEST_LOSS: Final = 1.0
ALWAYS_HEAVY: Final = 0.0
ALWAYS_LIGHT: Final = 1.0
"""The highest threshold: only images without evidence for a score (a score of 1) go to the heavy network."""


class TooFewImagesError(ValueError):
    """A set of images is too small for any threshold."""

    def __init__(self, images: int, max_loss: float) -> None:
        self.needed = images_needed(max_loss)
        super().__init__(f"a loss of at most {max_loss:g} needs at least {self.needed} images, got {images}")


@dataclass(frozen=True, slots=True)
class CascadeRisk:
    """Loss and share of the heavy network at one threshold, on the images that it was measured on.

    `loss` is their mean, `loss_bound` the largest expected loss of a further image that conformal risk control allows
    for.
    """

    threshold: float
    loss: float
    loss_bound: float
    heavy_share: float
    images: int


def images_needed(max_loss: float) -> int:
    """Return the least number of images for which a threshold can exist."""
    return math.ceil(round(LARGEST_LOSS / max_loss, 9)) - 1


def check_loss(losses: Sequence[float], max_loss: float) -> float:
    """Return the largest expected loss of a further image, of the losses of a cascade that is in use.

    `losses` are the images', 0 where the heavy network answered. Raises `TooFewImagesError`, or `ValueError` if it is
    above `max_loss`.
    """
    if len(losses) < images_needed(max_loss):
        raise TooFewImagesError(len(losses), max_loss)
    bound = risk_at(ALWAYS_LIGHT, [0.0] * len(losses), losses).loss_bound
    if bound > max_loss:
        raise ValueError(
            f"{len(losses)} images lose {np.mean(losses):.4g} on average, which bounds the expected loss by "
            f"{bound:.4g}; allowed is at most {max_loss:g}: `segserve golden cascade` finds a threshold"
        )
    return bound


def risk_at(threshold: float, scores: Sequence[float], losses: Sequence[float]) -> CascadeRisk:
    """Return the risk at a threshold; `scores` and `losses`, both 0 to 1, are the images' (see `cascade_threshold`)."""
    scored, lost = _checked(scores, losses)
    is_light = scored < threshold
    total, number = float(lost[is_light].sum()), len(scored)
    bound = (total + LARGEST_LOSS) / (number + 1)
    return CascadeRisk(threshold, total / number, bound, 1.0 - float(is_light.mean()), number)


def cascade_threshold(scores: Sequence[float], losses: Sequence[float], max_loss: float) -> CascadeRisk:
    """Return the highest threshold whose expected loss is at most `max_loss`, and the risk at it.

    `scores` are the light answers' scores: the heavy network is called if a score is at least the threshold. `losses`
    say by how much each light answer is worse than the heavy one, 0 where it is not. The threshold is halfway between
    the last score below the bound and the first one above it, so that rounding elsewhere moves no image across. Raises
    `TooFewImagesError` if the images are too few for any threshold, and `ValueError` for other arguments.
    """
    scored, lost = _checked(scores, losses)
    if not 0 < max_loss < LARGEST_LOSS:
        raise ValueError(f"the largest loss is {max_loss:g}; expected above 0 and below 1")
    if len(scored) < images_needed(max_loss):
        raise TooFewImagesError(len(scored), max_loss)
    distinct, place = np.unique(scored, return_inverse=True)
    totals = np.cumsum(np.bincount(place, lost))
    fits = (totals + LARGEST_LOSS) / (len(scored) + 1) <= max_loss
    if fits.all():
        return risk_at(ALWAYS_LIGHT, scores, losses)
    # Totals never fall: those that fit come first.
    first = int(np.argmin(fits))
    return risk_at(float(distinct[first - 1 : first + 1].mean()) if first else ALWAYS_HEAVY, scores, losses)


def _checked(scores: Sequence[float], losses: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scored, lost = np.asarray(scores, np.float64), np.asarray(losses, np.float64)
    if scored.shape != lost.shape or scored.ndim != 1 or not len(scored):
        raise ValueError(f"{scored.shape} scores and {lost.shape} losses; expected one of each for every image")
    for name, values in (("scores", scored), ("losses", lost)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} reach from {values.min():g} to {values.max():g}; expected 0 to 1")
    return scored, lost
