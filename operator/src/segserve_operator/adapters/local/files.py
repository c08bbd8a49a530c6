"""Where the local platform keeps things, and files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from segserve_common.files import write_private

STATE_VARIABLE: Final = "SEGSERVE_STATE"
CACHE_VARIABLE: Final = "SEGSERVE_CACHE"
CONFIG_VARIABLE: Final = "SEGSERVE_CONFIG"
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def state_folder() -> Path:
    """Return the folder of the platform that this environment talks to."""
    given = os.environ.get(STATE_VARIABLE)
    return Path(given).resolve() if given else Path.home() / ".local/state/segserve"


def cache_folder() -> Path:
    """Return the folder of what is costly to make again: the runtime environment, artifacts by digest."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).resolve() if given else Path.home() / ".cache/segserve"


def config_folder() -> Path:
    """Return the folder of what the user keeps for all platforms: `secrets/NAME`, `claims/NAME`."""
    given = os.environ.get(CONFIG_VARIABLE)
    return Path(given).resolve() if given else Path.home() / ".config/segserve"


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The layout of one platform's state."""

    root: Path

    @property
    def objects(self) -> Path:
        """Resources: `<kind>/<name>/spec.yaml`, and `status.yaml` beside it."""
        return self.root / "objects"

    @property
    def revisions(self) -> Path:
        """Records of revisions."""
        return self.root / "revisions"

    @property
    def groups(self) -> Path:
        """A folder a group of servers."""
        return self.root / "groups"

    @property
    def gateway(self) -> Path:
        """Envoy's files."""
        return self.root / "gateway"

    @property
    def platform(self) -> Path:
        """The record of the supervisor's process and the gateway's address."""
        return self.root / "platform.json"

    @property
    def log(self) -> Path:
        """The supervisor's log."""
        return self.root / "segserve.log"

    @property
    def lock(self) -> Path:
        """Held by the one supervisor."""
        return self.root / "lock"

    @property
    def shm_prefix(self) -> str:
        """What the shared memory regions of this platform's servers begin with."""
        return f"segserve-{hashlib.sha256(str(self.root).encode()).hexdigest()[:8]}-"


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file; ValueError where it is none."""
    try:
        return yaml.load(path.read_text(), Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is no YAML: {error}") from error


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as a YAML file, by rename."""
    write_private(path, yaml.dump(dict(value), Dumper=_DUMPER, sort_keys=False))


def bound_log(path: Path, *, limit_bytes: int, kept_bytes: int) -> None:
    """Cut a log that others append to down to its last `kept_bytes`, once it is longer than `limit_bytes`.

    It stays the same file, as its writers hold it open; what they write in this very moment may be lost.
    """
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size <= limit_bytes:
            return
        file.seek(size - kept_bytes)
        tail = file.read().partition(b"\n")[2]
        file.seek(0)
        file.write(tail)
        file.truncate()
