"""The source `hf`: files of a Hugging Face hub by `hf://organisation/repository[@revision]/path`, over its HTTP API."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlencode, urljoin

from segserve_builder.errors import ArtifactMissingError, SourceUnauthorizedError
from segserve_builder.sources.access import Access
from segserve_builder.sources.base import Stream
from segserve_builder.sources.http import SourceRequest, authorization, get, open_file

HUB: Final = "https://huggingface.co"
_FORM: Final = re.compile(
    r"hf://(?P<kind>datasets/)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<path>.*))?"
)
_NEXT: Final = re.compile(r"<([^>]+)>\s*;\s*rel=\"next\"")
_MOST_PAGES: Final = 200  # a server could name a next page forever


@dataclass(frozen=True, slots=True)
class _File:
    """A file or folder of a repository."""

    kind: str
    """`datasets/`, or empty for a model."""

    name: str
    revision: str
    path: str

    def resolve_path(self) -> str:
        """Return the path of the file on the hub."""
        return f"/{self.kind}{self.name}/resolve/{quote(self.revision, safe='')}/{quote(self.path)}"

    def tree_path(self) -> str:
        """Return the path of the list of files below it."""
        kind = self.kind or "models/"
        return f"/api/{kind}{self.name}/tree/{quote(self.revision, safe='')}/{quote(self.path)}".rstrip("/")


class HuggingFaceSource:
    """Files of models and datasets; a credential has `token`, which redirects to other hosts do not get."""

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        """Open a file; raises `SourceUnauthorizedError` if its repository is gated or private."""
        file = _parsed(uri)
        if not file.path:
            raise ArtifactMissingError(f"{uri!r} names a repository; expected one of its files")
        url = _hub(access) + file.resolve_path()
        with _explained(uri, file), open_file(url, access, _request(file, access), start) as stream:
            yield stream

    def files(self, uri: str, access: Access) -> Iterator[str]:
        """Yield the paths of the files below a folder of the repository."""
        folder = _parsed(uri.rstrip("/"))
        page = f"{_hub(access)}{folder.tree_path()}?{urlencode({'recursive': 'true'})}"
        for _ in range(_MOST_PAGES):
            with _explained(uri, folder), get(page, access, _request(folder, access)) as response:
                listed, following = response.json(), _NEXT.search(response.headers.get("Link", ""))
            for entry in listed:
                if entry["type"] == "file":
                    yield str(entry["path"]).removeprefix(f"{folder.path}/" if folder.path else "")
            if following is None:
                return
            page = urljoin(page, following[1])
        raise ArtifactMissingError(f"{uri!r} has more than {_MOST_PAGES} pages of files")


def _parsed(uri: str) -> _File:
    found = _FORM.fullmatch(uri)
    path = unquote(found["path"] or "") if found else ""
    if found is None or ".." in path.split("/"):
        raise ArtifactMissingError(f"{uri!r} is not a file of a hub; expected hf://org/repo[@revision]/path")
    return _File(found["kind"] or "", found["name"], unquote(found["revision"] or "main"), path)


def _hub(access: Access) -> str:
    ambient = os.environ.get("HF_ENDPOINT") if access.ambient else None
    return (access.endpoints.get("hf") or ambient or HUB).rstrip("/")


def _request(file: _File, access: Access) -> SourceRequest:
    secret = access.secret("hf", file.name.partition("/")[0], ("token",))
    token = secret.get("token") or (_ambient_token() if access.ambient else None)
    return SourceRequest(
        "hf",
        authorization=authorization({"token": token}) if token else None,
        authority=secret.get("ca.crt"),
    )


def _ambient_token() -> str | None:
    """Return the token that the hub's own library uses: of the environment, or of `hf auth login`."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


@contextmanager
def _explained(uri: str, file: _File) -> Iterator[None]:
    """Explain a refusal: the hub answers the same for a repository that does not exist."""
    try:
        yield
    except SourceUnauthorizedError as error:
        raise SourceUnauthorizedError(
            f"{uri!r} is refused: {file.kind}{file.name} is private, gated or not there. If it is gated, accept its "
            f"conditions on its page, and name a credential for hf with the token of that account ({error})"
        ) from error
