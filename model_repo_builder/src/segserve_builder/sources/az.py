"""The source `az`: Azure Blob Storage by `az://container/path`."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from segserve_builder.errors import SourceUnauthorizedError
from segserve_builder.sources.object_store import RETRIES, ObjectStoreSource, client, guarded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obstore.store import AzureConfig, ObjectStore

    from segserve_builder.sources.access import Access

_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_FORMS: Final = (("account-key",), ("sas-token",), ("client-id", "client-secret", "tenant-id"))
_FOUND_BY_LIBRARY: Final = (
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
)


class AzSource(ObjectStoreSource):
    """Requests are signed where there are credentials.

    A Secret has `account-key`, or `sas-token`, or `client-id`, `client-secret` and `tenant-id`; and `account-name`
    where the endpoint does not name the account. Of the environment `AZURE_*` counts, with its workload identity.
    """

    scheme = "az"

    def connect(self, bucket: str, access: Access) -> ObjectStore:
        """Return the container; see `ObjectStoreSource.connect`."""
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore

        secret = access.secret(self.scheme, bucket, *_FORMS)
        environment = os.environ if access.ambient and not secret else {}
        account = _account(secret, environment, access.endpoints.get(self.scheme))
        named = environment.get("AZURE_STORAGE_ENDPOINT") or environment.get("AZURE_ENDPOINT")
        endpoint = guarded(access, self.scheme, named or f"https://{account}.blob.core.windows.net")
        config: AzureConfig = {"account_name": account, "endpoint": endpoint, "skip_signature": False}
        if secret:
            config |= _credentials(secret)
        elif not any(environment.get(name) for name in _FOUND_BY_LIBRARY):
            config["skip_signature"] = True
        try:
            return AzureStore(bucket, config=config, client_options=client(endpoint, secret), retry_config=RETRIES)
        except (BaseError, ValueError) as error:
            # The library's text may show parts of the key.
            raise SourceUnauthorizedError(f"az://{bucket}: the account's key or token cannot be used") from error


def _account(secret: Mapping[str, str], environment: Mapping[str, str], endpoint: str | None) -> str:
    """Return the account: as the Secret or environment names it, else the endpoint's path or first label."""
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


def _credentials(secret: Mapping[str, str]) -> AzureConfig:
    # The type is named, so that nothing in the environment is taken instead.
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
