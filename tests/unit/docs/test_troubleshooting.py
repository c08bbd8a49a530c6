"""The troubleshooting page names every reason and every error that a user can meet."""

from __future__ import annotations

import pytest

import segserve
from fakes.docs import ROOT
from segserve_builder import errors
from segserve_common.errors import SegserveError
from segserve_operator.core.models.conditions import GOLDEN_REASONS
from segserve_operator.core.rollout.engine import Wait
from segserve_operator.core.world.quorum import ARTIFACT_REASONS

pytestmark = pytest.mark.same

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
CLASSES = [getattr(segserve, name) for name in segserve.__all__]


def subclasses(of: type[errors.BuilderError]) -> list[type[errors.BuilderError]]:
    return [of, *(each for kind in of.__subclasses__() for each in subclasses(kind))]


REASONS = {kind.reason for kind in subclasses(errors.BuilderError)} | ARTIFACT_REASONS | GOLDEN_REASONS


def test_every_reason_of_a_condition_is_explained() -> None:
    assert {reason for reason in REASONS if f"`{reason}`" not in PAGE} == set()


def test_everything_that_a_rollout_waits_for_is_explained() -> None:
    assert {wait.value for wait in Wait if wait is not Wait.NOTHING and f"`{wait.value}`" not in PAGE} == set()


def test_every_error_of_the_client_is_explained() -> None:
    raised = {kind.__name__ for kind in CLASSES if isinstance(kind, type) and issubclass(kind, SegserveError)}

    assert len(raised) > 20
    assert {name for name in raised if f"`{name}`" not in PAGE} == set()
