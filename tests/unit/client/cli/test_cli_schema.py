"""The JSON Schema of resource files as editors get it: from the command, and beside what `init` writes."""

from __future__ import annotations

import json
from pathlib import Path

from segserve_operator.api.crd import json_schema
from segserve_platform.cli.schema import modeline, schema_text

from .conftest import Command


def test_the_schema_is_printed_or_written_with_the_line_that_names_it(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "editor/schema.json"

    printed = command("schema")
    written = command("schema", "-o", path)

    assert (printed[0], json.loads(printed[1]), printed[2]) == (0, json_schema(), "")
    assert json.loads(path.read_text()) == json_schema()
    assert written[:2] == (0, "")
    assert f"# yaml-language-server: $schema={path}" in written[2]


def test_a_folder_is_no_file_for_the_schema(command: Command, tmp_path: Path) -> None:
    assert command("schema", "-o", tmp_path) == (1, "", f"error: -o names a file, got the folder {str(tmp_path)!r}\n")


def test_the_modeline_names_a_schema_beside_the_resource_so_that_both_can_be_committed(tmp_path: Path) -> None:
    line = modeline(tmp_path)

    path = line.removeprefix("# yaml-language-server: $schema=")
    assert not Path(path).is_absolute()
    assert json.loads((tmp_path / path).read_text()) == json_schema()


def test_a_schema_of_another_version_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".segserve").mkdir()
    (tmp_path / ".segserve/schema.json").write_text("{}")

    modeline(tmp_path)

    assert (tmp_path / ".segserve/schema.json").read_text() == schema_text()
