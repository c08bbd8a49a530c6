"""Test runs of a network: the shapes of its outputs, the sizes and batches that it accepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from segserve.cli.errors import CommandError
from segserve.cli.init.network import ImageInput, NetworkFile

NUMPY: Final = {"UINT8": "uint8", "UINT16": "uint16", "FP16": "float16", "FP32": "float32"}
STEPS: Final = (1, 2, 4, 8, 16, 32, 64)
FREE_SIDE: Final = 256
DETECTOR_SIDE: Final = 640


class NetworkRunner:
    """Runs a network in ONNX Runtime on noise. A failed run is a result, not an error."""

    def __init__(self, network: NetworkFile, image: ImageInput) -> None:
        """Load the file; raises `CommandError` if ONNX Runtime cannot, `ModuleNotFoundError` if it is not installed."""
        from segserve_builder.steps.session import open_session

        self.image = image
        try:
            self._session = open_session(network.path)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise CommandError(f"ONNX Runtime cannot load {network.path}: {_brief(error)}") from error
        self._run_options = _silent_run_options()

    def run(self, batch: int, height: int, width: int) -> Mapping[str, Any] | None:
        """Return the outputs for noise of a size by name, None if the run fails."""
        import numpy as np

        noise = np.random.default_rng(0).integers(0, 256, self.image.shape(batch, height, width))
        images = (noise if self.image.dtype.startswith("UINT") else noise / 255).astype(NUMPY[self.image.dtype])
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, {self.image.name: images}, self._run_options), strict=True))
        except Exception:
            return None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the outputs for one image by name; empty if no usual size works."""
        for side in (FREE_SIDE, DETECTOR_SIDE):
            outputs = self.run(1, self.image.height or side, self.image.width or side)
            if outputs is not None:
                return {name: tuple(array.shape) for name, array in outputs.items()}
        return {}

    def multiple(self) -> int | None:
        """Return the least power of two that the sides of images must be multiples of; None if none up to 64 works."""
        for step in STEPS:
            least = -(-64 // step)
            odd = least + 1 - least % 2
            if self.run(1, odd * step, (odd + 2) * step) is not None:
                return step
        return None

    def takes_pairs(self) -> bool:
        """Return whether the network answers a batch of two images."""
        height, width = self.image.size or (FREE_SIDE, FREE_SIDE)
        outputs = self.run(2, height, width)
        return outputs is not None and all(array.ndim and len(array) == 2 for array in outputs.values())


def _silent_run_options() -> Any:
    """Return run options that keep failures off stderr, since some runs are expected to fail."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
