"""A pool's `spec.artifacts` in the form that artifact sources use."""

from __future__ import annotations

from pathlib import Path

from segserve_builder.sources.access import Access, Credential, Identity, Signatures
from segserve_operator.api.artifacts import Artifacts
from segserve_operator.mapping.quantities import number


def access_of(artifacts: Artifacts, secrets: Path) -> Access:
    """Return the access of a pool, with each Secret as a folder of its name below `secrets`."""
    return Access(
        schemes=artifacts.schemes or None,
        hosts=artifacts.hosts,
        private=artifacts.private_hosts,
        endpoints=dict(artifacts.endpoints),
        credentials=tuple(
            Credential(scheme=each.scheme, host=each.host, folder=secrets / each.secret_ref.name)
            for each in artifacts.credentials
        ),
        ambient=artifacts.workload_identity,
        signatures=Signatures(
            required=artifacts.signatures.required,
            keys=artifacts.signatures.keys,
            certificates=artifacts.signatures.certificates,
            identities=tuple(
                Identity(identity=each.identity, issuer=each.issuer) for each in artifacts.signatures.identities
            ),
        ),
        max_bytes=int(number(artifacts.max_size) or 0),
    )
