"""The promptable example: what it promises of each coin, and what its files say of each other."""

from __future__ import annotations

import pytest
from golden_clicks import ENOUGH, HERE, RESOURCE, answers, digests, ious, model

from segserve_builder.golden.judging import compare, load
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.documents import with_strings


@pytest.fixture(scope="module")
def served() -> InProcessModel:
    return model()


def test_each_coin_is_cut_out_by_one_click_and_by_one_box(served: InProcessModel) -> None:
    clicked, boxed = ious(served)

    assert (len(clicked), len(boxed)) == (24, 24)
    assert min(clicked) >= ENOUGH
    assert min(boxed) >= ENOUGH


def test_a_click_on_the_table_selects_next_to_nothing(served: InProcessModel) -> None:
    (answer,) = answers(served, [{"points": [[5.0, 290.0]]}])

    assert answer["SCORES"][0] < 0.5


def test_the_golden_set_is_answered(served: InProcessModel) -> None:
    (case,) = load(HERE / "golden").cases
    assert case.prompt is not None
    (answer,) = answers(served, [{"boxes": [list(box) for box in case.prompt.boxes]}])

    compare(case, answer)


def test_the_digests_of_model_yaml_are_those_of_the_files() -> None:
    text = RESOURCE.read_text()

    assert with_strings(text, digests()) == text, "run examples/prompt/golden_clicks.py"
