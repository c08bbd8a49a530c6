"""Rules of access in a manifest, as the core has them: what cannot be read never opens anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes.cases import cases
from segserve_operator.api.loading import load
from segserve_operator.api.meta import SpecError
from segserve_operator.api.triton_pool import Gateway
from segserve_operator.core.traffic import AccessRule, Callers, CredentialKind
from segserve_operator.mapping.reading import read_pool
from segserve_operator.mapping.specs import access_of, credentials_of

KEYS = {"apiKeys": [{"secretRef": {"name": "callers", "key": "htpasswd"}}]}


@cases(
    ("stated", "rules"),
    {
        "none": (None, None),
        "keys": ([{"keys": ["a", "b"]}], (AccessRule(keys=("a", "b")),)),
        "everybody": ([{"callers": "Anonymous"}], (AccessRule(callers=Callers.ANONYMOUS),)),
        "a claim and certificates": (
            [{"claim": "groups", "values": ["x"], "issuer": "https://a"}, {"certificates": ["spiffe://b"]}],
            (AccessRule("groups", ("x",), "https://a"), AccessRule(certificates=("spiffe://b",))),
        ),
        "no rule": ([], ()),
        "an empty rule": ([{}], ()),
        "a text": ("everybody", ()),
        "no key": ([{"keys": []}], ()),
        "a claim without values": ([{"claim": "groups"}], ()),
        "two kinds in one rule": ([{"keys": ["a"], "callers": "Anonymous"}], ()),
        "a rule that nobody knows": ([{"keys": ["a"]}, {"networks": ["10.0.0.0/8"]}], ()),
    },
)
def test_what_cannot_be_read_admits_nobody(stated: Any, rules: tuple[AccessRule, ...] | None) -> None:
    assert access_of({"metadata": {"name": "coins"}, "spec": {"access": stated}}) == rules


@pytest.mark.parametrize(
    "auth",
    [
        {**KEYS, "sessions": {"cookie": "x"}},
        {**KEYS, "jwt": [{"issuer": "a", "audiences": ["b"], "jwks": {"inline": "{}"}, "maxAge": "1h"}]},
        {**KEYS, "anonymous": "perhaps"},
        {"sessions": {"cookie": "x"}},
    ],
)
def test_a_pool_is_not_read_without_a_part_of_its_authentication(auth: Any) -> None:
    """What runs goes on; a gateway without that part might let callers in whom nobody meant to."""
    manifest = {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "TritonPool",
        "metadata": {"name": "default"},
        "spec": {"gateway": {"auth": auth}},
    }

    with pytest.raises(SpecError):
        read_pool(manifest, "default")


def test_the_example_has_two_tenants_with_a_model_each() -> None:
    example = Path(__file__).parents[4] / "examples/tenants/tenants.yaml"

    pool, *models = load(example.read_text(), example.name)

    assert pool.spec.gateway.auth is not None
    assert [access_of(model.to_dict()) for model in models] == [
        (AccessRule(keys=("team-a",)),),
        (AccessRule(keys=("team-b",)),),
    ]
    artifacts = [example.parent / model.to_dict()["spec"]["artifact"]["uri"] for model in models]
    assert all(artifact.is_file() for artifact in artifacts)


@pytest.mark.parametrize(
    ("auth", "kinds"),
    [
        (None, set()),
        (KEYS, {CredentialKind.KEY}),
        ({"mtls": {"caSecretRef": {"name": "a", "key": "ca.crt"}}}, {CredentialKind.CERTIFICATE}),
        (
            {**KEYS, "jwt": [{"issuer": "a", "audiences": ["b"], "jwks": {"inline": "{}"}}]},
            {CredentialKind.KEY, CredentialKind.TOKEN},
        ),
    ],
)
def test_the_credentials_that_a_gateway_takes_are_those_of_its_pool(auth: Any, kinds: set[CredentialKind]) -> None:
    stated = {"auth": auth, "tls": {"secretName": "certificate"}} if auth is not None else {}
    assert credentials_of(Gateway.model_validate(stated)) == kinds
