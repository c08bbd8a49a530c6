"""`segserve schema`: the JSON Schema of resource files, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from segserve_platform.cli.errors import CommandError

SCHEMA_FILE: Final = Path(".segserve") / "schema.json"
"""Beside the resource, and named by a relative path: the file and its modeline travel with the repository."""


def schema(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Output file, made with its folder. Default: standard output."
        ),
    ] = None,
) -> None:
    """Print the JSON Schema of resource files, with which editors check and complete them.

    Each document of a file names it in a comment before its first field: `# yaml-language-server: $schema=FILE`, with
    the path relative to the resource file. `segserve init` writes both.
    """
    if output is None:
        typer.echo(schema_text(), nl=False)
        return
    if not output.name or output.is_dir():
        raise CommandError(f"-o names a file, got the folder {str(output)!r}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(schema_text())
    typer.echo(f"{output} written; name it in each document: {_modeline(output)}", err=True)


def schema_text() -> str:
    """Return the JSON Schema as the text of a file."""
    from segserve_operator.api.crd import json_schema

    return json.dumps(json_schema(), indent=1) + "\n"


def modeline(folder: Path) -> str:
    """Return the comment that names the schema for resource files in `folder`, and write the schema there.

    A schema of another version of segserve is replaced.
    """
    path, text = folder / SCHEMA_FILE, schema_text()
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return _modeline(SCHEMA_FILE)


def _modeline(path: Path) -> str:
    return f"# yaml-language-server: $schema={path.as_posix()}"
