"""The tasks of the sandbox, with files that may hold code: pickled weights are read, TorchScript is exported and run.

`torch.load(weights_only=True)` builds nothing but tensors and plain containers; the sandbox is for the day on which
that turns out to be wrong. TorchScript is code, which runs as the file is loaded.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from segserve_builder.errors import ExportError
from segserve_builder.export import sandbox

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve_builder.export.graph import ExportShape, Preparation
    from segserve_builder.families.base import Family

NESTED: Final = ("state_dict", "model_state_dict", "model", "weights")
"""Keys under which training scripts keep the weights in a checkpoint."""


def load_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint by name: a .safetensors file, or a pickle of tensors alone.

    Raises `ExportError` if the file holds anything else, `SandboxMissingError` if a pickle cannot be read safely here.
    """
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return dict(load_file(path))
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "weights.safetensors"
        try:
            _run(path, {"task": "weights"}, plain)
        except sandbox.SandboxMissingError:
            raise
        except ExportError as error:
            raise ExportError(f"{path.name} is not a file of weights alone: {error}") from None
        return dict(load_file(plain))


@dataclass(frozen=True)
class ScriptFile:
    """A TorchScript file, which no process but the sandbox's loads."""

    path: Path


@dataclass(frozen=True)
class ScriptNetwork:
    """A TorchScript file with the preprocessing in front of it; see `folded`."""

    path: Path
    family: Family
    preparation: Preparation

    def write(self, shape: ExportShape, target: Path) -> None:
        """Write it as ONNX; raises `ExportError` if the file is not TorchScript, or torch cannot express it."""
        self._run({"task": "script", "shape": asdict(shape)}, target)

    def answers(self, batches: Sequence[NDArray[Any]]) -> Iterator[list[NDArray[Any]]]:
        """Yield the network's outputs for each batch, uint8 (B, C, H, W) or (B, H, W, C) as its file takes them."""
        from safetensors.numpy import load_file, save_file

        names = self.family.output_names
        with tempfile.TemporaryDirectory() as folder:
            inputs, outputs = Path(folder) / "inputs.safetensors", Path(folder) / "outputs.safetensors"
            save_file({str(number): batch for number, batch in enumerate(batches)}, inputs)
            self._run({"task": "answers", "inputs": str(inputs)}, outputs, inputs)
            found = load_file(outputs)
        for number in range(len(batches)):
            yield [found[f"{number}/{name}"] for name in names]

    def _run(self, options: Mapping[str, Any], output: Path, *inputs: Path) -> None:
        told = {"family": self.family.name, "preparation": asdict(self.preparation), **options}
        try:
            _run(self.path, told, output, *inputs)
        except sandbox.SandboxMissingError:
            raise
        except ExportError as error:
            raise ExportError(f"{self.path.name}: {error}") from None


def _run(source: Path, options: Mapping[str, Any], output: Path, *inputs: Path) -> None:
    sandbox.run(sandbox.Task(__name__, source, options, inputs), output)


def tensors_of(loaded: Any) -> Mapping[str, Any]:
    """Return the named tensors within what a checkpoint held; raises `ExportError` if there are none."""
    import torch

    for key in NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    items = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ExportError(f"the checkpoint is a {type(loaded).__name__} without named tensors; a state dict is allowed")
    # Data-parallel training puts its own name before every weight's.
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def perform(source: Path, options: Mapping[str, Any], output: BinaryIO) -> None:
    """Perform a task in the sandbox."""
    if options["task"] == "weights":
        import torch
        from safetensors.torch import save

        loaded = torch.load(source, map_location="cpu", weights_only=True)
        # Tied weights share memory, which safetensors refuses.
        output.write(save({name: value.detach().clone().contiguous() for name, value in tensors_of(loaded).items()}))
        return
    from segserve_builder.export.graph import ExportShape, Preparation, folded, write
    from segserve_builder.families import FAMILIES

    family = FAMILIES[options["family"]]
    told = options["preparation"]
    preparation = Preparation(told["scale"], tuple(told["mean"]), tuple(told["std"]))
    network = folded(_script(source), family, preparation)
    if options["task"] == "script":
        write(network, family, ExportShape(**options["shape"]), output)
    else:
        inputs = Path(options["inputs"])
        import torch
        from safetensors.torch import load_file, save

        tensors: dict[str, Any] = {}
        with torch.no_grad():
            for number, batch in load_file(inputs).items():
                answers = zip(family.output_names, network(batch), strict=True)
                tensors |= {f"{number}/{name}": answer.contiguous() for name, answer in answers}
        output.write(save(tensors))


def _script(source: Path) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, but files of it are common
        try:
            return torch.jit.load(source, map_location="cpu").eval()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise ExportError(
                "it is not TorchScript that loads without files and network; weights alone need the code of their "
                f"network: file.py:name with --weights {source.name} (... {reason})"
            ) from None
