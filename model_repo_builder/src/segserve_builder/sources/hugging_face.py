"""The source `hf`: files of a Hugging Face hub by `hf://organisation/repository[@revision]/path`, over its HTTP API."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlencode, urljoin

from segserve_builder.errors import ArtifactMissingError, SourceUnauthorizedError
from segserve_builder.sources.http_requests import SourceRequest, authorization, get, open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve_builder.sources.access import Access
    from segserve_builder.sources.base import Stream

HUB: Final = "https://huggingface.co"
_FORM: Final = re.compile(
    r"hf://(?P<kind>datasets/)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<path>.*))?"
)
_NEXT: Final = re.compile(r"<([^>]+)>\s*;\s*rel=\"next\"")
_MOST_PAGES: Final = 200


@dataclass(frozen=True, slots=True)
class _File:
    """What a URI names."""

    kind: str
    """`datasets/`, or nothing for a model."""

    name: str
    revision: str
    path: str

    def resolve_path(self) -> str:
        """Return where the hub gives the file."""
        return f"/{self.kind}{self.name}/resolve/{quote(self.revision, safe='')}/{quote(self.path)}"

    def tree_path(self) -> str:
        """Return where the hub lists the files below it."""
        kind = self.kind or "models/"
        return f"/api/{kind}{self.name}/tree/{quote(self.revision, safe='')}/{quote(self.path)}".rstrip("/")


class HuggingFaceSource:
    """Files of models and datasets; a credential has `token`. The hub's redirects get no token on another host."""

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        """Open a file; raises `SourceUnauthorizedError` where its repository is gated or private."""
        file = _parsed(uri)
        if not file.path:
            raise ArtifactMissingError(f"{uri!r} names a repository; an artifact is one of its files")
        url = _hub(access) + file.resolve_path()
        with _telling(uri, file), open_file(url, access, _request(file, access), start) as stream:
            yield stream

    def files(self, uri: str, access: Access) -> Iterator[str]:
        """Yield the paths of the files below a folder of the repository."""
        folder = _parsed(uri.rstrip("/"))
        page = f"{_hub(access)}{folder.tree_path()}?{urlencode({'recursive': 'true'})}"
        for _ in range(_MOST_PAGES):
            with _telling(uri, folder), get(page, access, _request(folder, access)) as response:
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
        raise ArtifactMissingError(f"{uri!r} names no file of a hub; it has the form hf://org/repo[@revision]/path")
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
    """Return the token that `hf auth login` and the hub's own library know."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


@contextmanager
def _telling(uri: str, file: _File) -> Iterator[None]:
    """Say what a refusal of the hub means: of a repository that is not there it says the same."""
    try:
        yield
    except SourceUnauthorizedError as error:
        raise SourceUnauthorizedError(
            f"{uri!r} is not given: {file.kind}{file.name} is private, gated or not there. Where it is gated, accept "
            f"its conditions on its page; then name a credential for hf with the token of who did ({error})"
        ) from error
