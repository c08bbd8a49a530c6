"""Reads pickled weights in a process of their own, which has no network: `python -m segserve_builder.export.isolated`.

`torch.load(weights_only=True)` builds nothing but tensors and plain containers; the process is for the day on which
that turns out to be wrong.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from segserve_builder.errors import ExportError

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
NESTED: Final = ("state_dict", "model_state_dict", "model", "weights")
"""Keys under which training scripts keep the weights in a checkpoint."""
TIMEOUT_S: Final = 600


def load_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint by name: a .safetensors file, or a pickle of tensors alone.

    Raises `ExportError` if the file holds anything else.
    """
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return dict(load_file(path))
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "weights.safetensors"
        command = [sys.executable, "-m", "segserve_builder.export.isolated", str(path.resolve()), str(plain)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportError(f"{path.name} is not a file of weights alone: {reason}")
        return dict(load_file(plain))


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


def _leave_the_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"no network namespace: {os.strerror(ctypes.get_errno())}")


def _main(source: Path, target: Path) -> None:
    # First: a process that has threads, as torch starts them, may not leave it unless it is root.
    _leave_the_network()
    import torch
    from safetensors.torch import save_file

    loaded = torch.load(source, map_location="cpu", weights_only=True)
    # Tied weights share memory, which safetensors refuses.
    save_file({name: value.detach().clone().contiguous() for name, value in tensors_of(loaded).items()}, target)


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
