"""The source `az`: Azure Blob Storage by `az://container/path`."""

from __future__ import annotations

import base64
import hmac
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlencode, urlsplit

from segserve_builder.errors import SourceUnauthorizedError
from segserve_builder.sources.access import Access
from segserve_builder.sources.object_store import (
    RETRIES,
    SIGNED_FOR,
    Bucket,
    Located,
    ObjectStoreSource,
    client,
    guarded,
    quoted,
    unsigned,
)

if TYPE_CHECKING:
    from obstore.store import AzureConfig

_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_FORMS: Final = (("account-key",), ("sas-token",), ("client-id", "client-secret", "tenant-id"))
_VERSION: Final = "2023-11-03"
_KEYS: Final = {
    "AZURE_STORAGE_ACCOUNT_KEY": "account-key",
    "AZURE_STORAGE_ACCESS_KEY": "account-key",
    "AZURE_STORAGE_SAS_KEY": "sas-token",
    "AZURE_STORAGE_SAS_TOKEN": "sas-token",
}
_TOKENS: Final = (
    "AZURE_STORAGE_TOKEN",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
)


class AzSource(ObjectStoreSource):
    """Blobs of Azure. Requests are signed with an account key, and carry a token with other credentials.

    A Secret has `account-key`, or `sas-token`, or `client-id`, `client-secret` and `tenant-id`; and `account-name`
    unless the endpoint names the account. Ambient credentials are `AZURE_*` variables, with workload identity.
    """

    scheme = "az"
    headers: ClassVar[Mapping[str, str]] = {"x-ms-version": _VERSION}

    def connect(self, bucket: str, access: Access) -> Bucket:
        """Return the container; see `ObjectStoreSource.connect`."""
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore

        secret = access.secret(self.scheme, bucket, *_FORMS)
        environment = os.environ if access.ambient and not secret else {}
        account = _account(secret, environment, access.endpoints.get(self.scheme))
        named = environment.get("AZURE_STORAGE_ENDPOINT") or environment.get("AZURE_ENDPOINT")
        endpoint = guarded(access, self.scheme, named or f"https://{account}.blob.core.windows.net")
        config: AzureConfig = {"account_name": account, "endpoint": endpoint, "skip_signature": False}
        by_token = any(environment.get(name) for name in _TOKENS)
        if not secret and not by_token:
            secret = {key: environment[name] for name, key in _KEYS.items() if environment.get(name)}
        if secret:
            config |= _credentials(secret)
        elif not by_token:
            config["skip_signature"] = True
        try:
            store = AzureStore(bucket, config=config, client_options=client(endpoint, secret), retry_config=RETRIES)
            return Bucket(store, None if by_token else _located(f"{endpoint}/{bucket}", account, secret))
        except (BaseError, ValueError) as error:
            # The library's message may show parts of the key.
            raise SourceUnauthorizedError(f"az://{bucket}: the account's key or token cannot be used") from error


def _account(secret: Mapping[str, str], environment: Mapping[str, str], endpoint: str | None) -> str:
    """Return the account that the Secret or the environment names, else the endpoint's path or first label."""
    named = secret.get("account-name") or environment.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not named and endpoint is not None:
        place = urlsplit(endpoint)
        named = place.path.strip("/") or (place.hostname or "").partition(".")[0]
    if not named or not _ACCOUNT.fullmatch(named):
        raise SourceUnauthorizedError(
            f"the storage account is {named or None!r}; it is 3 to 24 letters and digits, in the key account-name of a "
            "Secret for az:, or in the endpoint for az:, such as https://ACCOUNT.blob.core.windows.net"
        )
    return named


def _located(bucket_url: str, account: str, secret: Mapping[str, str]) -> Located | None:
    """Return the function from keys to URLs; None if a token is needed."""
    if secret.get("account-key"):
        key = base64.b64decode(secret["account-key"])
        resource = f"/blob/{account}/{bucket_url.rpartition('/')[2]}"
        return lambda name: f"{bucket_url}/{quoted(name)}?{_signature(key, f'{resource}/{name}')}"
    if not secret or secret.get("sas-token"):
        return unsigned(bucket_url, secret.get("sas-token", "").removeprefix("?"))
    return None


def _signature(key: bytes, resource: str) -> str:
    """Return the query that grants reading a blob for an hour.

    The library's own signature starts at this machine's time, and Azure refuses one that starts in its future.
    """
    until = f"{datetime.now(UTC) + SIGNED_FOR:%Y-%m-%dT%H:%M:%SZ}"
    # Rights, start, end, resource, policy, address, protocol, version, kind, snapshot, encryption, five headers.
    text = "\n".join(("r", "", until, resource, "", "", "", _VERSION, "b", "", "", "", "", "", "", ""))
    signature = base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()
    return urlencode({"sv": _VERSION, "sr": "b", "sp": "r", "se": until, "sig": signature})


def _credentials(secret: Mapping[str, str]) -> AzureConfig:
    # With the type named, the library takes nothing from the environment instead.
    if secret.get("account-key"):
        return {"account_key": secret["account-key"], "credential_type": "access_key"}
    if secret.get("sas-token"):
        return {"sas_key": secret["sas-token"].removeprefix("?"), "credential_type": "sas_token"}
    return {
        "client_id": secret["client-id"],
        "client_secret": secret["client-secret"],
        "tenant_id": secret["tenant-id"],
        "credential_type": "client_secret",
    }
