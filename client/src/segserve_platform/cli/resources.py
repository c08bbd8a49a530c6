"""`segserve apply`, `delete`, `get`, `describe` and `wait`: resources on this machine or on a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
import yaml
from rich.console import Console, RenderableType
from rich.live import Live

from segserve_platform.cli.errors import CommandError, plain
from segserve_platform.cli.installation import install_engines
from segserve_platform.cli.models_view import event_lines, latest_record, model_text, models_table
from segserve_platform.cli.options import (
    PlatformOptions,
    model_names,
    seconds,
    selected_platform,
    with_platform_options,
)
from segserve_platform.cli.terminal import activity, print_whole, wide_enough
from segserve_platform.platforms.local import LocalPlatform
from segserve_platform.platforms.manifests import (
    STDIN,
    check_kinds,
    read_files,
    revision_of,
    stored_models,
    stored_pipeline,
)
from segserve_platform.platforms.port import MODEL, POOL, Change, Json, ParsedResource, Platform, user_fields
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.waiting import Gone, readiness, wait_for, wait_serving

REFRESH_S: Final = 0.25
NO_PLATFORM: Final = "no platform is up on this machine: start it with `segserve up`"
UNATTENDED: Final = "the platform's supervisor has ended, and servers and gateway go on: `segserve up` takes them over"

FILES: Final = "Resource file, folder of such files, or - for standard input; may be repeated."
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Include the subfolders of folders.")]
Name = Annotated[str, typer.Argument(help="Model name.", autocompletion=model_names)]
MAX_VALUE_LENGTH: Final = 100


def change_lines(
    resource: ParsedResource, change: Change, before: Mapping[str, Json], after: Mapping[str, Json]
) -> Iterator[str]:
    """Yield the outcome of a dry run, and below it each field that would change.

    `before` and `after` are all models of the platform, by name, as they are and as they would be.
    """
    yield f"{resource.title} {change.outcome} (dry run){change.later}{_revision_text(resource, change, before, after)}"
    if change.before is not None:
        yield from (f"  {line}" for line in differences("", user_fields(change.before), user_fields(change.after)))


def follower_lines(before: Mapping[str, Json], after: Mapping[str, Json], applied: Collection[str]) -> Iterator[str]:
    """Yield a line for each model that is not `applied`, and whose revision changes with a model that it names."""
    for name, manifest in before.items():
        former, following = revision_of(manifest, before), revision_of(manifest, after)
        if name not in applied and former != following:
            yield f"segmentationmodel/{name} follows (dry run): new revision {following or 'none'}, now {former}"


def differences(path: str, before: Any, after: Any) -> Iterator[str]:
    """Yield a line for each field that differs: `~` changed, `+` added, `-` removed.

    Items of lists are matched by their content, so that one that is inserted is one line.
    """
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            place = f"{path}.{key}" if path else key
            if key not in after:
                yield f"- {place}: {_short(before[key])}"
            elif key not in before:
                yield f"+ {place}: {_short(after[key])}"
            else:
                yield from differences(place, before[key], after[key])
    elif isinstance(before, list) and isinstance(after, list):
        matcher = SequenceMatcher(None, [*map(_key, before)], [*map(_key, after)], autojunk=False)
        for kind, first, end, new_first, new_end in matcher.get_opcodes():
            if kind == "replace" and end - first == new_end - new_first:
                for number in range(end - first):
                    yield from differences(
                        f"{path}[{new_first + number}]", before[first + number], after[new_first + number]
                    )
            elif kind != "equal":
                yield from (f"- {path}[{index}]: {_short(before[index])}" for index in range(first, end))
                yield from (f"+ {path}[{index}]: {_short(after[index])}" for index in range(new_first, new_end))
    else:
        yield f"~ {path}: {_short(before)} -> {_short(after)}"


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}..."


def _revision_text(
    resource: ParsedResource, change: Change, before: Mapping[str, Json], after: Mapping[str, Json]
) -> str:
    """Return whether a model's answers could change: it would get a new revision, which is proved and rolled out."""
    if resource.resource.kind != MODEL:
        return ""
    former, next_one = revision_of(change.before, before), revision_of(change.after, after)
    if not next_one or (change.outcome == "unchanged" and next_one == former):
        return ""
    if not former:
        return f": revision {next_one}"
    present = Present.of(before.get(resource.resource.metadata.name) or change.before or {})
    role, stays = present.role_of(next_one), "stays " if next_one == former else ""
    kept = {"stable": ", which serves", "previous": ", which is kept loaded: it serves again at once"}
    if stays or role in kept:
        return f": {stays}revision {next_one}{kept.get(role, '')}"
    refused = class_refusal(change, before, after) if present.revisions.get("stable") == former else ""
    return f": new revision {next_one}, now {former}{refused}"


