"""Somebody who may write records of rollouts wants them to tell another story."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from fakes.rollout_evidence import decision, record
from segserve_operator.core.rollout.chain import UNSEALED, flaws, sealed, unsealed
from segserve_operator.core.rollout.record import Record
from segserve_operator.mapping.rollouts import manifest_of, record_of, status_of
from segserve_operator.record_keys import RecordKeyError, checker, signer

NOW: Final = datetime(2026, 9, 1, tzinfo=UTC)
Story = dict[str, Any]


def written(name: str = "coins-2-6b00f192", sign: Callable[[str], str] | None = None, count: int = 5) -> Story:
    """Return the stored record of a rollout whose decisions this process has taken."""
    bare = {"inputs_digest": "", "previous": "", "digest": "", "signature": ""}
    own = tuple(replace(decision(number), **bare) for number in range(1, count + 1))
    taken = replace(record(), name=name, decisions=own, sequence=count)
    return {**manifest_of(taken), "status": status_of(taken, NOW, sign)}


def read(story: Story) -> Record:
    return record_of(story, ())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a private and of its public key."""
    folder, key = tmp_path_factory.mktemp("keys"), Ed25519PrivateKey.generate()
    private, public = folder / "key.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_record_as_it_was_written_has_no_flaw(keys: tuple[Path, Path]) -> None:
    story = written(sign=signer(keys[0]))

    assert list(flaws(read(story), checker(keys[1]))) == []
    # Read and written again by a successor, as after a restart.
    again = {**story, "status": status_of(read(story), NOW)}
    assert list(flaws(read(again), checker(keys[1]))) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence", 9),
        ("atSeconds", 1.0),
        ("signal", "ROLL_BACK"),
        ("phase", "Succeeded"),
        ("weight", 26),
        ("actor", "promote=coins-2@mallory/1"),
        ("requestedBy", "mallory"),
        ("requestedBy", None),
        ("reason", "Other"),
        ("message", ""),
        ("previous", "0" * 64),
        ("inputsDigest", "0" * 64),
        ("digest", "0" * 64),
        ("digest", None),
    ],
)
@pytest.mark.parametrize("number", [0, 2, 4])
def test_no_field_of_a_decision_is_changed_unseen(field: str, value: Any, number: int) -> None:
    story = written()
    story["status"]["decisions"][number][field] = value
    if value is None:
        del story["status"]["decisions"][number][field]

    assert list(flaws(read(story)))


@pytest.mark.parametrize("number", range(5))
def test_no_decision_is_dropped_unseen(number: int) -> None:
    story = written()
    del story["status"]["decisions"][number]

    assert list(flaws(read(story)))


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(range(5), 2)))
def test_no_two_decisions_are_swapped_unseen(one: int, other: int) -> None:
    story = written()
    decisions = story["status"]["decisions"]
    decisions[one], decisions[other] = decisions[other], decisions[one]

    assert list(flaws(read(story)))


def test_decisions_of_another_rollout_do_not_pass_for_those_of_this_one() -> None:
    story = written()
    story["status"]["decisions"] = written("coins-2-00000001")["status"]["decisions"]

    assert list(flaws(read(story)))


def test_what_a_decision_saw_is_not_exchanged_unseen() -> None:
    story = written()
    decisions = story["status"]["decisions"]
    decisions[1]["inputs"] = decisions[2]["inputs"]

    assert list(flaws(read(story))) == ["decision 2: its inputs, result or verdicts are not those that were sealed"]


@given(position=st.integers(0, 4), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_of_a_signed_decision_is_flipped_unseen(position: int, at: int, bit: int) -> None:
    story = deepcopy(STORY)
    decisions = story["status"]["decisions"]
    texts = [
        name
        for name, value in decisions[position].items()
        if isinstance(value, str) and name not in ("inputs", "at", "phase")
    ]
    name = texts[at % len(texts)]
    text = decisions[position][name]
    index = at % len(text)
    decisions[position][name] = text[:index] + chr(ord(text[index]) ^ (1 << bit)) + text[index + 1 :]

    assert list(flaws(read(story), lambda digest, signature: signature == digest[::-1]))


STORY: Final = written(sign=lambda digest: digest[::-1])


def test_a_forger_without_the_key_makes_digests_and_no_signatures(keys: tuple[Path, Path]) -> None:
    """He may write records, so he makes the whole chain anew; without --key it looks sound."""
    story = written(sign=signer(keys[0]))
    honest = read(story)
    lies = tuple(
        replace(each, message="all was well", digest="", previous="", inputs_digest="") for each in honest.decisions
    )
    forged = replace(honest, decisions=sealed(replace(honest, decisions=lies)))

    assert list(flaws(forged)) == []
    assert len(list(flaws(forged, checker(keys[1])))) == 5


def test_the_operator_seals_and_signs_nothing_that_it_has_not_decided_itself(keys: tuple[Path, Path]) -> None:
    """It reads records after a restart: a decision that was stripped of its seals must not get new ones."""
    story = written(sign=signer(keys[0]))
    for field in ("digest", "signature", "previous", "inputsDigest"):
        del story["status"]["decisions"][3][field]
    story["status"]["decisions"][3]["message"] = "forged"

    again = {**story, "status": status_of(read(story), NOW, signer(keys[0]))}

    assert "digest" not in again["status"]["decisions"][3]
    assert "decision 4: has no digest" in list(flaws(read(again), checker(keys[1])))


def test_a_file_that_is_no_key_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    (tmp_path / "key.pem").write_text("no key")

    for read_key, path in ((signer, tmp_path / "key.pem"), (signer, keys[1]), (checker, keys[0])):
        with pytest.raises(RecordKeyError, match=r"\.pem"):
            read_key(path)


def test_decisions_of_a_former_release_may_only_come_before_those_that_say_so() -> None:
    """After an upgrade a rollout goes on: what was decided before has no digest, and the next decision is sealed so."""
    before = read(written(count=2))
    former = tuple(
        replace(each, digest=UNSEALED, signature=UNSEALED, previous="", inputs_digest="") for each in before.decisions
    )
    own = replace(decision(3), digest="", previous="", inputs_digest="", signature="")
    going_on = replace(before, decisions=(*former, own), sequence=3)
    story = {**manifest_of(going_on), "status": status_of(going_on, NOW)}

    assert list(flaws(read(story))) == []
    assert unsealed(read(story)) == 2
    story["status"]["decisions"].pop(1)
    assert unsealed(read(story)) == 1
    story["status"]["decisions"][1]["message"] = "forged"
    assert list(flaws(read(story))) == ["decision 3: its fields are not those that were sealed"]


@given(
    changes=st.lists(
        st.tuples(st.sampled_from(["drop", "swap", "copy"]), st.integers(0, 4), st.integers(0, 4)), max_size=4
    )
)
def test_no_order_of_dropped_swapped_and_copied_decisions_passes_but_the_true_one(
    changes: list[tuple[str, int, int]],
) -> None:
    story = deepcopy(STORY)
    told = story["status"]["decisions"]
    for kind, one, other in changes:
        if one >= len(told) or other >= len(told):
            continue
        if kind == "drop":
            del told[one]
        elif kind == "swap":
            told[one], told[other] = told[other], told[one]
        else:
            told.insert(other, deepcopy(told[one]))

    assert (not list(flaws(read(story)))) is (told == STORY["status"]["decisions"])
