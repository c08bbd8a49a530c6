"""Labels at the image's pixels and logits made of them, for stages that refine logits by the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from segserve_builder.errors import BadImageError
from segserve_builder.sampling import axes
from segserve_builder.values import Float32, Logits, ResizeTransform, UInt8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS: Final = 8 << 20
MAX_BYTES: Final = 2 << 30
"""Memory limit of one image's refinement, its result included."""
PIXEL_BYTES: Final = 128
"""Memory of a stage per pixel beside its labels: vertices and weights of two lattices."""


@dataclass(frozen=True, slots=True)
class LabelScores:
    """The relevant labels of an image: scores in lanes, float32 (G, H, W, 8), best 0, and label numbers, int64 (K,)."""

    scores: Float32
    kept: NDArray[np.int64]

    @classmethod
    def of(cls, value: Logits, height: int, width: int, least: float) -> LabelScores:
        """Sample the logits at the pixels of the image, resized to height x width; one channel becomes two labels.

        Labels whose probability nowhere exceeds `least` are left out.
        """
        import numpy as np

        from segserve_builder.kernels.crf_scores import label_scores

        values, p = value.values, value.transform
        if len(values) == 1:
            values = np.concatenate([np.zeros_like(values), values])
        rows, columns = axes(replace(p, height=height, width=width), *values.shape[1:])
        return cls(*label_scores(values, rows, columns, value.temperature, least))

    def logits(self, value: Logits) -> Logits:
        """Return logits with `value`'s channels, of scores that are log probabilities by now."""
        from segserve_builder.kernels.crf_scores import label_planes

        channels = len(value.values)
        planes = label_planes(self.scores, self.kept, max(channels, 2))
        if channels == 1:
            planes = planes[1:] - planes[:1]
        height, width = planes.shape[1:]
        p = value.transform
        transform = ResizeTransform(p.height, p.width, 0, 0, height, width, height, width)
        return replace(value, values=planes, transform=transform, temperature=1.0)


def checked_guide(value: Logits) -> UInt8:
    """Return the image at the network's resolution, uint8 (inner_height, inner_width, 3).

    Raises `BadImageError` if it is too large to be refined, `ValueError` if it is missing or has another shape.
    """
    guide, p = value.guide, value.transform
    if guide is None or guide.shape != (p.inner_height, p.inner_width, 3) or guide.dtype != "uint8":
        observed = None if guide is None else (guide.dtype.name, guide.shape)
        raise ValueError(f"the guide is {observed}; uint8 {(p.inner_height, p.inner_width, 3)} is expected")
    pixels, labels = p.inner_height * p.inner_width, len(value.values)
    size = f"the network's view of the image is {p.inner_width} x {p.inner_height}"
    if pixels > MAX_PIXELS:
        raise BadImageError(f"{size}; up to {MAX_PIXELS} pixels can be refined")
    if pixels * (PIXEL_BYTES + 8 * labels) > MAX_BYTES:
        raise BadImageError(
            f"{size}; with {labels} classes that is too much to be refined within {MAX_BYTES >> 20} MiB"
        )
    return guide
