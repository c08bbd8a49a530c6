"""The platform of this machine: resources as files, servers as processes."""

from __future__ import annotations

import getpass
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from segserve.platform import Local
from segserve_common.files import DamagedFileError, read_file
from segserve_platform.platforms.errors import ControlError, NotFoundError, needs
from segserve_platform.platforms.port import (
    MODEL,
    POOL,
    ROLLOUT,
    Change,
    DoctorCheck,
    Json,
    ParsedResource,
    PlatformEvent,
    PlatformVersion,
)

if TYPE_CHECKING:
    from segserve_operator.adapters.local.files import PlatformRecord
    from segserve_operator.adapters.local.resource_files import ResourceFiles

POLL_S: Final = 0.2
CONTAINERS: Final = ("agent", "triton")
MARK_BYTES: Final = 4096
"""Length of the text by which a truncated log is recognised: single lines repeat, texts of this length rarely do."""

LINE_LENGTH: Final = 300
LEAST_FREE: Final = 64 * 2**20
_OF_SHELLS: Final = re.compile(r"[^\w/.,:=@%+~-]")
"""A character that a shell could take for more than itself; letters of all scripts are none."""
NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia")
NO_GPU: Final = ("CUDA driver version is insufficient", "CudaDriverHelper has not been initialized")
"""Texts that Triton logs as errors on a machine without a GPU, where they mean nothing."""


def local_store(place: Local | None = None) -> ResourceFiles:
    """Return the store of the local platform's resources."""
    with needs("local"):
        from segserve_operator.adapters.local.files import StateFolder, state_folder
        from segserve_operator.adapters.local.resource_files import ResourceFiles

    return ResourceFiles(StateFolder(state_folder() if place is None or place.state is None else place.state))


def check_state_folder(store: ResourceFiles) -> None:
    """Raise `ControlError` if the platform could not run in the state folder or in the cache, with what to do.

    Triton starts its steps by a shell, whose words end at spaces; and a disk must have room for logs and shared files.
    """
    from segserve_operator.adapters.local.files import CACHE_VARIABLE, STATE_VARIABLE, cache_folder

    for title, folder, variable in (("state", store.state.root, STATE_VARIABLE),
                                    ("cache", cache_folder(), CACHE_VARIABLE)):  # fmt: skip
        nearest, problem = next(path for path in (folder, *folder.parents) if path.exists()), ""
        if not nearest.is_dir():
            problem = f"{nearest} is a file, not a folder"
        elif (odd := _OF_SHELLS.search(str(folder))) is not None:
            problem = f"Triton cannot start its steps below a path with {odd[0]!r}"
        elif (free := shutil.disk_usage(nearest).free) < LEAST_FREE:
            problem = f"its disk has {free / 2**20:.0f} MiB free, and {LEAST_FREE / 2**20:.0f} are needed"
        if problem:
            text = f"the {title} folder {str(folder)!r} cannot be used: {problem}; set {variable} to another folder"
            raise ControlError(text)


@dataclass(frozen=True, slots=True)
class LogRequest:
    """The logs to show: the logs of the model `name` and the `container` triton or agent, or all for None. `lines` is
    per log.
    """

    name: str | None = None
    container: str | None = None
    follow: bool = False
    lines: int = 50


