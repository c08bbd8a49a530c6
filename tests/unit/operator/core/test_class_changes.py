from __future__ import annotations

from fakes.cases import cases
from segserve_builder.spec.model_spec import ModelClass
from segserve_operator.core.models.roles import class_changes

STABLE = (ModelClass(id=0, name="background"), ModelClass(id=1, name="coin"), ModelClass(id=2, name="table"))


@cases(
    ("new", "changes"),
    {
        "the same classes are no change": ("background coin table", []),
        "a new class is no change": ("background coin table hand", []),
        "a missing class is dropped": ("background coin", ["class 'table' (id 2) is dropped"]),
        "a renamed class is dropped": ("background disc table", ["class 'coin' is dropped; its id 1 now means 'disc'"]),
        "classes that change places are renumbered": (
            "background table coin",
            ["class 'coin' is renumbered from 1 to 2", "class 'table' is renumbered from 2 to 1"],
        ),
        "every change is told": (
            "coin",
            [
                "class 'background' is dropped; its id 0 now means 'coin'",
                "class 'coin' is renumbered from 1 to 0",
                "class 'table' (id 2) is dropped",
            ],
        ),
    },
)
def test_class_changes(new: str, changes: list[str]) -> None:
    """Whoever knows the stable classes is misled by these changes alone."""
    classes = [ModelClass(id=number, name=name) for number, name in enumerate(new.split())]

    assert class_changes(STABLE, classes) == changes


def test_a_new_colour_is_no_change_of_the_classes() -> None:
    painted = [item.model_copy(update={"colour": "#ff0000"}) for item in STABLE]

    assert class_changes(STABLE, painted) == []
