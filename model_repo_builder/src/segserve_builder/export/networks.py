"""Loads the torch network that a source names: a module or factory, or a transformers checkpoint."""

from __future__ import annotations

import importlib
import runpy
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segserve_builder.errors import ExportError
from segserve_builder.export.graph import Preparation
from segserve_builder.export.image_processor import FILE_NAME, read_image_processor
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import Family

CODE: Final = frozenset({".pt", ".pth", ".ts", ".torchscript"})
"""Suffixes of TorchScript and pickled modules, whose code is not run."""
NESTED: Final = ("state_dict", "model_state_dict", "model", "weights")
"""Keys under which training scripts keep the weights in a checkpoint."""
_INSTEAD: Final = (
    "where it comes from, write its weights with safetensors.torch.save_file(network.state_dict(), "
    "'weights.safetensors'), and export file.py:name with --weights weights.safetensors"
)


@dataclass(frozen=True)
class NetworkSource:
    """A network, with what its source says about it; None if it does not.

    `module` is a torch module in evaluation mode.
    """

    module: Any
    family: Family | None = None
    classes: tuple[str, ...] | None = None
    preparation: Preparation | None = None


def load(source: str, weights: Path | None = None, family: Family | None = None) -> NetworkSource:
    """Return the network that `source` names.

    `package.module:name` or `file.py:name` is a module, or a callable without arguments that returns one; `weights`
    are loaded into it. A folder with config.json is a checkpoint of transformers. `family` overrides the family of
    a checkpoint's architecture. Raises `ExportError` if the source is neither, or the architecture has no family.
    """
    path = Path(source)
    if (path / "config.json").is_file():
        return _of_transformers(path, family)
    if path.is_file() and path.suffix in CODE:
        raise ExportError(f"{path.name} is TorchScript or a pickle, whose code is not run; {_INSTEAD}")
    if ":" in source:
        import torch

        home, _, name = source.rpartition(":")
        try:
            value = _attributes(home)[name]
        except (ImportError, OSError, KeyError) as error:
            raise ExportError(f"{source!r}: {type(error).__name__}: {error}") from error
        module = value if isinstance(value, torch.nn.Module) else value() if callable(value) else value
        if not isinstance(module, torch.nn.Module):
            raise ExportError(
                f"{source!r} is a {type(module).__name__}; expected a torch.nn.Module, or a callable that returns one"
            )
        if weights is not None:
            _fill(module, load_weights(weights), weights.name)
        return NetworkSource(module.eval())
    raise ExportError(
        f"{source!r} is not a network; allowed are package.module:name, file.py:name and a folder with "
        "transformers' config.json"
    )


def _attributes(home: str) -> Mapping[str, Any]:
    if home.endswith(".py"):
        sys.path.insert(0, str(Path(home).resolve().parent))
        return runpy.run_path(home)
    return vars(importlib.import_module(home))


def _fill(module: Any, tensors: Mapping[str, Any], name: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise ExportError(f"the weights in {name} do not fit the network: {' '.join(lines)}") from error


def load_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint by name: a .safetensors file, or a pickle of only tensors.

    Raises `ExportError` if the file holds anything else.
    """
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return dict(load_file(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of TorchScript before it refuses it
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise ExportError(
            f"{path.name} is not a file of weights alone: torch.load(weights_only=True) refuses it "
            f"({type(error).__name__}); {_INSTEAD}"
        ) from None
    for key in NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    items = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ExportError(f"{path.name} is a {type(loaded).__name__} without named tensors; a state dict is allowed")
    # Data-parallel training puts its own name before every weight's.
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _of_transformers(folder: Path, family: Family | None) -> NetworkSource:
    import transformers

    # Code that comes with a checkpoint is never run, whatever its config.json says.
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    names = [name for name in config.architectures or () if family or family_of(name)]
    if not names:
        listed = ", ".join(config.architectures or ()) or "none"
        allowed = ", ".join(dict.fromkeys(name for each in FAMILIES.values() for name in each.architectures))
        raise ExportError(
            f"{folder.name} is of architecture {listed}, which is not supported; --family overrides this. "
            f"Supported are {allowed}"
        )
    kind = getattr(transformers, names[0])
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file() and not any(folder.glob("*.safetensors")):
        module = kind.from_pretrained(None, config=config, state_dict=load_weights(pickled))
    else:
        module = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    # Other implementations of attention are not exported as plain operators.
    module.set_attn_implementation("eager")
    classes = tuple(config.id2label[index] for index in sorted(config.id2label))
    return NetworkSource(module.eval(), family or family_of(names[0]), classes, _preparation(folder))


def family_of(architecture: str) -> Family | None:
    """Return the family of a transformers class, or None."""
    return next((family for family in FAMILIES.values() if architecture in family.architectures), None)


def _preparation(folder: Path) -> Preparation | None:
    processor = read_image_processor(folder)
    if not processor.config:
        return None
    not_done = processor.not_done()
    if processor.square is not None or processor.splits_images:
        not_done = ("padding to a square or splitting", *not_done)
    if not_done:
        raise ExportError(
            f"what {FILE_NAME} sets is not written here: {', '.join(not_done)}. Export the network with "
            "torch.onnx.export, and use `segserve init`"
        )
    normalise = processor.normalise or {}
    return Preparation(
        normalise.get("scale", 1 / 255),
        tuple(normalise.get("mean", (0.0,))),
        tuple(normalise.get("std", (1.0,))),
        processor,
    )
