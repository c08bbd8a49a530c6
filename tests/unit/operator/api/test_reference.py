"""The reference in the docs is what the types say."""

from __future__ import annotations

from pathlib import Path

import pytest

from segserve_builder.stages import POSTPROCESS, PREPROCESS
from segserve_operator.api.reference import reference

pytestmark = pytest.mark.same

DOCS = Path(__file__).parents[4] / "docs"


def test_the_committed_reference_is_what_make_crds_writes() -> None:
    assert (DOCS / "resource.md").read_text() == reference()


def test_every_stage_is_in_the_reference() -> None:
    for lists, stages in (("preprocess", PREPROCESS), ("postprocess", POSTPROCESS)):
        for name in stages:
            assert f"`{lists}[].{name}`" in reference()
