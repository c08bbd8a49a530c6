"""This machine's platform: resources as files, servers as processes."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from segserve.platforms.errors import ControlError, NotFoundError
from segserve.platforms.extras import needs
from segserve.platforms.port import MODEL, POOL, ROLLOUT, Check, Json, LogRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from segserve.platforms.manifests import Written
    from segserve.platforms.place import Local
    from segserve_operator.adapters.local.files import StateFolder
    from segserve_operator.adapters.local.store import LocalStore

POLL_S: Final = 0.2


def local_store(place: Local | None = None) -> LocalStore:
    """Return the resources of the local platform."""
    with needs("local"):
        from segserve_operator.adapters.local.files import StateFolder, state_folder
        from segserve_operator.adapters.local.store import LocalStore

    return LocalStore(StateFolder(state_folder() if place is None or place.state is None else place.state))


class LocalPlatform:
    """Implements `Platform` on one state folder: that of `place`, or the one that the environment names."""

    def __init__(self, place: Local | None = None) -> None:
        self.store = local_store(place)

    def apply(self, resources: Sequence[Written], *, force: bool = False) -> list[str]:
        """Store them; nobody else sets fields here."""
        manifests = [(written.resource, written.complete()) for written in resources]
        return [self.store.apply(resource, manifest) for resource, manifest in manifests]

    def check_place(self, resources: Iterable[Written]) -> None:
        """Take all: here are no namespaces."""

    def delete(self, kind: str, name: str) -> str:
        """Mark a model; this machine's one pool is not deleted, it ends with `segserve down`."""
        if kind == POOL:
            return "kept: `segserve down` ends it"
        with _known():
            self.store.delete(kind, name)
        return "deleted"

    def runs(self) -> bool:
        """Return whether a platform is up."""
        return self._url() is not None

    def models(self) -> list[Json]:
        """Read the files."""
        return [self.store.get(MODEL, name) for name in self.store.names(MODEL)]

    def model(self, name: str) -> Json:
        """Read the file."""
        return self._get(MODEL, name)

    def find(self, kind: str, name: str) -> Json | None:
        """Read the file."""
        try:
            return self._get(kind, name)
        except NotFoundError:
            return None

    def pools(self) -> list[Json]:
        """Read the files; the default pool has none."""
        return [self.store.get(POOL, name) for name in self.store.names(POOL)]

    def pool(self, name: str) -> Json:
        """Read the file."""
        return self._get(POOL, name)

    def rollouts(self) -> list[Json]:
        """Read the files."""
        found = (self.rollout(name) for name in self.store.names(ROLLOUT))
        return [record for record in found if record is not None]

    def rollout(self, name: str) -> Json | None:
        """Read the file."""
        return self.find(ROLLOUT, name)

    def chunks(self, rollout: str, count: int) -> list[str]:
        """Read the files beside the record."""
        from segserve_operator.adapters.local.rollouts import chunk_file

        folder = self.store.state.objects / ROLLOUT / rollout
        try:
            return [chunk_file(folder, number).read_text() for number in range(count)]
        except FileNotFoundError:
            return []

    def bundle(self, rollout: str) -> bytes | None:
        """Read the file beside the platform's own."""
        from segserve_operator.adapters.bundles.local import bundle_file

        path = bundle_file(self.store.state, rollout)
        return path.read_bytes() if path.is_file() else None

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Write them into the user's part of the file."""
        with _known():
            self.store.annotate(kind, name, annotations)

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        """Look again and again: files tell nobody that they changed."""
        while True:
            yield self.find(kind, name)
            time.sleep(POLL_S)

    def logs(self, request: LogRequest) -> Iterator[str]:
        """Yield the logs of supervisor, gateway, servers and agents."""
        state = self.store.state
        if request.previous:
            raise ControlError("--previous is for clusters: here a log goes on where the process before it ended")
        if not state.root.exists():
            raise ControlError(f"no platform has run in {state.root}")
        offsets: dict[Path, int] = {}
        while True:
            for path in self._log_files(request):
                yield from _new_lines(state, path, offsets, request.lines)
            if not request.follow:
                return
            time.sleep(POLL_S)

    @contextmanager
    def gateway(self, model: str) -> Iterator[str | None]:
        """Return what the running platform says; where none is up, the usual address may still answer."""
        try:
            url = self._url()
        except ModuleNotFoundError:
            url = None  # without what platforms need, none of this machine is up
        yield url

    def close(self) -> None:
        """Hold nothing open."""

    def checks(self) -> Iterator[Check]:
        """Examine what a platform needs of this machine."""
        with needs("local"):
            from segserve_operator.local_platform.doctor import examine

        for finding in examine(self.store):
            yield Check(finding.what, finding.good, finding.seen, finding.advice, finding.fix)

    def _get(self, kind: str, name: str) -> Json:
        with _known():
            return self.store.get(kind, name)

    def _url(self) -> str | None:
        from segserve_operator.local_platform.supervisor import read_platform

        record = read_platform(self.store.state)
        return None if record is None else record.url

    def _log_files(self, request: LogRequest) -> list[Path]:
        state, wanted = self.store.state, request.container
        groups = sorted(path for path in state.groups.glob("*/*.log") if wanted in (None, path.stem))
        if request.name is None:
            return groups if wanted else [state.log, *sorted(state.gateway.glob("*.log")), *groups]
        roles = (self.model(request.name).get("status") or {}).get("roles", {})
        return [path for path in groups if path.parent.name in {holder.get("group") for holder in roles.values()}]


@contextmanager
def _known() -> Iterator[None]:
    from segserve_operator.adapters.local import store

    try:
        yield
    except store.NotFoundError as error:
        raise NotFoundError(str(error)) from None


def _new_lines(state: StateFolder, path: Path, offsets: dict[Path, int], lines: int) -> Iterator[str]:
    if not path.exists():
        return
    origin = path.relative_to(state.root).with_suffix("").as_posix()
    with path.open("rb") as file:
        file.seek(offsets.get(path, 0))
        text = file.read().decode(errors="replace").splitlines()
        first = path not in offsets
        offsets[path] = file.tell()
    for line in text[-lines:] if first else text:
        yield f"{origin} | {line}"
