from __future__ import annotations

import pytest

from segserve_builder.spec.model_spec import ModelClass
from segserve_operator.core.models.roles import class_changes

STABLE = (ModelClass(id=0, name="background"), ModelClass(id=1, name="coin"), ModelClass(id=2, name="table"))


@pytest.mark.parametrize(
    ("new", "changes"),
    [
        pytest.param("background coin table", [], id="the same classes are no change"),
        pytest.param("background coin table hand", [], id="a new class is no change"),
        pytest.param("background coin", ["class 'table' (id 2) is dropped"], id="a missing class is dropped"),
        pytest.param(
            "background disc table",
            ["class 'coin' is dropped; its id 1 now means 'disc'"],
            id="a renamed class is dropped",
        ),
        pytest.param(
            "background table coin",
            ["class 'coin' is renumbered from 1 to 2", "class 'table' is renumbered from 2 to 1"],
            id="classes that change places are renumbered",
        ),
        pytest.param(
            "coin",
            [
                "class 'background' is dropped; its id 0 now means 'coin'",
                "class 'coin' is renumbered from 1 to 0",
                "class 'table' (id 2) is dropped",
            ],
            id="every change is told",
        ),
    ],
)
def test_class_changes(new: str, changes: list[str]) -> None:
    """Whoever knows the stable classes is misled by these changes alone."""
    classes = [ModelClass(id=number, name=name) for number, name in enumerate(new.split())]

    assert class_changes(STABLE, classes) == changes


def test_a_new_colour_is_no_change_of_the_classes() -> None:
    painted = [item.model_copy(update={"colour": "#ff0000"}) for item in STABLE]

    assert class_changes(STABLE, painted) == []
