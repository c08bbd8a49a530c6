"""The source `s3`: Amazon S3 and servers with its protocol, by `s3://bucket/key`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from configparser import ConfigParser, Error
from pathlib import Path
from typing import TYPE_CHECKING, Final

from segserve_builder.errors import SourceUnauthorizedError
from segserve_builder.sources.access import Access
from segserve_builder.sources.object_store import RETRIES, Bucket, ObjectStoreSource, client, guarded, signed, unsigned

if TYPE_CHECKING:
    from obstore.store import S3Credential

_KEYS: Final = ("access-key-id", "secret-access-key")
_REGION: Final = re.compile(r"[a-z0-9-]{1,40}")
_READ_BY_LIBRARY: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


class S3Source(ObjectStoreSource):
    """Objects of S3. Requests are signed if there are credentials, and name the bucket in the path.

    A Secret has `access-key-id` and `secret-access-key`, and may have `session-token` and `region`. Ambient credentials
    are `AWS_*` variables and the profile in `~/.aws/credentials`; the machine's own role is not used.
    """

    scheme = "s3"

    def connect(self, bucket: str, access: Access) -> Bucket:
        """Return the bucket; see `ObjectStoreSource.connect`."""
        from obstore.store import S3Store

        secret = access.secret(self.scheme, bucket, _KEYS)
        environment = os.environ if access.ambient and not secret else {}
        if environment and not any(environment.get(name) for name in _READ_BY_LIBRARY):
            secret = _profile(environment)
        region = _region(secret, environment)
        named = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
        endpoint = guarded(access, self.scheme, named or _usual_endpoint(region))
        by_library = not secret and any(environment.get(name) for name in _READ_BY_LIBRARY)
        store = S3Store(
            bucket,
            config={
                "region": region,
                "endpoint": endpoint,
                # The library also reads the environment, where this option would take precedence.
                "aws_endpoint_url_s3": endpoint,
                "virtual_hosted_style_request": False,
                "skip_signature": not secret and not by_library,
            },
            client_options=client(endpoint, secret),
            retry_config=RETRIES,
            credential_provider=_StaticCredentials(secret) if secret else None,
        )
        return Bucket(store, signed(store) if secret or by_library else unsigned(f"{endpoint}/{bucket}"))


class _StaticCredentials:
    """Credential provider of one Secret; with a provider, the library does not mix in the environment's credentials."""

    def __init__(self, secret: Mapping[str, str]) -> None:
        self._secret = secret

    def __call__(self) -> S3Credential:
        access_key, secret_key = (self._secret[key] for key in _KEYS)
        token = self._secret.get("session-token") or None
        return {"access_key_id": access_key, "secret_access_key": secret_key, "token": token, "expires_at": None}


def _region(secret: Mapping[str, str], environment: Mapping[str, str]) -> str:
    named = secret.get("region") or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    region = named or "us-east-1"
    if not _REGION.fullmatch(region):
        raise SourceUnauthorizedError(f"{region!r} is not a region of S3, such as 'eu-central-1'")
    return region


def _usual_endpoint(region: str) -> str:
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _profile(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of the profile that `aws` would use, empty without one."""
    path = environment.get("AWS_SHARED_CREDENTIALS_FILE")
    parser = ConfigParser(interpolation=None)
    try:
        parser.read(Path(path) if path else Path.home() / ".aws" / "credentials")
    except (OSError, Error, UnicodeDecodeError):
        return {}
    profile = environment.get("AWS_PROFILE") or "default"
    values = parser[profile] if parser.has_section(profile) else {}
    found = {name: values.get(f"aws_{name.replace('-', '_')}", "") for name in (*_KEYS, "session-token")}
    return found if all(found[key] for key in _KEYS) else {}
