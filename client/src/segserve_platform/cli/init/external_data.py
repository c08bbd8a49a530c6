"""Joins an ONNX file with the files that it keeps weights in: a resource names one file, whose sha256 it pins."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from segserve_builder.export.image_processor import FILE_NAME
from segserve_builder.steps.onnx_signature import MAX_BYTES, external_files
from segserve_platform.cli.errors import CommandError

BESIDE: Final = ("config.json", FILE_NAME)
"""Files that tell about a network, in its folder."""


@contextmanager
def one_file(network: Path) -> Iterator[Path]:
    """Yield the file of a network, or a copy with all weights inside, which lasts as long as the block.

    torch's exporter writes weights beside the file, as `net.onnx.data`. Raises `CommandError` if one of those files is
    missing or elsewhere, or if all are too large for one, and the errors of `external_files`.
    """
    try:
        names = sorted(external_files(network))
    except OSError as error:
        raise CommandError(f"{network}: {error.strerror}") from error
    if not names:
        yield network
        return
    files, listed = [network.parent / name for name in names], ", ".join(names)
    missing = [file for file in files if file.parent != network.parent or not file.is_file()]
    if missing:
        raise CommandError(
            f"{network} keeps weights in {listed}, and {', '.join(file.name for file in missing)} is not beside it: "
            "put it there, or export the network again with external_data=False"
        )
    size = sum(file.stat().st_size for file in (network, *files))
    if size > MAX_BYTES:
        raise CommandError(
            f"{network} and {listed} have {size} bytes; the one file that is served has at most {MAX_BYTES}: export "
            "the network in half precision"
        )
    import onnx

    with TemporaryDirectory(prefix="segserve-init-") as folder:
        whole = Path(folder) / network.name
        onnx.save(onnx.load(network), whole)
        for name in BESIDE:
            if (network.parent / name).is_file():
                shutil.copyfile(network.parent / name, whole.parent / name)
        yield whole
