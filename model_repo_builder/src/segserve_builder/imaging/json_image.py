"""Reads the image file in a body of JSON, `{"image": "<base64>"}`, as clients of other servers send it."""

from __future__ import annotations

import base64
import json
import re
from typing import Final

from segserve_common.image_file import ImageFileError

MAX_FILE_BYTES: Final = 16 * 2**20
"""Most bytes of an image that comes by plain HTTP: a script of the gateway blocks its thread for some 4 ms a MiB."""
_ALLOWED: Final = 'allowed is {"image": "<base64>"}, with options in the query'
_BEGIN: Final = re.compile(rb"\s{0,64}\{")
_KEY: Final = re.compile(r'\s*[{,]\s*"([^"\\]*)"\s*:\s*(.)?', re.DOTALL)
_END: Final = re.compile(r"\s*\}\s*")
_KINDS: Final = {"[": "a list", "{": "an object", "n": "null", "t": "a boolean", "f": "a boolean", None: "missing"}
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


def image_file_of(data: bytes) -> bytes:
    """Return the file in a JSON object with one image, in base64 or as a data: URL; other data as they are.

    The JSON is read only as far as it is allowed, so that the memory is a few times its size, whatever it has. Raises
    `ImageFileError`.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if _BEGIN.match(data) is None:
        return data
    try:
        text = data.decode()
        key = _KEY.match(text)
        if key is None:
            wrong = "cannot be read" if text.strip("{} \t\r\n") else "has no image"
            raise ImageFileError(f"the JSON of the body {wrong}; {_ALLOWED}")
        if key[1] != "image":
            raise ImageFileError(f"the JSON of the body has the unknown key {key[1][:80]!r}; {_ALLOWED}")
        if key[2] != '"':
            kind = _KINDS.get(key[2], "a number")
            raise ImageFileError(f"the image in the JSON is {kind}, and must be one string; {_ALLOWED}")
        image, end = json.JSONDecoder().raw_decode(text, key.end() - 1)
    except ValueError as error:
        if isinstance(error, ImageFileError):
            raise
        raise ImageFileError(f"the JSON of the body cannot be read: {error}; {_ALLOWED}") from error
    if (key := _KEY.match(text, end)) is not None:
        more = "more than one image" if key[1] == "image" else f"the unknown key {key[1][:80]!r}"
        raise ImageFileError(f"the JSON of the body has {more}; {_ALLOWED}")
    if _END.fullmatch(text, end) is None:
        raise ImageFileError(f"the JSON of the body cannot be read: no end after the image; {_ALLOWED}")
    return _decoded(image)


def _decoded(image: str) -> bytes:
    if image[:5].lower() == "data:":
        kind, _, image = image.partition(",")
        if not kind.lower().endswith(";base64"):
            raise ImageFileError(f"the image in the JSON is a data: URL without base64: {kind[:80]!r}")
    encoded = image.encode("ascii", "replace").translate(_STANDARD, b" \t\r\n")
    if len(encoded) % 4:
        raise ImageFileError(
            f"the image in the JSON has {len(encoded)} characters of base64, which is not a multiple of 4: it is cut "
            "short, or has no padding"
        )
    try:
        file = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ImageFileError(f"the image in the JSON is not base64: {error}") from error
    if len(file) > MAX_FILE_BYTES:
        raise ImageFileError(f"the image in the JSON has {len(file)} bytes; allowed are at most {MAX_FILE_BYTES}")
    return file
