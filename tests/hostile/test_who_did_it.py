"""A tenant wants to promote without the right, or another name beside what he did."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from segserve_operator.adapters.kube.admission import RequestRefusedError, UserInfo, stamp
from segserve_operator.core.world.requests import PREFIX, REQUESTED_BY, VERBS, requester

ALICE: Final = {"username": "alice@example.com", "groups": ["tenants"]}
BOB: Final = {"username": "bob@example.com", "groups": ["releasers"]}
Json = dict[str, Any]


def model(spec: int = 1, **annotations: str) -> Json:
    """Return a model whose annotations are named without their prefix, with `_` for `-`."""
    named = {PREFIX + name.replace("_", "-"): value for name, value in annotations.items()}
    return {"metadata": {"name": "coins", "namespace": "lab", "annotations": named}, "spec": {"number": spec}}


async def releasers_may(user: UserInfo, namespace: str, name: str) -> bool:
    assert (namespace, name) == ("lab", "coins")
    return "releasers" in user["groups"]


async def stamped(user: UserInfo, old: Json | None, new: Json) -> dict[str, str]:
    value = await stamp(user, old, new, releasers_may)
    return dict(json.loads(value)) if value is not None else {}


@pytest.mark.parametrize("verb", ["promote", "skip_gate"])
async def test_who_may_only_edit_models_neither_promotes_nor_skips_a_gate(verb: str) -> None:
    with pytest.raises(RequestRefusedError, match=r"segmentationmodels/promote in lab.*alice@example\.com"):
        await stamped(ALICE, model(), model(**{verb: "coins-2@1"}))
    with pytest.raises(RequestRefusedError, match="segmentationmodels/promote"):
        await stamped(ALICE, None, model(**{verb: "coins-2@1"}))
    with pytest.raises(RequestRefusedError, match="segmentationmodels/promote"):
        await stamped(ALICE, model(**{verb: "coins-1@1"}), model(**{verb: "coins-2@1"}))


async def test_what_somebody_else_requested_is_not_requested_again_by_an_edit() -> None:
    promoted = model(promote="coins-2@1", requested_by='{"promote": "bob@example.com"}')
    edited = {**promoted, "spec": {"number": 2}}

    assert await stamped(ALICE, promoted, edited) == {"promote": BOB["username"], "spec": ALICE["username"]}


@pytest.mark.parametrize("verb", VERBS)
async def test_each_request_has_the_name_that_the_api_server_knows(verb: str) -> None:
    after = await stamped(BOB, model(), model(**{verb.replace("-", "_"): "coins-2@mallory/1"}))

    assert after == {verb: BOB["username"]}
    assert requester({REQUESTED_BY: json.dumps(after)}, verb) == BOB["username"]


@pytest.mark.parametrize("stored", [{}, {"requested_by": '{"promote": "bob@example.com"}'}])
async def test_nobody_writes_a_name_himself(stored: dict[str, str]) -> None:
    with pytest.raises(RequestRefusedError, match="webhook alone"):
        await stamped(ALICE, model(**stored), model(requested_by='{"promote": "carol@example.com"}'))


async def test_a_name_that_is_removed_comes_back() -> None:
    before = model(promote="coins-2@1", requested_by='{"promote": "bob@example.com"}')

    assert await stamped(ALICE, before, model(promote="coins-2@1")) == {"promote": BOB["username"]}


async def test_a_name_goes_with_its_request() -> None:
    before = model(pause="coins-2@1", requested_by='{"pause": "bob@example.com"}')

    assert await stamped(ALICE, before, model()) == {}


async def test_a_model_from_a_backup_gets_the_name_of_who_restores_it() -> None:
    restored = model(pause="coins-2@1", requested_by='{"pause": "bob@example.com"}')

    assert await stamped(ALICE, None, restored) == dict.fromkeys(("pause", "spec"), ALICE["username"])


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"promote": 7}', "[" * 100_000])
async def test_an_annotation_from_before_the_webhook_names_nobody(text: str) -> None:
    assert requester({REQUESTED_BY: text}, "promote") == ""
    assert await stamped(ALICE, model(requested_by=text), model(2)) == {"spec": ALICE["username"]}
