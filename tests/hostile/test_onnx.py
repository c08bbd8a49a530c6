"""ONNX files that are small and become large."""

from __future__ import annotations

import subprocess
import sys

import pytest

MIB = 2**20
READ = """
import resource, sys
from pathlib import Path
import onnx
from segserve_builder.errors import UnsafeArtifactError
from segserve_builder.steps.onnx_signature import read_signature

used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**26,) * 2)
for path in sys.argv[1:]:
    try:
        read_signature(Path(path))
    except (UnsafeArtifactError, MemoryError) as error:
        print(repr(error))
"""


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def model(graph: bytes) -> bytes:
    return b"\x08\x08" + field(8, b"\x10\x11") + field(7, graph)


BOMBS = {
    "nodes": model(b"\x0a\x00" * (2 * MIB)),
    "texts": model(field(1, b"\x0a\x00" * (5 * MIB))),
    "numbers": model(field(1, field(5, field(8, b"\x01" * (20 * MIB))))),
    "single numbers": model(field(1, field(5, b"\x40\x01" * (5 * MIB)))),
    "dimensions": model(field(5, field(1, b"\x01" * (20 * MIB)))),
    "metadata": model(b"") + field(14, b"") * (2 * MIB),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The errors of all files, read in a process that may take 64 MiB."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, content in BOMBS.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, "-c", READ, *(str(folder / name) for name in BOMBS)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    return dict(zip(BOMBS, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("name", BOMBS)
def test_no_memory_is_taken_by_a_small_file_of_millions_of(name: str, said: dict[str, str]) -> None:
    assert f"UnsafeArtifactError('{name} would take more than 128 MiB beside its weights" in said[name]
