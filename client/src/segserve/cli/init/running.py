"""What only running a network shows: the shapes that it gives, the sizes and batches that it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve.cli.init.image_input import ImageInput
    from segserve.cli.init.network import NetworkFile

NUMPY: Final = {"UINT8": "uint8", "UINT16": "uint16", "FP16": "float16", "FP32": "float32"}
STEPS: Final = (1, 2, 4, 8, 16, 32, 64)
FREE_SIDE: Final = 256
DETECTOR_SIDE: Final = 640


class Runs:
    """A network in ONNX Runtime. A run that fails is an answer too: None."""

    def __init__(self, network: NetworkFile, image: ImageInput) -> None:
        """Load the file; raises `CommandError` where ONNX Runtime does not, `ModuleNotFoundError` where it is none."""
        from segserve_builder.steps.session import open_session

        self.image = image
        try:
            self._session = open_session(network.path)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # ONNX Runtime's own types are as many as there are ways to be broken
            raise CommandError(f"ONNX Runtime does not load {network.path}: {_brief(error)}") from error
        self._silent = _silent()

    def run(self, batch: int, height: int, width: int) -> Mapping[str, Any] | None:
        """Return the outputs for noise of a size, by name."""
        import numpy as np

        noise = np.random.default_rng(0).integers(0, 256, self.image.shape(batch, height, width))
        given = (noise if self.image.dtype.startswith("UINT") else noise / 255).astype(NUMPY[self.image.dtype])
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, {self.image.name: given}, self._silent), strict=True))
        except Exception:
            return None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the outputs for one image; none where no size that is usual works."""
        for side in (FREE_SIDE, DETECTOR_SIDE):
            found = self.run(1, self.image.height or side, self.image.width or side)
            if found is not None:
                return {name: tuple(array.shape) for name, array in found.items()}
        return {}

    def multiple(self) -> int | None:
        """Return what the sides of images must be multiples of, the least power of two; None where none works."""
        for step in STEPS:
            least = -(-64 // step)
            odd = least + 1 - least % 2
            if self.run(1, odd * step, (odd + 2) * step) is not None:
                return step
        return None

    def takes_pairs(self) -> bool:
        """Whether two images at once give two answers."""
        height, width = self.image.size or (FREE_SIDE, FREE_SIDE)
        found = self.run(2, height, width)
        return found is not None and all(array.ndim and len(array) == 2 for array in found.values())


def _silent() -> Any:
    """Return options of runs that say nothing of their failure on stderr: to fail is what some are made for."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
