"""Folders and files of the local platform."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from segserve_common.files import private_folder, read_file, write_private
from segserve_common.platform_record import RECORD_FILE, read_record
from segserve_common.platform_record import STATE_VARIABLE as STATE_VARIABLE
from segserve_common.platform_record import PlatformRecord as PlatformRecord
from segserve_common.platform_record import state_folder as state_folder
from segserve_operator.store_format import STORE_FORMAT

CACHE_VARIABLE: Final = "SEGSERVE_CACHE"
CONFIG_VARIABLE: Final = "SEGSERVE_CONFIG"
MOST_LEVELS: Final = 100
"""No document that is read is nested deeper."""
_DIGEST: Final = "# sha256 "
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def cache_folder() -> Path:
    """Return the folder of everything that is costly to create again: the runtime environment, artifacts by digest.

    Golden images are among them: only this user can look into it.
    """
    stated = os.environ.get(CACHE_VARIABLE)
    folder = Path(stated).resolve() if stated else Path.home() / ".cache/segserve"
    with contextlib.suppress(OSError):  # who writes there says what is wrong
        private_folder(folder)
    return folder


def config_folder() -> Path:
    """Return the folder of the user's configuration for all platforms: `secrets/NAME`, `claims/NAME`."""
    folder = os.environ.get(CONFIG_VARIABLE)
    return Path(folder).resolve() if folder else Path.home() / ".config/segserve"


class StateFolderError(PermissionError):
    """The state folder is of several users, or of another one; the message has the cause and a remedy."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The layout of one platform's state folder."""

    root: Path

    def create(self) -> None:
        """Create the folder, or narrow the rights of an existing one, so that only this user can look into it.

        It has logs, golden images, and the words that manage the servers. Raises `StateFolderError` for a folder that
        another user owns, or that all users share, such as /tmp, and `PlatformError` for one of another format.
        """
        found = private_folder(self.root).stat()
        if found.st_uid != os.geteuid() or found.st_mode & stat.S_ISVTX:
            owner = "all users share it" if found.st_mode & stat.S_ISVTX else f"it belongs to user {found.st_uid}"
            raise StateFolderError(f"the state folder {self.root} must be of this user alone, but {owner}; "
                                   f"set {STATE_VARIABLE} to a folder of your own")  # fmt: skip
        self._check_format()

    def _check_format(self) -> None:
        """Note the format of a new folder; an unreadable number does not stop what can be read."""
        if not self.format.exists() and not self.objects.exists():
            write_private(self.format, f"{STORE_FORMAT}\n")
        try:
            found = read_file(self.format, int) if self.format.exists() else None
        except (OSError, ValueError):
            return
        if found != STORE_FORMAT:
            shown = "it has no format" if found is None else f"its format is {found}"
            raise PlatformError(
                f"the state folder {self.root} was written by another version of segserve ({shown}, this one's is "
                f"{STORE_FORMAT}): `segserve down --forget` removes it, then apply the models again"
            )

    @property
    def format(self) -> Path:
        """The number of the format of what is stored."""
        return self.root / "format"

    @property
    def objects(self) -> Path:
        """Resources, as `<kind>/<name>/spec.yaml` and `status.yaml`."""
        return self.root / "objects"

    @property
    def revisions(self) -> Path:
        """Records of revisions."""
        return self.root / "revisions"

    @property
    def groups(self) -> Path:
        """Groups of servers, one folder each."""
        return self.root / "groups"

    @property
    def gateway(self) -> Path:
        """Envoy's files."""
        return self.root / "gateway"

    @property
    def access_log(self) -> Path:
        """The gateway's log of requests, if the pool has one."""
        return self.gateway / "access.log"

    @property
    def metrics_socket(self) -> Path:
        """Socket at which the supervisor serves the platform's metrics."""
        return self.gateway / "metrics.sock"

    @property
    def tls(self) -> Path:
        """The gateway's private authority, and the certificate that it issued."""
        return self.root / "tls"

    @property
    def secrets(self) -> Path:
        """Secrets that the platform made itself, such as the hash of `segserve up --auth key`, as `<name>/<key>`."""
        return self.root / "secrets"

    @property
    def platform(self) -> Path:
        """Record of the supervisor's process and the gateway's URL."""
        return self.root / RECORD_FILE

    @property
    def log(self) -> Path:
        """The supervisor's log."""
        return self.root / "segserve.log"

    @property
    def requests(self) -> Path:
        """The supervisor's counts of requests by minute."""
        return self.root / "requests.jsonl"

    @property
    def lock(self) -> Path:
        """Lock that the supervisor holds; there is only one."""
        return self.root / "lock"

    @property
    def shm_prefix(self) -> str:
        """Prefix of the names of this platform's shared memory regions."""
        return f"segserve-{hashlib.sha256(str(self.root).encode()).hexdigest()[:8]}-"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file; raises `DamagedFileError`."""
    return read_digested_yaml(path)[0]


def read_digested_yaml(path: Path) -> tuple[Any, bool]:
    """Return the value of a YAML file, and whether the file is as `write_yaml` wrote it; raises `DamagedFileError`."""
    return read_file(path, _parse_yaml)


def _parse_yaml(text: str) -> tuple[Any, bool]:
    content, _, digest = text.rpartition(_DIGEST)
    as_written, depth = digest.strip() == _sha256(content), 0
    for event in () if as_written else yaml.parse(text, Loader=_LOADER):
        # libyaml's stack overflows and ends the process.
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_LEVELS:
            raise ValueError(f"it has more than {MOST_LEVELS} levels")
    return yaml.load(text, Loader=_LOADER), as_written


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a YAML file durably, readable by this user only; its last line is a digest, for `read_digested_yaml`."""
    text = yaml.dump(dict(value), Dumper=_DUMPER, sort_keys=False)
    write_private(path, f"{text}{_DIGEST}{_sha256(text)}\n")


def bound_log(path: Path, *, limit_bytes: int, kept_bytes: int) -> None:
    """Truncate a log to its last `kept_bytes` if it is longer than `limit_bytes`.

    It stays the same file, because other processes hold it open; what they write at this moment may be lost.
    """
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size <= limit_bytes:
            return
        file.seek(size - kept_bytes)
        tail = file.read().partition(b"\n")[2]  # without the part of a line at its start
        file.seek(0)
        file.write(tail)
        file.truncate()


class PlatformError(Exception):
    """The local platform cannot do what was requested; the message has the cause and a remedy."""


def read_platform(state: StateFolder) -> PlatformRecord | None:
    """Return the record of the running platform, or None if none runs."""
    return read_record(state.platform)
