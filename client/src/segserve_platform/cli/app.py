"""The `segserve` command: its subcommands by name. The module of one is imported when it is used."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Annotated, Any, Final, Literal

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

COMPLETES: Final = "_SEGSERVE_COMPLETE"
"""Set by shells to request completions of a line."""

COMMANDS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "Start here": {
        "demo": ("demo:demo", "Serve three small networks that find the coins in a photograph, and show what they "
                 "find."),
        "init": ("init.command:init", "Write a first resource for an ONNX file, with comments to check."),
        "predict": ("predict:predict", "Segment images with a model and print the results."),
        "batch": ("batch:batch", "Segment images of any size, tile by tile."),
        "ui": ("page:ui", "Serve a web page on this machine: segment images, compare two models, follow models, "
               "rollouts and samples."),
        "annotate": ("annotate:annotate", "Serve models to Label Studio and CVAT: pre-labels of any model, and objects "
                     "under clicks of promptable ones."),
    },
    "Models": {
        "apply": ("resources:apply", "Create or change all models and pools in the files, or none if one is invalid."),
        "get": ("resources:get", "List models: readiness, stable and candidate revisions, rollout."),
        "describe": ("resources:describe", "Show a model: its state and what to do, roles, rollout, conditions, "
                     "events, on a cluster pods, and its spec."),
        "why": ("why:why", "List what changed about a model: edits, revisions, rollouts, events, restarts, and "
                "requests that failed."),
        "wait": ("resources:wait", "Wait until models serve their newest spec, or are deleted; exit code 1 on failure "
                 "or timeout."),
        "delete": ("resources:delete", "Delete models: their traffic ends first, then they are unloaded."),
        "rollout": ("rollout.commands:rollout", "Follow and control the rollout of a new revision."),
        "samples": ("samples:samples", "Look at samples of requests, and bring labels back (spec.capture)."),
    },
    "Local platform": {
        "up": ("lifecycle:up", "Start the local platform: Triton and Envoy as processes, listening on loopback."),
        "down": ("down:down", "Stop the local platform: its processes, shared memory and logs are removed."),
        "doctor": ("doctor:doctor", "Check what the platform needs on this machine, or on a cluster."),
        "logs": ("logs:logs", "Show the logs of this machine's gateway, servers and agents, each line with its "
                 "origin."),
        "runtime": ("building:runtime", "Manage the environment of Triton's Python steps."),
    },
    "Tools": {
        "export": ("exporting:export", "Export a torch network as ONNX with its normalisation in the graph, verify "
                   "it, and write its resource and golden set; or write the artifact of a resource file with a lower "
                   "precision, and a copy of the file that serves it."),
        "build": ("building:build", "Write the Triton model repository of models, for running Triton without "
                  "segserve."),
        "calibrate": ("calibrating:calibrate", "Fit the temperature of a model's stage `calibrate` on a labelled set; "
                      "the network runs in this process."),
        "eval": ("evaluating:eval_", "Evaluate a model on labelled images: mean IoU and Dice, AP and AR, or panoptic "
                 "quality."),
        "diff": ("comparing:diff", "Compare the answers of two models to the same images, without labels."),
        "crds": ("building:crds", "Print the custom resource definitions: `segserve crds | kubectl apply "
                 "--server-side -f -`."),
        "schema": ("schema:schema", "Print the JSON Schema of resource files, with which editors check and complete "
                   "them."),
        "openapi": ("openapi:openapi", "Print the OpenAPI 3.1 document of the models' plain HTTP: their paths, "
                    "options and answers."),
        "version": ("version:version", "Print the versions of segserve here and on the platform. Succeeds even if no "
                    "platform is up."),
        "completion": ("app:completion", "Print the shell script that completes commands, options and model names."),
        "golden": ("building:golden", "Manage golden sets: images with their expected answers."),
    },
}  # fmt: skip
"""The commands below each heading: where a command or group is defined, and the first paragraph of its help."""

OTHER_NAMES: Final = {
    "serve": "up",
    "start": "up",
    "run": "up",
    "stop": "down",
    "list": "get",
    "ls": "get",
    "ps": "get",
    "status": "get",
    "deploy": "apply",
    "create": "apply",
    "infer": "predict",
    "segment": "predict",
    "val": "eval",
    "rm": "delete",
}
"""Other tools' names of our commands."""


@dataclass(frozen=True, slots=True)
class _ValueReader:
    """Reads the value of a parameter: texts and defaults as they are, for which Typer's own reader imports pydantic."""

    typers: Callable[[], Any]

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        annotation = param.type_descriptor.annotation
        if value is param.default or (annotation is str and isinstance(value, str)):
            return value
        return list(value) if annotation == list[str] else self.typers().coerce(value, param=param, ctx=ctx)


