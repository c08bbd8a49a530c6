"""Steps that many models share: the names of what they share, and how an ensemble says which member it asks for.

Triton hands no constant to a step, and a header would be needed on every way in. But a step is told which of its
outputs and optional inputs an ensemble uses. A shared step has one for each digit at each place of a member's name, and
an ensemble uses those that spell its own member. Callers cannot change it, and nothing has to be set for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, Final

from segserve_builder.spec.names import DIGEST_LENGTH, STEP_PREFIX, digest

_DIGITS: Final = "0123456789abcdef"
_SELECTOR: Final = re.compile(r"MEMBER_(\d)_([0-9a-f])")
_SHARED: Final = re.compile(rf"{STEP_PREFIX}(net|post)-shared--[0-9a-f]+")

SELECTORS: Final = tuple(f"MEMBER_{place}_{digit}" for place in range(DIGEST_LENGTH) for digit in _DIGITS)
"""The outputs of a shared network step, or the optional inputs of a shared last step, that spell a member's digest."""
OPTIONS_FILE: Final = "options.json"
"""The file in a member's folder that its name is the digest of."""
OPENING: Final = "is being opened"
NOT_OPENED: Final = "cannot be opened"
"""What a shared step says of a member that it does not run yet, or not now; the request may be sent again."""


def is_shared(step: str) -> bool:
    """Return whether a step is shared by models whose own would differ in options alone."""
    return _SHARED.fullmatch(step) is not None


def member_prefix(kind: str) -> str:
    """Return how the names of the members of shared steps begin; `kind` is net or post."""
    return f"{STEP_PREFIX}{kind}-member--"


def member_name(kind: str, content: Any) -> str:
    """Name a member after its content, which names its shared step: it belongs to that one alone."""
    return member_prefix(kind) + digest(content)


def selectors_of(member: str) -> list[str]:
    """Return the selectors that spell a member's digest, in order."""
    return [f"MEMBER_{place}_{digit}" for place, digit in enumerate(member[-DIGEST_LENGTH:])]


def selected(names: Iterable[str]) -> str | None:
    """Return the digest that the selectors among some names spell, None unless they spell a single one."""
    found = sorted(match.groups() for name in names if (match := _SELECTOR.fullmatch(name)))
    if [int(place) for place, _ in found] != list(range(DIGEST_LENGTH)):
        return None
    return "".join(digit for _, digit in found)


def member_of(step: str, inputs: Collection[str], outputs: Collection[str]) -> str | None:
    """Return the member that an ensemble asks a step for by these inputs and outputs; None of one that has none."""
    match = _SHARED.fullmatch(step)
    spelled = None if match is None else selected(outputs if match[1] == "net" else inputs)
    return None if match is None or spelled is None else member_prefix(match[1]) + spelled
