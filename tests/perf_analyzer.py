"""NVIDIA's perf_analyzer, unchanged, out of the wheels that carry it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VERSION: Final = "2.45.0"
CACHE: Final = Path.home() / ".cache" / "segserve"
# 2.45.0 is the last whose binary runs with the C library of Debian 12.
WHEELS: Final = f"""\
tritonclient=={VERSION} --hash=sha256:28b2d550bf5445ccd3f457bbcabf890db1d271924957d4d26abd431f94b078c1
nvidia-cuda-runtime-cu12==12.4.127 --hash=sha256:64403288fa2136ee8e467cdc9c9427e0434110899d07c779f25b5c068934faa5
"""
MEMBERS: Final = ("perf_analyzer", "libcudart.so.12")


@dataclass(frozen=True, slots=True)
class PerfAnalyzer:
    """The program in `folder`, beside the library that it is linked to."""

    folder: Path

    def run(self, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run it and return what it printed and its exit code."""
        return subprocess.run(
            [self.folder / "perf_analyzer", *arguments],
            env=os.environ | {"LD_LIBRARY_PATH": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def perf_analyzer(cache: Path = CACHE) -> PerfAnalyzer:
    """Return the program, downloaded once into `cache`, where only a complete folder ever appears.

    Raises `RuntimeError` with pip's own words where the wheels cannot be had.
    """
    folder = cache / f"perf_analyzer-{VERSION}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".perf_analyzer-") as temporary:
            made = Path(temporary, "made")
            made.mkdir()
            _unpack(_download(Path(temporary)), made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # another process may have been first
                    raise
    return PerfAnalyzer(folder)


def _download(folder: Path) -> list[Path]:
    requirements = folder / "wheels.txt"
    requirements.write_text(WHEELS)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-deps", "--only-binary=:all:", f"--dest={folder}", f"--requirement={requirements}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"perf_analyzer cannot be downloaded: {done.stderr.strip()}")
    return list(folder.glob("*.whl"))


def _unpack(wheels: list[Path], folder: Path) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                target = folder / Path(name).name
                if target.name in MEMBERS:
                    target.write_bytes(archive.read(name))
                    target.chmod(0o755)
    missing = [name for name in MEMBERS if not (folder / name).exists()]
    if missing:
        raise RuntimeError(f"the wheels of perf_analyzer hold no {', '.join(missing)}")
