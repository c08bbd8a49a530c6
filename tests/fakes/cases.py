"""Cases of a test by the sentences that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest


def cases(names: str | Sequence[str], by_sentence: Mapping[str, object]) -> pytest.MarkDecorator:
    """Run a test with each case; where a test is given several `names`, a case is a tuple."""
    return pytest.mark.parametrize(names, list(by_sentence.values()), ids=list(by_sentence))
