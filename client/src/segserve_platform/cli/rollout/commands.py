"""The commands of `segserve rollout`: names, arguments and output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml
from rich.console import Console, RenderableType

from segserve_platform.cli.errors import needs
from segserve_platform.cli.options import (
    PlatformOptions,
    model_names,
    seconds,
    selected_platform,
    with_platform_options,
)
from segserve_platform.cli.resources import OutputFormat
from segserve_platform.cli.terminal import print_whole

NOT_LIVE: Final = (OutputFormat.JSON, OutputFormat.YAML)

rollout = typer.Typer(help="Follow and control the rollout of a new revision.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Model name.", autocompletion=model_names)]
Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Output format.")]
Timeout = Annotated[str, typer.Option(help="Timeout for the outcome, such as 10s; 0s does not wait.")]


@rollout.command()
@with_platform_options
def status(
    platform_options: PlatformOptions,
    name: Name,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Update the view continuously until the rollout ends.")
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show a model's rollout: how it goes and how long it takes, both revisions, the steps, and what each gate says.

    With -o wide also the statistics: the evidence of each gate, and all decisions. Exit code 1 if it ended without its
    revision in service; of a rollout that only judges, 0 for judged well, 1 for worse and 4 for undecided.
    """
    if watch and output in NOT_LIVE:
        raise typer.BadParameter(f"-w supports only -o table and -o wide, got {output}")
    with needs("local"):
        from segserve_platform.cli.rollout.status import current, follow, picture
        from segserve_platform.platforms.rollouts.documents import document
    console, platform, wide = Console(), selected_platform(platform_options), output is OutputFormat.WIDE
    if watch:
        view = follow(console, platform, name, wide=wide)
    else:
        view = current(platform, name)
        if output in NOT_LIVE:
            _print_document(document(view), output)
        else:
            shown = picture(view, name, wide=wide)
            # A person reads lines that are folded between words; a file or a program gets whole ones.
            if console.is_terminal:
                console.print(shown)
            else:
                print_whole(console, shown)
    raise typer.Exit(view.exit_code)


@rollout.command("list")
@with_platform_options
def list_(
    platform_options: PlatformOptions,
    name: Annotated[str | None, typer.Argument(help="Model name. Default: all models.")] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List rollouts, newest first; -o yaml prints their records."""
    with needs("local"):
        from segserve_platform.cli.rollout.records import rollouts, rollouts_table
    platform, console = selected_platform(platform_options), Console()
    listed = rollouts(platform, name)
    if output is OutputFormat.YAML:
        typer.echo(yaml.safe_dump_all([manifest for manifest, _ in listed], sort_keys=False), nl=False)
    elif output is OutputFormat.JSON:
        typer.echo(json.dumps([manifest for manifest, _ in listed], indent=2))
    elif not listed:
        console.print("no rollouts; the next change of a model with `spec.rollout` starts one")
    else:
        found, wide = [record for _, record in listed], output is OutputFormat.WIDE
        _print(console, rollouts_table(found, platform.models(), wide=wide))


@rollout.command()
@with_platform_options
def replay(
    platform_options: PlatformOptions,
    source: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="Model, rollout, or .yaml or .json file of a record.")
    ],
    policy: Annotated[
        Path | None, typer.Option("--with", metavar="FILE", help="Show what this policy would have done instead.")
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Derive each decision again from its recorded evidence; exit code 1 if one differs.

    With another policy, show what that policy would have done with the recorded windows (of 1, 15 and 60 seconds).
    """
    with needs("local"):
        from segserve_platform.cli.rollout import records
    if records.is_file(source):
        record = records.record_from_file(Path(source))
    else:
        record = records.record_of_name(selected_platform(platform_options), source)
    if policy is not None:
        from segserve_operator.core.rollout.replay import what_if
        from segserve_platform.cli.rollout.records import policy_from_file, what_if_document, what_if_table

        other = what_if(record, policy_from_file(policy))
        if output in NOT_LIVE:
            _print_document(what_if_document(record, other), output)
        elif not other:
            typer.echo(f"{record.name}: {policy} would have decided nothing on the counted requests")
        else:
            _print(Console(), what_if_table(record, other))
    else:
        from segserve_platform.cli.rollout.records import (
            differences,
            replay_decisions,
            replayed_document,
            replayed_table,
            summary,
        )

        again = replay_decisions(record)
        if output in NOT_LIVE:
            _print_document(replayed_document(record, again), output)
        else:
            _print(Console(), replayed_table(record, again))
            for text in (*differences(again), summary(record, again)):
                typer.echo(text)
        raise typer.Exit(0 if all(each.same for each in again) else 1)


def _print(console: Console, shown: RenderableType) -> None:
    print_whole(console, shown)


def _print_document(content: dict[str, Any], output: OutputFormat) -> None:
    typer.echo(
        json.dumps(content, indent=2) if output is OutputFormat.JSON else yaml.safe_dump(content, sort_keys=False)
    )


@rollout.command()
@with_platform_options
def sheet(
    platform_options: PlatformOptions,
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write. Default: NAME-sheet.")
    ] = None,
) -> None:
    """Draw the images on which candidate and stable differ most: image, stable, candidate, difference, and figures.

    While the rollout is in Shadow, and for an hour after; pictures and a page, index.html, are written. Callers' images
    are in the memory of the gateways alone. From a cluster it takes the right to forward ports to their pods.
    """
    with needs("local"):
        from segserve_platform.cli.picture_pages import PAGE, write_sheet
        from segserve_platform.evaluation.sheets import fetch_sheet
    content, classes = fetch_sheet(selected_platform(platform_options), name)
    folder = output or Path(f"{name}-sheet")
    for line in write_sheet(content, classes, folder):
        typer.echo(line)
    typer.echo(f"{folder / PAGE}: {len(content.pairs)} of {content.compared:,} pairs")


def _action(verb: str) -> Callable[..., None]:
    @with_platform_options
    def act(platform_options: PlatformOptions, name: Name, timeout: Timeout = "10s") -> None:
        _ask(platform_options, name, verb, timeout)

    return act


for _verb, _help in {
    "promote": "Promote the candidate now, regardless of its gates; roll out one that was only judged.",
    "abort": "End the rollout: the candidate gets no more requests.",
    "pause": "Keep the current weight; a breach still rolls back.",
    "resume": "Continue after a pause, or after a step that needs approval.",
    "retry": "Roll out the failed revision again from the start.",
    "rollback": "Return from the stable revision to the previous one, which is still loaded.",
}.items():
    rollout.command(_verb, help=_help)(_action(_verb))


@rollout.command("skip-gate")
@with_platform_options
def skip_gate(
    platform_options: PlatformOptions,
    gate: Annotated[str, typer.Argument(help="Gate name, as shown by `status`.")],
    name: Name,
    timeout: Timeout = "10s",
) -> None:
    """Ignore a gate for this rollout: it neither blocks the candidate nor rolls it back."""
    _ask(platform_options, name, "skip-gate", timeout, gate=gate)


def _ask(platform_options: PlatformOptions, name: str, verb: str, timeout: str, *, gate: str = "") -> None:
    with needs("local"):
        from segserve_platform.platforms.rollouts.actions import run_action
    typer.echo(run_action(selected_platform(platform_options), name, verb, gate=gate, timeout_s=seconds(timeout)))
