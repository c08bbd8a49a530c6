"""What is sent to the API, as files to read: written anew with `make write`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fakes.pools import FULL, MINIMAL, coins, pool_context
from segserve_common.kube.shards import pack
from segserve_operator.adapters.kube.objects import (
    PoolContext,
    assignment_config_map,
    gateway_objects,
    group_objects,
    main_group,
    plan_config_map,
    revision_object,
)
from segserve_operator.api.documents import write_documents

pytestmark = pytest.mark.same

GOLDEN = Path(__file__).parents[4] / "golden" / "kube"
POOLS = {"minimal": MINIMAL, "full": FULL}


def told(target: PoolContext) -> tuple[dict[str, Any], ...]:
    own = coins()
    content = pack([own.to_json()])
    return (
        assignment_config_map(target, main_group(target), 2, content),
        plan_config_map(target, 0, pack({"routes": [], "servers": []}), ["discs", "coins"]),
        revision_object(
            namespace="vision",
            pool=target.pool,
            model="coins",
            uid="4e5f",
            revision=own.revision,
            assigned=own,
            number=3,
        ),
    )


RENDERED = {
    "group": lambda target: group_objects(target, main_group(target), target.spec.replicas),
    "candidate": lambda target: group_objects(target, "coins-0123456789", 1),
    "gateway": gateway_objects,
    "told": told,
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("part", RENDERED)
def test_objects_are_what_was_read_before(pool: str, part: str) -> None:
    """Write them anew with `make write`, and read the difference before committing it."""
    text = write_documents(RENDERED[part](pool_context(POOLS[pool])))
    path = GOLDEN / f"{pool}-{part}.yaml"
    if os.environ.get("SEGSERVE_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert path.read_text() == text


def test_no_golden_is_left_over() -> None:
    assert {path.name for path in GOLDEN.glob("*.yaml")} == {
        f"{pool}-{part}.yaml" for pool in POOLS for part in RENDERED
    }
