"""`segserve doctor`: checks of the environment and the platform, each with the command that fixes it."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import typer

from segserve.errors import MissingExtraError
from segserve.platform import Local
from segserve_platform.cli.options import PlatformOptions, is_local, selected_platform, with_platform_options
from segserve_platform.platforms.port import DoctorCheck
from segserve_platform.platforms.selection import open_platform

if TYPE_CHECKING:
    from rich.console import Console

OLDEST: Final = (3, 11)
CONNECT_S: Final = 3.0
OURSELVES: Final = "segserve"
URL_VARIABLE: Final = "SEGSERVE_URL"
INSTEAD: Final = {
    "onnxruntime": ("onnxruntime-gpu",),
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
}
"""Distributions that provide the same modules."""
_REQUIREMENT: Final = re.compile(
    r"^(?P<name>[\w.-]+)(\[(?P<extras>[^]]*)])?\s*(?P<wanted>[^;]*)(;.*extra == .(?P<of>[\w-]+).)?"
)


def _python() -> DoctorCheck:
    advice = f"segserve needs Python {'.'.join(map(str, OLDEST))} or newer"
    return DoctorCheck(
        "Python of segserve", sys.version_info >= OLDEST, f"{platform.python_version()}, {sys.executable}", advice
    )


def _packages(extra: str) -> DoctorCheck:
    missing, wrong = [], []
    for name, bounds in sorted(set(_required(extra))):
        version = _installed(name)
        if version is None:
            missing.append(name)
        elif not _fits(version, bounds):
            wrong.append(f"{name} {version} ({bounds} is needed)")
    what = f"packages of segserve[{extra}]"
    if not missing and not wrong:
        return DoctorCheck(what, good=True, seen=f"all installed, segserve {metadata.version(OURSELVES)}")
    version = "; ".join(filter(None, [f"missing: {', '.join(missing)}" if missing else "", ", ".join(wrong)]))
    return DoctorCheck(
        what, good=False, seen=version, advice="install the missing packages", fix=f"pip install 'segserve[{extra}]'"
    )


def _required(extra: str | None) -> Iterator[tuple[str, str]]:
    """Yield name and version specifier of each package that the base or an extra needs, including nested extras."""
    for text in metadata.requires(OURSELVES) or ():
        requirement = _REQUIREMENT.match(text)
        if requirement is None or requirement["of"] not in (None, extra):
            continue
        if requirement["name"] == OURSELVES:
            for other in (requirement["extras"] or "").split(","):
                yield from _required(other.strip())
        else:
            yield requirement["name"], requirement["wanted"].strip()


def _installed(name: str) -> str | None:
    for distribution in (name, *INSTEAD.get(name, ())):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _fits(version: str, bounds: str) -> bool:
    """Return whether a version satisfies bounds such as `>=2.10`; other specifiers are not checked."""
    for bound in filter(None, bounds.split(",")):
        least = re.match(r"\s*(>=|==)\s*([\d.]+)", bound)
        if least is None:
            continue
        have, want = _numbers(version), _numbers(least[2])
        if have < want if least[1] == ">=" else have[: len(want)] != want:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _gateway(url: str, *, of_this_machine: bool) -> DoctorCheck:
    from segserve.calls.endpoint import GatewayEndpoint
    from segserve_common.errors import SegserveError

    unset = f"unset {URL_VARIABLE}"
    try:
        endpoint = GatewayEndpoint.parse(url)
    except SegserveError as error:
        return DoctorCheck(URL_VARIABLE, good=False, seen=repr(url), advice=str(error), fix=unset)
    parts = urlsplit(url if "//" in url else f"//{url}")
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    proxy = getproxies().get(parts.scheme or "http")
    if proxy and not endpoint.is_loopback and not proxy_bypass(host):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        where = f"{parts.hostname}:{parts.port or 80}"  # without the password
        answer = _connected(parts.hostname or "", parts.port or 80)
        if answer is None:
            return DoctorCheck("proxy", good=True, seen=f"requests to {host} go through {where}")
        advice = f"requests to {host} would use this proxy; hosts in NO_PROXY are reached directly"
        fix = f'export NO_PROXY="$NO_PROXY,{host}" no_proxy="$no_proxy,{host}"'
        return DoctorCheck("proxy", good=False, seen=f"{where}: {answer}", advice=advice, fix=fix)
    answer = _connected(host, port)
    if answer is None:
        return DoctorCheck(URL_VARIABLE, good=True, seen=f"{url} responds")
    if of_this_machine and endpoint.is_loopback and not _is_platform_up():
        return DoctorCheck(
            URL_VARIABLE, good=True, seen=f"{url}: nothing is up yet; `segserve up --port {port}` serves it"
        )
    advice = "nothing responds there; without the variable, commands find the platform's gateway themselves"
    return DoctorCheck(URL_VARIABLE, good=False, seen=f"{url}: {answer}", advice=advice, fix=unset)


def _is_platform_up() -> bool:
    try:
        return open_platform(Local()).runs()
    except (MissingExtraError, ModuleNotFoundError):
        return False  # the check of packages says so


def _connected(host: str, port: int) -> str | None:
    """Return why a connection to an address fails, or None if it succeeds."""
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


@with_platform_options
def doctor(
    platform_options: PlatformOptions,
    output: Annotated[
        Literal["table", "json", "yaml"], typer.Option("--output", "-o", help="Output format.")
    ] = "table",
) -> None:
    """Check what the platform needs (on this machine, or on a cluster including your permissions).

    Exit code 1 if a check fails; `fix` shows the command that fixes it.
    """
    checks = list(_checked(platform_options, live=output == "table"))
    if output != "table":
        document = [asdict(check) for check in checks]
        if output == "json":
            typer.echo(json.dumps(document, indent=2))
        else:
            import yaml

            typer.echo(yaml.safe_dump(document, sort_keys=False), nl=False)
    if not all(check.good for check in checks):
        raise typer.Exit(1)


def _checked(platform_options: PlatformOptions, *, live: bool) -> Iterator[DoctorCheck]:
    """Yield all checks, printing each at once if `live`."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for check in _checks(platform_options):
        if live:
            _show(console, check)
        yield check


def _checks(platform_options: PlatformOptions) -> Iterable[DoctorCheck]:
    extra = "local" if is_local(platform_options) else "cluster"
    yield _python()
    yield _packages(extra)
    url = os.environ.get(URL_VARIABLE)
    if url:
        yield _gateway(url, of_this_machine=extra == "local")
    try:
        yield from selected_platform(platform_options).checks()
    except MissingExtraError:
        return  # reported by the check of packages


def _show(console: Console, check: DoctorCheck) -> None:
    from rich.markup import escape

    sign = "[green]ok [/]" if check.good else "[red]bad[/]"
    console.print(f"{sign} {escape(check.what)}: {escape(check.seen)}")
    if check.good:
        return
    console.print(f"    {escape(check.advice)}")
    if check.fix:
        console.print(f"    fix: [bold]{escape(check.fix)}[/]")