class LocalPlatform:
    """The `Platform` of one state folder: the folder in `ref`, or the default one."""

    def __init__(self, place: Local | None = None) -> None:
        self.store = local_store(place)

    def apply(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[str]:
        """Store the resources; there is no field ownership on this machine."""
        check_state_folder(self.store)
        manifests = [(written.resource, written.complete()) for written in resources]
        # Compared before they are written.
        later = [self._later(resource) for resource, _ in manifests]
        return [f"{self.store.apply(*each)}{text}" for each, text in zip(manifests, later, strict=True)]

    def _later(self, resource: object) -> str:
        """Return what of a pool's gateway changes only at the next start of a platform that runs."""
        from pydantic.alias_generators import to_camel

        from segserve_operator.adapters.local.gateway import FOLLOWED
        from segserve_operator.api.triton_pool import TritonPool

        if not isinstance(resource, TritonPool) or not self.runs():
            return ""
        former, gateway = self.store.pool().spec.gateway, resource.spec.gateway
        names = [name for name in type(gateway).model_fields if getattr(former, name) != getattr(gateway, name)]
        waiting = ", ".join(f"gateway.{to_camel(name)}" for name in names if name not in FOLLOWED)
        return f" ({waiting} from the next `segserve up` on)" if waiting else ""

    def preview(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[Change]:
        """Compare the resources with the stored ones."""
        manifests = [(written.resource, written.complete()) for written in resources]
        return [Change(*self.store.preview(*each), later=self._later(each[0])) for each in manifests]

    def check_namespace(self, resources: Iterable[ParsedResource]) -> None:
        """Accept all: there are no namespaces on this machine."""

    def delete(self, kind: str, name: str) -> str:
        """Mark a model for deletion; the pool of this machine stays until `segserve down`."""
        if kind == POOL:
            return "kept: `segserve down` ends it"
        with _known():
            self.store.delete(kind, name)
        return "deleted"

    def runs(self) -> bool:
        """Return whether a platform is up."""
        return self._url() is not None

    def is_unattended(self) -> bool:
        """Return whether the gateway runs without a supervisor, which has ended."""
        gateway = self.store.state.gateway / "envoy.process.json"
        if self.runs() or not gateway.exists():
            return False
        from segserve_operator.adapters.local.processes import is_alive, read_record

        return is_alive(read_record(gateway))

    def version(self) -> PlatformVersion | None:
        """Return the version that the running platform was started with."""
        record = self._running()
        return None if record is None else PlatformVersion("this machine", record.url, record.version)

    def models(self) -> list[Json]:
        """Read all models from their files."""
        return [_shown(self.store.get(MODEL, name)) for name in self.store.names(MODEL)]

    def model(self, name: str) -> Json:
        """Read a model from its file."""
        return self._get(MODEL, name)

    def find(self, kind: str, name: str) -> Json | None:
        """Read a resource from its file."""
        try:
            return self._get(kind, name)
        except NotFoundError:
            return None

    def pools(self) -> list[Json]:
        """Read all pools from their files; the default pool has no file."""
        return [self.store.get(POOL, name) for name in self.store.names(POOL)]

    def pool(self, name: str) -> Json:
        """Read a pool from its file."""
        return self._get(POOL, name)

    def rollouts(self) -> list[Json]:
        """Read all records from their files."""
        found = (self.rollout(name) for name in self.store.names(ROLLOUT))
        return [record for record in found if record is not None]

    def rollout(self, name: str) -> Json | None:
        """Read a record from its file; a damaged one counts as missing."""
        with suppress(DamagedFileError):
            return self.find(ROLLOUT, name)
        return None

    def chunks(self, rollout: str, count: int) -> list[str]:
        """Read the files next to the record."""
        from segserve_operator.adapters.local.rollouts import chunk_file

        folder = self.store.state.objects / ROLLOUT / rollout
        try:
            return [read_file(chunk_file(folder, number), str) for number in range(count)]
        except (OSError, DamagedFileError):
            return []

    def sheet(self, model: str) -> bytes | None:
        """Ask the comparator beside the gateway."""
        from segserve_common.http.urls import RequestError
        from segserve_operator.adapters.local.comparator import fetch_sheet

        try:
            return fetch_sheet(self.store.state, model)
        except RequestError as error:
            raise ControlError(str(error)) from error

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Write the annotations into the user's part of the file."""
        with _known():
            self.store.annotate(kind, name, annotations)

    def user(self) -> str:
        """Return the name of the user of this process."""
        try:
            return getpass.getuser()
        except (KeyError, OSError):
            return ""  # a container may run as a user id that no account has

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        """Poll the file every 0.2 s."""
        while True:
            yield self.find(kind, name)
            time.sleep(POLL_S)

    def logs(self, request: LogRequest) -> Iterator[str]:
        """Yield the logs of supervisor, gateway, servers and agents."""
        state = self.store.state
        if request.container not in (None, *CONTAINERS):
            raise ControlError(f"no container {request.container!r}; there are: {', '.join(CONTAINERS)}")
        if not state.root.exists():
            raise ControlError(
                f"no platform has run in {state.root}; for a cluster: "
                "kubectl logs -l app.kubernetes.io/managed-by=segserve --all-containers --prefix"
            )
        known: dict[Path, _LogFile] = {}
        without_gpu = not NVIDIA_DRIVER.exists()
        while True:
            for path in self._log_files(request):
                origin = path.relative_to(state.root).with_suffix("").as_posix()
                is_first_look = path not in known
                lines = known.setdefault(path, _LogFile(path)).new_lines(to_the_end=not request.follow)
                if without_gpu and origin.endswith("/triton"):
                    lines = [line for line in lines if not any(text in line for text in NO_GPU)]
                skipped = max(0, len(lines) - request.lines) if is_first_look else 0
                yield from (f"{origin} | {line}" for line in lines[skipped:])
            if not request.follow:
                return
            time.sleep(POLL_S)

    def last_words(self, model: str) -> str:
        """Return the newest line of the logs of a model's servers, or else of all servers and the supervisor."""
        logs = self._log_files(LogRequest(model)) or [self.store.state.log, *self.store.state.groups.glob("*/*.log")]
        written = sorted((path.stat().st_mtime, path) for path in logs if path.is_file())
        for _, path in reversed(written):
            origin = path.relative_to(self.store.state.root).with_suffix("").as_posix()
            if line := next((each for each in reversed(_LogFile(path).new_lines(to_the_end=True)) if each.strip()), ""):
                return f"; the last line of {origin}: {line.strip()[:LINE_LENGTH]}"
        return ""

    def events(self, model: str) -> list[PlatformEvent]:
        """Read the events of the model and its pool, and when the processes that serve it started."""
        from segserve_operator.adapters.local.processes import read_record

        state = self.store.state
        found = [
            PlatformEvent(at_s, about, event.kind == "Warning", event.reason, event.message)
            for about, at_s, event in self.store.events(model)
        ]
        groups = {holder.get("group") for holder in (self.model(model).get("status") or {}).get("roles", {}).values()}
        processes = [(f"server {group}", state.groups / group) for group in sorted(filter(None, groups))]
        for about, folder in (*processes, ("gateway", state.gateway)):
            for path in sorted(folder.glob("*.process.json")):
                if (process := read_record(path)) is not None:
                    name = path.name.removesuffix(".process.json")
                    found.append(PlatformEvent(process.started_at_s, about, False, "Started", f"{name} was started"))
        return found

    def access_log(self, since_s: float) -> Iterator[str] | None:
        """Read the file of the gateway's log."""
        if self.store.pool().spec.gateway.access_log is None:
            return None
        return self._access_log()

    def _access_log(self) -> Iterator[str]:
        with suppress(FileNotFoundError), self.store.state.access_log.open(errors="replace") as file:
            yield from file

    def ca_file(self) -> str | None:
        """Return the file of the gateway's private authority; None without one, or if it is down."""
        record = self._running()
        return None if record is None else record.ca_file or None

    @contextmanager
    def gateway(self, model: str) -> Iterator[str | None]:
        """Yield the URL of the running platform; None if it is down, since the default URL may still respond."""
        yield self._url()

    def close(self) -> None:
        """Do nothing: no connection is open."""

    def checks(self) -> Iterator[DoctorCheck]:
        """Yield the checks of this machine."""
        with needs("local"):
            from segserve_operator.local_platform.doctor import examine

        for finding in examine():
            yield DoctorCheck(finding.name, finding.passed, finding.observed, finding.advice, finding.fix)

    def _get(self, kind: str, name: str) -> Json:
        with _known():
            return _shown(self.store.get(kind, name))

    def _url(self) -> str | None:
        record = self._running()
        return None if record is None else record.url

    def _running(self) -> PlatformRecord | None:
        from segserve_operator.adapters.local.files import read_platform

        return read_platform(self.store.state)

    def _log_files(self, request: LogRequest) -> list[Path]:
        state, wanted = self.store.state, request.container
        groups = sorted(path for path in state.groups.glob("*/*.log") if wanted in (None, path.stem))
        if request.name is None:
            return groups if wanted else [state.log, *sorted(state.gateway.glob("*.log")), *groups]
        roles = (self.model(request.name).get("status") or {}).get("roles", {})
        return [path for path in groups if path.parent.name in {holder.get("group") for holder in roles.values()}]


def _shown(manifest: Json) -> Json:
    """Return a resource without its unreadable roles, and with a condition that says so."""
    status = manifest.get("status") or {}
    if not isinstance(status.get("roles", {}), str):
        return manifest
    lost = {"type": "Ready", "status": "Unknown", "reason": "StatusUnreadable", "message": status["roles"]}
    changed = {"lastTransitionTime": manifest["metadata"]["creationTimestamp"]}
    conditions = status.get("conditions") or [lost | changed]
    return {**manifest, "status": {**status, "roles": {}, "conditions": conditions}}


@contextmanager
def _known() -> Iterator[None]:
    from segserve_operator.adapters.local.resource_files import ResourceNotFoundError

    try:
        yield
    except ResourceNotFoundError as error:
        raise NotFoundError(str(error)) from None


class _LogFile:
    """A log that other processes append to, truncate or replace; each complete line is returned once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._mark = b""  # what stood before the offset

    def new_lines(self, *, to_the_end: bool) -> list[str]:
        """Return the lines since the last call; `to_the_end` includes a last line without its end."""
        try:
            with self._path.open("rb") as file:
                data = self._unread(file)
        except FileNotFoundError:
            return []
        read = data if to_the_end else data[: data.rfind(b"\n") + 1]
        self._offset += len(read)
        self._mark = (self._mark + read)[-MARK_BYTES:]
        return read.decode(errors="replace").splitlines()

    def _unread(self, file: BinaryIO) -> bytes:
        file.seek(self._offset - len(self._mark))
        data = file.read()
        if data.startswith(self._mark):
            return data[len(self._mark) :]
        # The log was truncated: the text read last is now closer to the start, or gone if everything is new.
        file.seek(0)
        data = file.read()
        found = data.find(self._mark)
        if found < 0:
            self._offset, self._mark = 0, b""
        else:
            self._offset = found + len(self._mark)
        return data[self._offset :]
