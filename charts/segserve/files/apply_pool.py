"""Applies a TritonPool once its definition is served: `apply_pool.py SECONDS POOL_AS_JSON`.

A pool that came with the chart's manifests would have to be sent before there is its kind.
"""

import json
import os
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.request
from typing import Any

ACCOUNT = pathlib.Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
LATER = {404, 429, 500, 503}  # 404: the definition has only just been made


def address(server: str, pool: dict[str, Any]) -> str:
    """Return where the pool is applied: what Helm said before and does not say now is taken back."""
    meta = pool["metadata"]
    path = f"apis/{pool['apiVersion']}/namespaces/{meta['namespace']}/tritonpools/{meta['name']}"
    return f"{server}/{path}?fieldManager=helm-pool&force=true&fieldValidation=Strict"


def applied(url: str, body: bytes) -> tuple[int, str]:
    """Return the status, 0 where there was no answer, and the server's words."""
    headers = {
        "Authorization": "Bearer " + (ACCOUNT / "token").read_text(),
        "Content-Type": "application/apply-patch+yaml",
    }
    request = urllib.request.Request(url, body, headers, method="PATCH")
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")) if url.startswith("https:") else None
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


def message(text: str) -> str:
    """Return what the server's Status says."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, LookupError, TypeError):
        return text[:500]


end = time.monotonic() + float(sys.argv[1])
pool = json.loads(sys.argv[2])
url = address(os.environ.get("SERVER", "https://kubernetes.default.svc"), pool)
status, text = applied(url, json.dumps(pool).encode())
while status in {0, *LATER} and time.monotonic() < end:
    time.sleep(1)
    status, text = applied(url, json.dumps(pool).encode())
name = pool["metadata"]["name"]
print(f"pool {name} applied" if status in {200, 201} else f"pool {name} refused: {status} {message(text)}")
sys.exit(0 if status in {200, 201} else 1)
