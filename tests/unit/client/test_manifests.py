"""Resources as users write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segserve_operator.api import documents
from segserve_platform.platforms.manifests import read, read_file

COINS = Path(__file__).parents[3] / "examples/coins/model.yaml"


def test_a_file_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing is most of what reading a large file costs."""
    parsed: list[str] = []

    class Loader(documents._Loader):
        def __init__(self, stream: Any) -> None:
            parsed.append(stream)
            super().__init__(stream)

    monkeypatch.setattr(documents, "_Loader", Loader)

    assert len(read_file(COINS)) == 3
    assert parsed == [COINS.read_text()]


def test_a_resource_is_kept_as_it_was_written_beside_what_it_means() -> None:
    text = "---\n" + COINS.read_text()  # an empty document in front: the two go by order, not by number

    for written in read(text):
        assert written.value["metadata"]["name"] == written.resource.metadata.name
        assert written.value["kind"] == written.resource.kind
        assert "keepPrevious" not in written.value["spec"]
