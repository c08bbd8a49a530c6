"""Finds the torch network that a source names: a module or factory, a TorchScript file, a transformers checkpoint."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import ExportError
from segserve_builder.export.isolated import load_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

SCRIPTS: Final = frozenset({".pt", ".pth", ".ts", ".torchscript"})
HEADS: Final[Mapping[str, str]] = {
    "ForSemanticSegmentation": "semantic-logits",
    "Mask2FormerForUniversalSegmentation": "mask2former",
    "MaskFormerForInstanceSegmentation": "maskformer",
    "DetrForObjectDetection": "detr",
    "DetrForSegmentation": "detr-panoptic",
}
"""The family of a transformers model, by the end of its class's name; the longest that fits counts."""


@dataclass(frozen=True)
class Preparation:
    """What an image goes through before the network: (pixel * scale - mean) / std, at a size where one is usual."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class NetworkSource:
    """A network in evaluation mode, with what its source says of it; None where that says nothing."""

    module: Any
    family: str | None = None
    classes: tuple[str, ...] | None = None
    preparation: Preparation | None = None


def load(source: str, weights: Path | None = None) -> NetworkSource:
    """Return the network that `source` names.

    `package.module:name` or `file.py:name` is a module, or is called without arguments and gives one; `weights` are
    then loaded into it. A folder with config.json is a checkpoint of transformers, a file ending in .pt, .pth, .ts or
    .torchscript is TorchScript. Raises `ExportError` where it is none of these.
    """
    path = Path(source)
    if (path / "config.json").is_file():
        return _of_transformers(path)
    if path.is_file() and path.suffix in SCRIPTS:
        return NetworkSource(_of_script(path))
    if ":" in source:
        return NetworkSource(_of_code(source, weights))
    raise ExportError(
        f"{source!r} is no network; allowed are package.module:name, file.py:name, a TorchScript file "
        f"({', '.join(sorted(SCRIPTS))}) and a folder with transformers' config.json"
    )


def _of_code(source: str, weights: Path | None) -> Any:
    import torch

    home, _, name = source.rpartition(":")
    try:
        found = _attributes(home)[name]
    except (ImportError, OSError, KeyError) as error:
        raise ExportError(f"{source!r}: {type(error).__name__}: {error}") from error
    module = found if isinstance(found, torch.nn.Module) else found() if callable(found) else found
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{source!r} is a {type(module).__name__}; a torch.nn.Module, or what gives one, is allowed")
    if weights is not None:
        _fill(module, load_weights(weights), weights.name)
    return module.eval()


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
        raise ExportError(f"the weights of {name} are not the network's: {' '.join(lines)}") from error


def _of_script(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself, which people still have
            return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise ExportError(
            f"{path.name} is not TorchScript; weights alone need the code of their network: "
            f"file.py:name with --weights {path.name}"
        ) from error


def _of_transformers(folder: Path) -> NetworkSource:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    names = [name for name in config.architectures or () if family_of(name)]
    if not names:
        seen = ", ".join(config.architectures or ()) or "none"
        raise ExportError(f"{folder.name} is of architecture {seen}; allowed are ...{', ...'.join(HEADS)}")
    kind = getattr(transformers, names[0])
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file() and not any(folder.glob("*.safetensors")):
        module = kind.from_pretrained(None, config=config, state_dict=load_weights(pickled))
    else:
        module = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    # Only in this form is attention exported as plain operators.
    module.set_attn_implementation("eager")
    classes = tuple(config.id2label[index] for index in sorted(config.id2label))
    return NetworkSource(module.eval(), family_of(names[0]), classes, _preparation(folder))


def family_of(architecture: str) -> str | None:
    """Return the family of a transformers class, or None where it has none."""
    fitting = [end for end in HEADS if architecture.endswith(end)]
    return HEADS[max(fitting, key=len)] if fitting else None


def _preparation(folder: Path) -> Preparation | None:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    told = json.loads(path.read_text())
    size = told.get("size") or {}
    fixed = (size["height"], size["width"]) if isinstance(size, dict) and {"height", "width"} <= size.keys() else None
    scale = told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1.0
    if not told.get("do_normalize", True):
        return Preparation(scale, (0.0,), (1.0,), fixed)
    return Preparation(scale, tuple(told["image_mean"]), tuple(told["image_std"]), fixed)
