"""The source `gs`: Google Cloud Storage by `gs://bucket/key`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from segserve_builder.errors import SourceUnauthorizedError
from segserve_builder.sources.access import Access
from segserve_builder.sources.object_store import (
    RETRIES,
    Bucket,
    ObjectStoreSource,
    client,
    guarded,
    quoted,
    signed,
    unsigned,
)

if TYPE_CHECKING:
    from obstore.store import GCSConfig

_KEY: Final = "service-account.json"
_ENDPOINT: Final = "https://storage.googleapis.com"
_READ_BY_LIBRARY: Final = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_BEARER_TOKEN",
    # In a pod, Google's metadata server hands out tokens of its workload identity.
    "KUBERNETES_SERVICE_HOST",
)


class GsSource(ObjectStoreSource):
    """Objects of Google Cloud Storage. Requests are signed with a Secret's service account, or carry an ambient token.

    A Secret has `service-account.json`. Ambient credentials are `GOOGLE_*` variables, the file that `gcloud auth
    application-default login` wrote, and in a pod its workload identity.
    """

    scheme = "gs"

    def connect(self, bucket: str, access: Access) -> Bucket:
        """Return the bucket; see `ObjectStoreSource.connect`."""
        from obstore.exceptions import BaseError
        from obstore.store import GCSStore

        secret = access.secret(self.scheme, bucket, (_KEY,))
        endpoint = guarded(access, self.scheme, _ENDPOINT)
        # Always set: a service account's file could otherwise name another server.
        config: GCSConfig = {"base_url": endpoint, "skip_signature": False}
        if secret:
            config["service_account_key"] = secret[_KEY]
        elif not access.ambient or not _has_credentials(os.environ):
            config["skip_signature"] = True
        try:
            store = GCSStore(bucket, config=config, client_options=client(endpoint, secret), retry_config=RETRIES)
        except (BaseError, ValueError) as error:
            # The library's message may show parts of the key.
            origin = f"the key {_KEY} of its Secret" if secret else "the credential that the environment names"
            raise SourceUnauthorizedError(f"gs://{bucket}: {origin} is not a usable service account") from error
        if secret:
            return Bucket(store, signed(store, encode=quoted))
        return Bucket(store, unsigned(f"{endpoint}/{bucket}") if config["skip_signature"] else None)


def _has_credentials(environment: Mapping[str, str]) -> bool:
    written = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    return any(environment.get(name) for name in _READ_BY_LIBRARY) or written.is_file()
