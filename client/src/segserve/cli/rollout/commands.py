"""The commands of `segserve rollout`: what each is called, takes and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml
from rich.console import Console

from segserve.cli.completion import model_names
from segserve.cli.failures import needs
from segserve.cli.platform_options import Where, platform, somewhere
from segserve.cli.resources import Format, seconds, wide_enough
from segserve.cli.rollout.bundle import bundle

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segserve_operator.core.rollout.record import Record

NOT_LIVE: Final = (Format.JSON, Format.YAML)

rollout = typer.Typer(
    help="How a new revision comes to serve: what decides it, and your word in it.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The model's name.", autocompletion=model_names)]
Files = Annotated[
    list[Path], typer.Option("--filename", "-f", help="Resource file, - for standard input; may be given again.")
]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print.")]
Timeout = Annotated[str, typer.Option(help="How long to wait for an answer: 10s; 0s does not wait.")]


@rollout.command()
@somewhere
def status(
    where: Where,
    name: Name,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep it up to date until the rollout ends.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show a model's rollout: both revisions, the evidence of each gate, what it waits for.

    Exit code 1 where it ended without its revision in service.
    """
    if watch and output in NOT_LIVE:
        raise typer.BadParameter(f"-w shows a live view; with it -o is table or wide, not {output}")
    with needs("local"):
        from segserve.cli.rollout.status import current, document, follow, once
    console, here, wide = Console(), platform(where), output is Format.WIDE
    if watch:
        found = follow(console, here, name, wide=wide)
    else:
        found = current(here, name)
        if output in NOT_LIVE:
            _print_document(document(found), output)
        else:
            _print(console, once(found, wide=wide))
    raise typer.Exit(1 if found.failed else 0)


@rollout.command("list")
@somewhere
def list_(
    where: Where,
    name: Annotated[str | None, typer.Argument(help="One model's; all without it.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the rollouts that there were, newest first; -o yaml prints their records."""
    with needs("local"):
        from segserve.cli.rollout.history import rollouts, rollouts_table
    found, console = rollouts(platform(where), name), Console()
    if output is Format.YAML:
        typer.echo(yaml.safe_dump_all([manifest for manifest, _ in found], sort_keys=False), nl=False)
    elif output is Format.JSON:
        typer.echo(json.dumps([manifest for manifest, _ in found], indent=2))
    elif not found:
        console.print("no rollouts; the next change of a model with `spec.rollout` begins one")
    else:
        _print(console, rollouts_table([record for _, record in found], wide=output is Format.WIDE))


@rollout.command()
def plan(
    files: Files,
    rps: Annotated[float, typer.Option(min=0.001, help="Requests a second to the model, of all callers.")] = 10.0,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long callers ask so often.")] = 10.0,
) -> None:
    """Say what a rollout by these files could see, and how soon, before anything is applied."""
    with needs("local"):
        from segserve.cli.rollout.power import previews
    for text in previews(files, rps, minutes):
        typer.echo(text)


@rollout.command()
@somewhere
def replay(
    where: Where,
    source: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A model, a rollout, or a record's .yaml or .json file.")
    ],
    policy: Annotated[
        Path | None, typer.Option("--with", metavar="FILE", help="Say what this policy would have done instead.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Make each decision again from what it saw; exit code 1 where one comes out otherwise.

    With another policy: what that would have done, of the looks as they were kept (of 1, 15 and 60 seconds).
    """
    with needs("local"):
        from segserve.cli.rollout import replaying
    if replaying.is_file(source):
        record = replaying.record_from_file(Path(source))
    else:
        record = replaying.record_of_name(platform(where), source)
    if policy is not None:
        _what_if(record, policy, output)
    else:
        _replay(record, output)


def _replay(record: Record, output: Format) -> None:
    from segserve.cli.rollout.replaying import differences, made_again, replayed_document, replayed_table, summary

    again = made_again(record)
    if output in NOT_LIVE:
        _print_document(replayed_document(record, again), output)
    else:
        _print(Console(), replayed_table(record, again))
        for text in (*differences(again), summary(record, again)):
            typer.echo(text)
    raise typer.Exit(0 if all(each.same for each in again) else 1)


def _what_if(record: Record, policy: Path, output: Format) -> None:
    from segserve.cli.rollout.replaying import policy_from_file, what_if_document, what_if_table
    from segserve_operator.core.rollout.replay import what_if

    other = what_if(record, policy_from_file(policy))
    if output in NOT_LIVE:
        _print_document(what_if_document(record, other), output)
    elif not other:
        typer.echo(f"{record.name}: by {policy} nothing would have been decided on the requests that were counted")
    else:
        _print(Console(), what_if_table(record, other))


def _print(console: Console, shown: RenderableType) -> None:
    wide_enough(console, shown).print(shown)


def _print_document(found: dict[str, Any], output: Format) -> None:
    typer.echo(json.dumps(found, indent=2) if output is Format.JSON else yaml.safe_dump(found, sort_keys=False))


rollout.command()(bundle)


@rollout.command()
@somewhere
def promote(where: Where, name: Name, timeout: Timeout = "10s") -> None:
    """Promote the candidate now, whatever the gates still wait for."""
    _ask(where, name, "promote", timeout)


@rollout.command()
@somewhere
def abort(where: Where, name: Name, timeout: Timeout = "10s") -> None:
    """End the rollout: the candidate gets no requests from now on."""
    _ask(where, name, "abort", timeout)


@rollout.command()
@somewhere
def pause(where: Where, name: Name, timeout: Timeout = "10s") -> None:
    """Keep the weight where it is; a breach still rolls back."""
    _ask(where, name, "pause", timeout)


@rollout.command()
@somewhere
def resume(where: Where, name: Name, timeout: Timeout = "10s") -> None:
    """Go on after a pause, or after a step that waits for a person's word."""
    _ask(where, name, "resume", timeout)


@rollout.command()
@somewhere
def retry(where: Where, name: Name, timeout: Timeout = "10s") -> None:
    """Try the revision that failed once more, from the beginning."""
    _ask(where, name, "retry", timeout)


@rollout.command()
@somewhere
def rollback(where: Where, name: Name, timeout: Timeout = "10s") -> None:
    """Leave the stable revision for the one before it, which is still loaded."""
    _ask(where, name, "rollback", timeout)


@rollout.command("skip-gate")
@somewhere
def skip_gate(
    where: Where,
    gate: Annotated[str, typer.Argument(help="The gate's name, as `status` shows it.")],
    name: Name,
    timeout: Timeout = "10s",
) -> None:
    """Put a gate aside for this rollout: it neither holds the candidate nor rolls it back."""
    _ask(where, name, "skip-gate", timeout, gate=gate)


def _ask(where: Where, name: str, verb: str, timeout: str, *, gate: str = "") -> None:
    with needs("local"):
        from segserve.platforms.rollouts.actions import ask
    typer.echo(ask(platform(where), name, verb, gate=gate, timeout_s=seconds(timeout)))
