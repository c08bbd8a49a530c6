"""Loads the torch network that a source names: a module or factory, a TorchScript file, a transformers checkpoint."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segserve_builder.errors import ExportError
from segserve_builder.export.graph import Preparation
from segserve_builder.export.image_processor import FILE_NAME, read_image_processor
from segserve_builder.export.isolated import ScriptFile, load_weights
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import Family

SCRIPTS: Final = frozenset({".pt", ".pth", ".ts", ".torchscript"})


@dataclass(frozen=True)
class NetworkSource:
    """A network, with what its source says about it; None if it does not.

    `module` is a torch module in evaluation mode, or a file that only the sandbox loads; `sandboxed` is the name of the
    file that is read, or was, in the sandbox.
    """

    module: Any
    family: Family | None = None
    classes: tuple[str, ...] | None = None
    preparation: Preparation | None = None
    sandboxed: str | None = None


def load(source: str, weights: Path | None = None, family: Family | None = None) -> NetworkSource:
    """Return the network that `source` names.

    `package.module:name` or `file.py:name` is a module, or a callable without arguments that returns one; `weights`
    are loaded into it. A folder with config.json is a checkpoint of transformers, a file ending in .pt, .pth, .ts or
    .torchscript is TorchScript. `family` overrides that of a checkpoint's architecture. Raises `ExportError` if the
    source is none of these, or the architecture is of no family.
    """
    path = Path(source)
    if (path / "config.json").is_file():
        return _of_transformers(path, family)
    if path.is_file() and path.suffix in SCRIPTS:
        return NetworkSource(ScriptFile(path), sandboxed=path.name)
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
        return NetworkSource(module.eval(), sandboxed=_pickled(weights))
    raise ExportError(
        f"{source!r} is not a network; allowed are package.module:name, file.py:name, a TorchScript file "
        f"({', '.join(sorted(SCRIPTS))}) and a folder with transformers' config.json"
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


def _pickled(weights: Path | None) -> str | None:
    return weights.name if weights is not None and weights.suffix != ".safetensors" else None


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
    is_pickled = pickled.is_file() and not any(folder.glob("*.safetensors"))
    if is_pickled:
        module = kind.from_pretrained(None, config=config, state_dict=load_weights(pickled))
    else:
        module = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    # Other implementations of attention are not exported as plain operators.
    module.set_attn_implementation("eager")
    classes = tuple(config.id2label[index] for index in sorted(config.id2label))
    sandboxed = pickled.name if is_pickled else None
    return NetworkSource(module.eval(), family or family_of(names[0]), classes, _preparation(folder), sandboxed)


def family_of(architecture: str) -> Family | None:
    """Return the family of a transformers class, None if it has none."""
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
