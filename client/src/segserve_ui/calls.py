"""The calls that give what the page shows: in Python, by curl, and on the command line."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from segserve.calls.prompts import Box, Click
from segserve.platform import Cluster, PlatformRef
from segserve_ui.prompts import Prompts

Json = dict[str, str]
DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Caller:
    """How a program outside the page reaches a platform: its gateway's URL, and what that requires of callers."""

    place: PlatformRef
    url: str | None
    ca_file: str | None = None
    has_key: bool = False
    plain_http: bool = True


def calls(
    caller: Caller, model: str, file_name: str, score_threshold: float | None, prompts: Prompts | None = None
) -> list[Json]:
    """Return the calls as `title`, `language` and `text`; they name the image `file_name` in the current folder.

    `prompts` are those of a promptable model, None for others.
    """
    given = (caller, model, file_name, score_threshold, prompts)
    found = [
        {"title": "Python", "language": "python", "text": _python(*given)},
        {"title": "curl", "language": "sh", "text": _curl(*given)},
        {"title": "Command line", "language": "sh", "text": _command(*given)},
    ]
    return found[:2] if prompts is not None and prompts.multimask else found  # predict shows the best mask


def _python(caller: Caller, model: str, file_name: str, score_threshold: float | None, prompts: Prompts | None) -> str:
    imports, given = ["Client"], [] if caller.url is None else [_quoted(caller.url)]
    if caller.ca_file is not None:
        imports, given = [*imports, "Tls"], [*given, f"tls=Tls(ca_file={_quoted(caller.ca_file)})"]
    option = "" if score_threshold is None else f", score_threshold={score_threshold:g}"
    key = "# SEGSERVE_API_KEY is read from the environment.\n" if caller.has_key else ""
    opened, answer = "", f"client.segment({_quoted(file_name)}, model={_quoted(model)}{option})"
    if prompts is not None:
        imports = sorted({*imports, *(type(each).__name__ for each in prompts.given)})
        opened = f", client.prompt({_quoted(file_name)}, model={_quoted(model)}) as image"
        answer = f"image.ask({', '.join([*map(_prompt, prompts.given), *['multimask=True'] * prompts.multimask])})"
    return (
        f"from segserve import {', '.join(imports)}\n\n{key}"
        f"with Client({', '.join(given)}) as client{opened}:\n"
        f"    result = {answer}\n"
        f'    result.overlay({_quoted(file_name)}).save("overlay.png")'
    )


def _prompt(prompt: Click | Box) -> str:
    numbers = ", ".join(f"{number:g}" for number in dataclasses.astuple(prompt)[: 4 if isinstance(prompt, Box) else 2])
    background = isinstance(prompt, Click) and not prompt.foreground
    return f"{type(prompt).__name__}({numbers}{', foreground=False' * background})"


def _quoted(text: str) -> str:
    """Return a Python string in double quotes: JSON writes it in the same way."""
    return json.dumps(text, ensure_ascii=False)


def _curl(caller: Caller, model: str, file_name: str, score_threshold: float | None, prompts: Prompts | None) -> str:
    words = ["curl"]
    if caller.ca_file is not None:
        words += ["--cacert", shlex.quote(caller.ca_file)]
    if caller.has_key:
        words += ["-H", '"x-api-key: $SEGSERVE_API_KEY"']
    options = {} if score_threshold is None else {"score_threshold": f"{score_threshold:g}"}
    if prompts is not None:
        options |= prompts.parameters()
    query = "?" * bool(options) + urlencode(options, safe=",")
    url = f"{(caller.url or DEFAULT_URL).rstrip('/')}/v1/models/{quote(model, safe='')}:segment{query}"
    words += ["--data-binary", shlex.quote(f"@{file_name}"), shlex.quote(url)]
    note = "" if caller.plain_http else "# needs gateway.plainHttp of the pool\n"
    return note + " ".join(words)


def _command(caller: Caller, model: str, file_name: str, score_threshold: float | None, prompts: Prompts | None) -> str:
    # A name that begins with a dash would be an option.
    image = f"./{file_name}" if file_name.startswith("-") else file_name
    words = ["segserve", "predict", model, image, "-o", "overlay.png"]
    if score_threshold is not None:
        words += ["--score-threshold", f"{score_threshold:g}"]
    for each in prompts.given if prompts is not None else ():
        option = "--box" if isinstance(each, Box) else "--point" if each.foreground else "--background"
        sides = (each.width, each.height) if isinstance(each, Box) else ()
        words += [option, ",".join(f"{number:g}" for number in (each.x, each.y, *sides))]
    if isinstance(caller.place, Cluster):
        options = (("--context", caller.place.context), ("-n", caller.place.namespace))
        words += [word for option, value in options if value is not None for word in (option, value)]
        if caller.place.kubeconfig is not None:
            words += ["--kubeconfig", str(caller.place.kubeconfig)]
    return shlex.join(words)