def class_refusal(change: Change, before: Mapping[str, Json], after: Mapping[str, Json]) -> str:
    """Return that a change of a model that serves would be refused for its classes; empty if it would not."""
    if change.before is None or change.after["spec"].get("allowClassChanges"):
        return ""
    from segserve_operator.core.models.roles import CLASSES_CHANGED, class_changes

    former, following = stored_pipeline(change.before, before), stored_pipeline(change.after, after)
    changes = class_changes(former.classes, following.classes)
    advice = "spec.allowClassChanges: true allows it"
    return f", refused ({CLASSES_CHANGED}): {'; '.join(changes)}; {advice}" if changes else ""


class OutputFormat(StrEnum):
    """The output formats of `get` and `rollout`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


@with_platform_options
def apply(
    platform_options: PlatformOptions,
    files: Annotated[list[Path], typer.Option("--filename", "-f", help=FILES)],
    recursive: Recursive = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate everything and print what would change; change nothing.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="On this machine: folder of relative addresses from standard input. Default: the current folder.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force-conflicts", help="On a cluster: take over fields that are owned by other tools.")
    ] = False,
) -> None:
    """Create or change all models and pools in the files, or none if one is invalid.

    On this machine, a relative artifact address is relative to its file; on a cluster, to the pool's artifact base.
    """
    resources = read_files(files, recursive=recursive, base=base)
    check_kinds(resources)
    platform = selected_platform(platform_options)
    if isinstance(platform, LocalPlatform):
        check_local_files(resources, base)
    warnings = annotation_warnings(platform, resources)
    if dry_run:
        changes = platform.preview(resources, force=force)
        stored = stored_models(platform)
        applied = stored | {
            written.resource.metadata.name: change.after
            for written, change in zip(resources, changes, strict=True)
            if written.resource.kind == MODEL
        }
        for written, change in zip(resources, changes, strict=True):
            for line in change_lines(written, change, stored, applied):
                typer.echo(line)
        named = [written.resource.metadata.name for written in resources if written.resource.kind == MODEL]
        for line in follower_lines(stored, applied, named):
            typer.echo(line)
    else:
        if isinstance(platform, LocalPlatform):
            install_engines(each.value for each in resources if each.resource.kind == MODEL)
        for written, outcome in zip(resources, platform.apply(resources, force=force), strict=True):
            typer.echo(f"{written.title} {outcome}")
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if not dry_run and not platform.runs():
        typer.echo(f"stored, but {NO_PLATFORM}", err=True)


def annotation_warnings(platform: Platform, resources: Iterable[ParsedResource]) -> list[str]:
    """Return why the platform would ignore annotations of models that request an action on a rollout."""
    resources = list(resources)
    annotated = [written for written in resources if written.resource.metadata.annotations]
    if not annotated:
        return []
    # This imports the engine of rollouts.
    from segserve_platform.platforms.rollouts.actions import ignored_annotations

    applied = stored_models(platform)
    applied |= {each.resource.metadata.name: each.complete() for each in resources if each.resource.kind == MODEL}
    return [f"{each.title}: {reason}" for each in annotated for reason in ignored_annotations(platform, each, applied)]


def check_local_files(resources: Iterable[ParsedResource], base: Path | None = None) -> None:
    """Warn about files of this machine that resources name and that do not exist or differ from the cached one.

    Raises `CommandError` for a file of another digest if the right one is not cached, and for a relative address from
    standard input that leads nowhere: it was meant to be relative to another folder.
    """
    from segserve_builder.sources.cache import folder_path, object_path
    from segserve_operator.adapters.local.files import cache_folder

    for written in resources:
        for named in written.local_files():
            is_cached = any(path(cache_folder(), named.sha256).exists() for path in (object_path, folder_path))
            if named.path.exists():
                if not (other := named.other_digest):
                    continue
                differs = f"{written.title}: {named.field}.sha256 is {named.sha256}, but {named.path} has {other}"
                if not is_cached:
                    raise CommandError(f"{differs}; if the file is the intended one, correct sha256")
                typer.echo(f"warning: {differs}; the copy of {named.sha256[:12]} in the cache is used", err=True)
                continue
            missing = f"{written.title}: {named.field}.uri: {named.path} does not exist"
            if named.is_relative and written.source == STDIN:
                raise CommandError(
                    f"{missing}; relative addresses from standard input are relative to "
                    f"{'--base' if base is not None else 'the current folder: set another one with --base FOLDER'}"
                )
            then = (
                "the copy in the cache is used as long as it is kept"
                if is_cached
                else "the model cannot be served until it does"
            )
            typer.echo(f"warning: {missing}; {then}", err=True)


@with_platform_options
def delete(
    platform_options: PlatformOptions,
    names: Annotated[list[str] | None, typer.Argument(help="Models to delete.", autocompletion=model_names)] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--filename", "-f", help="Delete the resources in this file or folder; may be repeated."),
    ] = None,
    recursive: Recursive = False,
    wait: Annotated[bool, typer.Option(help="Wait until the models are deleted.")] = True,
    timeout: Annotated[str, typer.Option(help="Timeout, such as 90s or 2m; a plain number is in seconds.")] = "60s",
) -> None:
    """Delete models: their traffic ends first, then they are unloaded."""
    platform = selected_platform(platform_options)
    written = read_files(files or [], recursive=recursive)
    platform.check_namespace(written)
    chosen = [(MODEL, name) for name in names or []]
    chosen += [(each.resource.kind, each.resource.metadata.name) for each in written]
    if not chosen:
        raise CommandError("pass the names of models to delete, or their files with -f")
    deadline_s = time.monotonic() + seconds(timeout)
    # Pools last: their models need them until they are unloaded.
    chosen = sorted(dict.fromkeys(chosen), key=lambda each: each[0] == POOL)
    going = []
    for kind, name in chosen:
        outcome = platform.delete(kind, name)
        going += [(kind, name)] if outcome == "deleted" else []
        typer.echo(f"{kind.lower()}/{name} {outcome}")
    if wait and platform.runs():
        for kind, name in going:
            wait_for(platform, Gone(kind, name), deadline_s, timeout)


@with_platform_options
def get(
    platform_options: PlatformOptions,
    name: Annotated[
        str | None, typer.Argument(help="Model name. Default: all models.", autocompletion=model_names)
    ] = None,
    output: Annotated[OutputFormat, typer.Option("--output", "-o", help="Output format.")] = OutputFormat.TABLE,
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Update the view continuously."),
    ] = False,
) -> None:
    """List models: readiness, stable and candidate revisions, rollout."""
    wide = output is OutputFormat.WIDE
    if watch and output not in (OutputFormat.TABLE, OutputFormat.WIDE):
        raise typer.BadParameter(f"-w supports only -o table and -o wide, got {output}")
    platform = selected_platform(platform_options)
    if watch:
        console = Console()
        _show(console, frames(platform, name, wide=wide, height=console.height if console.is_terminal else None))
    else:
        manifests, is_up = _models(platform, name), platform.runs()
        unattended = isinstance(platform, LocalPlatform) and platform.is_unattended()
        as_stored = is_up or unattended or output in (OutputFormat.JSON, OutputFormat.YAML)
        _print(Console(), manifests if as_stored else [*map(_stopped, manifests)], output, one=name is not None)
        if manifests and not is_up:
            typer.echo(UNATTENDED if unattended else NO_PLATFORM, err=True)


def _models(platform: Platform, name: str | None) -> list[Json]:
    return platform.models() if name is None else [platform.model(name)]


def _stopped(manifest: Json) -> Json:
    """Return a model as a platform that is not up has it: its status is from before, and its URL does not answer."""
    status = manifest.get("status") or {}
    ready = {"type": "Ready", "status": "Stopped", "reason": "NoPlatform", "message": NO_PLATFORM}
    kept = {"roles": status.get("roles", {}), "observedGeneration": manifest["metadata"]["generation"]}
    return {**manifest, "status": {**kept, "conditions": [ready]}}


def _show(console: Console, frames: Iterator[RenderableType]) -> None:
    """Show frames as they come, at most four per second; without a terminal, print each that differs."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for picture in frames:
                live.update(picture, refresh=True)
                time.sleep(REFRESH_S)
        return
    last = ""
    for picture in frames:
        wide = wide_enough(console, picture)
        with wide.capture() as captured:
            wide.print(picture)
        text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
        if text != last:
            typer.echo(("\n" if last else "") + text, nl=False)
            last = text
        time.sleep(REFRESH_S)