class _ReadsValues:
    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for each in parameters:
            if hasattr(each, "get_runtime_param") and "get_runtime_param" not in vars(each):
                each.get_runtime_param = partial(_ValueReader, each.get_runtime_param)
        return parameters


class _Command(_ReadsValues, TyperCommand):
    pass


class _Group(_ReadsValues, TyperGroup):
    pass


@cache
def loaded(name: str) -> Any:
    """Import a command or group, and return it as Typer runs it."""
    from segserve_platform.cli.examples import epilog

    module, _, attribute = next(group[name][0] for group in COMMANDS.values() if name in group).partition(":")
    found = getattr(import_module(f"segserve_platform.cli.{module}"), attribute)
    parent = typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False)
    if isinstance(found, typer.Typer):
        for info in found.registered_commands:
            assert info.callback is not None, "the decorator sets it"
            info.epilog, info.cls = epilog(f"{name} {info.name or info.callback.__name__}"), _Command
        parent.add_typer(found, name=name, cls=_Group)
    else:
        parent.command(name, cls=_Command, epilog=epilog(name))(found)
    return typer.main.get_group(parent).commands[name]


class _ListedCommand(TyperCommand):
    """A command as lists show it; the arguments are read by the command itself."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return loaded(str(self.name)).make_context(info_name, args, parent, **extra)


class _Commands(_Group):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for panel, group in COMMANDS.items():
            for name, (_, text) in group.items():
                self.add_command(_ListedCommand(name, help=text, rich_help_panel=panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Answer the name that another tool has for a command with ours."""
        if args and args[0] in OTHER_NAMES and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}: it is `segserve {OTHER_NAMES[args[0]]}`.")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print what Typer prints; its own code for it imports a parser of Markdown and a highlighter of source."""
        from rich.console import Console
        from rich.padding import Padding
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        def panel(title: str) -> Table:
            table = Table(box=None, show_header=False, expand=True, pad_edge=False)
            panels.append(Panel(table, border_style="dim", title=title, title_align="left"))
            return table

        panels: list[Panel] = []
        options = panel("Options")
        for option in self.get_params(ctx):
            long, *short = sorted(option.opts, key=len, reverse=True)
            flag = Text.assemble(("<", "dim"), "bool", (">", "dim"), style="bold yellow")
            options.add_row(Text(long, "bold cyan"), Text(",".join(short), "bold green"), "", "", flag, option.help)
        options.columns[-1].ratio = 1
        for title, commands in COMMANDS.items():
            table = panel(title)
            table.add_column(style="bold cyan", no_wrap=True, width=max(map(len, self.commands)))
            table.add_column(ratio=10)
            for name, (_, help_text) in commands.items():
                styles = itertools.cycle(("", "markdown.code"))
                table.add_row(name, Text.assemble(*zip(help_text.split("`"), styles, strict=False)))
        console, usage = Console(highlight=False), Text(self.get_usage(ctx))
        usage.highlight_words(["Usage: "], "yellow")
        console.print(Padding(usage, 1), style="bold")
        console.print(Padding(str(self.help), (0, 1, 1, 1)))
        console.print(*panels, sep="")


app = typer.Typer(
    name="segserve",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    add_completion=False,  # `segserve completion` prints the script without changing files
    context_settings={"help_option_names": ["--help", "-h"]},
)


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Shell to complete in.", show_default=False)],
) -> None:
    """Print the shell script that completes commands, options and model names.

    To install it permanently: `segserve completion bash > ~/.local/share/bash-completion/completions/segserve`,
    `segserve completion zsh > "${fpath[1]}/_segserve"`, `segserve completion fish >
    ~/.config/fish/completions/segserve.fish`.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="segserve", complete_var=COMPLETES, shell=shell))


def _print_version(requested: bool) -> None:
    if requested:
        from importlib import metadata

        typer.echo(f"segserve {metadata.version('segserve')}")
        raise typer.Exit


@app.callback()
def segserve(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve image segmentation on NVIDIA Triton: one resource file in, masks out."""


def main() -> None:
    """Run the command line; a user error prints one line and exits with code 1, without a traceback."""
    # httpx imports a command line of its own where rich is installed, which takes longer than the rest of it.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    if COMPLETES in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from segserve_platform.cli.errors import plain, user_errors, wrapped

        if not isinstance(error, user_errors()):
            raise
        typer.echo(wrapped(plain(f"error: {error}")), err=True)
        sys.exit(1)