def _print(console: Console, manifests: list[dict[str, Any]], output: OutputFormat, *, one: bool) -> None:
    match output:
        case OutputFormat.JSON:
            typer.echo(json.dumps(manifests[0] if one else manifests, indent=2))
        case OutputFormat.YAML:
            typer.echo(yaml.safe_dump_all(manifests, sort_keys=False), nl=False)
        case _ if not manifests:
            console.print("no models; add one with `segserve apply -f model.yaml`")
        case _:
            table = models_table(manifests, wide=output is OutputFormat.WIDE)
            if console.is_terminal and output is OutputFormat.TABLE:
                console.print(table)
            else:
                print_whole(console, table)
            for manifest in manifests if output is OutputFormat.TABLE else ():
                if (state := readiness(manifest)).failed:
                    typer.echo(plain(f"{manifest['metadata']['name']}: {state.problem}"))


@with_platform_options
def describe(platform_options: PlatformOptions, name: Name) -> None:
    """Show a model: its state and what to do, roles, rollout, conditions, events, on a cluster pods, and its spec."""
    platform = selected_platform(platform_options)
    typer.echo(model_description(platform, name))
    if not platform.runs():
        typer.echo(NO_PLATFORM, err=True)


@with_platform_options
def wait(
    platform_options: PlatformOptions,
    names: Annotated[list[str], typer.Argument(help="Models to wait for.", autocompletion=model_names)],
    target: Annotated[
        Literal["Ready", "delete"],
        typer.Option("--for", help="Ready: the newest spec serves. delete: the model is deleted."),
    ] = "Ready",
    timeout: Annotated[str, typer.Option(help="Timeout, such as 90s or 2m; a plain number is in seconds.")] = "120s",
) -> None:
    """Wait until models serve their newest spec, or are deleted; exit code 1 on failure or timeout."""
    platform, deadline_s = selected_platform(platform_options), time.monotonic() + seconds(timeout)
    if not platform.runs():
        waiting = [name for name in names if platform.find(MODEL, name) or target == "Ready"]
        for name in waiting:
            platform.model(name)  # an unknown model is the nearer cause
        if waiting:
            raise CommandError(f"{NO_PLATFORM}; nothing would change {', '.join(waiting)}")
    with activity(f"waiting for {', '.join(names)}") as shown:
        for name in names:
            if target == "delete":
                wait_for(platform, Gone(MODEL, name), deadline_s, timeout)
            else:
                shown.line(f"{name}: {wait_serving(platform, name, deadline_s, timeout)}")


def frames(platform: Platform, name: str | None, *, wide: bool, height: int | None) -> Iterator[RenderableType]:
    """Yield the live view of `get -w`, of one model or all, now and after changes; `height` is the terminal's."""
    while True:
        manifests = _models(platform, name)
        shown = manifests if platform.runs() else map(_stopped, manifests)
        yield models_table(shown, wide=wide, height=height)


def model_description(platform: Platform, name: str) -> str:
    """Return the details of a model as text."""
    model = platform.model(name)
    record = latest_record(platform, model)
    if isinstance(platform, LocalPlatform):
        return model_text(model, record, event_lines(f"model {name}", lambda: platform.events(name)))
    from segserve_platform.cli.cluster.describe import describe_on_cluster
    from segserve_platform.platforms.cluster.platform import ClusterPlatform

    assert isinstance(platform, ClusterPlatform), "there are only two kinds of platform"
    return describe_on_cluster(platform, model, record)
